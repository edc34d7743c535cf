// SPDX-License-Identifier: Apache-2.0
//
// The operator new of a whole program, for suites that count allocations or refuse them. The one
// file of such a suite includes this, and says in allowed() what becomes of each.
#pragma once

#include <cstdlib>
#include <new>

namespace hccomm::test {

// Asked before each allocation, by any thread. False: it is refused. The suite defines it.
bool allowed() noexcept;

inline void* obtained(std::size_t bytes) noexcept {
  return allowed() ? std::malloc(bytes != 0 ? bytes : 1) : nullptr;
}

inline void* obtained_or_thrown(std::size_t bytes) {
  if (void* const memory = obtained(bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace hccomm::test

void* operator new(std::size_t bytes) { return hccomm::test::obtained_or_thrown(bytes); }
void* operator new[](std::size_t bytes) { return hccomm::test::obtained_or_thrown(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return hccomm::test::obtained(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
