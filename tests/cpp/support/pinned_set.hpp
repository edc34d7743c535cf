// SPDX-License-Identifier: Apache-2.0
//
// What a device of the tests knows as pinned.
#pragma once

#include <cstddef>
#include <iterator>
#include <map>
#include <mutex>

namespace hccomm::test {

// Thread: any.
class PinnedSet {
 public:
  // False: something is pinned there already; or, for remove(), nothing is.
  bool add(void* address, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    return blocks_.emplace(static_cast<std::byte*>(address), bytes).second;
  }
  bool remove(void* address) {
    const std::lock_guard lock(mutex_);
    return blocks_.erase(static_cast<std::byte*>(address)) == 1;
  }
  bool holds(std::byte* address, std::size_t bytes) const {
    const std::lock_guard lock(mutex_);
    const auto after = blocks_.upper_bound(address);
    if (after == blocks_.begin()) return false;
    const auto& [begin, length] = *std::prev(after);
    return address + bytes <= begin + length;
  }
  bool empty() const {
    const std::lock_guard lock(mutex_);
    return blocks_.empty();
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::byte*, std::size_t> blocks_;
};

}  // namespace hccomm::test
