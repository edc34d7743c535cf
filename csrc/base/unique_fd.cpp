// SPDX-License-Identifier: Apache-2.0
#include "base/unique_fd.hpp"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace hccomm {

// One bit for each descriptor below kMost; those above are closed by their owner alone. Atomics
// only: the child reads it between fork() and whatever comes, where no lock can be trusted.
static constexpr int kMost = 1 << 16;
static constexpr int kBits = 64;
static std::atomic<std::uint64_t> owned[kMost / kBits];
static std::atomic<bool> in_child{false};

static std::uint64_t bit_of(int fd) { return std::uint64_t{1} << (fd % kBits); }

static void close_all_in_child() {
  const int err = errno;
  in_child.store(true, std::memory_order_relaxed);
  for (int word = 0; word < kMost / kBits; ++word) {
    std::uint64_t left = owned[word].exchange(0, std::memory_order_relaxed);
    for (; left != 0; left &= left - 1) ::close(word * kBits + __builtin_ctzll(left));
  }
  errno = err;
}

void own_descriptor(int fd) noexcept {
  static const int registered = pthread_atfork(nullptr, nullptr, close_all_in_child);
  static_cast<void>(registered);  // without memory for it, children keep what they inherit
  if (fd < kMost) owned[fd / kBits].fetch_or(bit_of(fd), std::memory_order_relaxed);
}

void disown_descriptor(int fd) noexcept {
  if (fd < kMost) owned[fd / kBits].fetch_and(~bit_of(fd), std::memory_order_relaxed);
}

void close_owned_descriptor(int fd) noexcept {
  if (fd < kMost) {
    const std::uint64_t before =
        owned[fd / kBits].fetch_and(~bit_of(fd), std::memory_order_relaxed);
    const bool closed = (before & bit_of(fd)) == 0 && in_child.load(std::memory_order_relaxed);
    if (closed) return;  // by fork(); the number may be another's by now
  }
  ::close(fd);
}

}  // namespace hccomm
