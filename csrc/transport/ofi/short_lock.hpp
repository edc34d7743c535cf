// SPDX-License-Identifier: Apache-2.0
//
// A lock for what is held for a moment and seldom wanted by two threads at once, but taken several
// times for each message. To give back a mutex is to look whether somebody waits, which costs as
// much again as to take it.
#pragma once

#include <sched.h>
#include <time.h>

#include <atomic>

namespace hccomm::transport::ofi {

// Thread: any; whoever waits yields, and naps where that goes on, so that the holder gets a core.
class ShortLock {
 public:
  ShortLock() = default;
  ShortLock(const ShortLock&) = delete;

  void lock() noexcept {
    for (unsigned tries = 0; held_.exchange(true, std::memory_order_acquire); ++tries) {
      while (held_.load(std::memory_order_relaxed)) wait(tries++);
    }
  }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  static void wait(unsigned tries) noexcept {
    constexpr unsigned kYields = 200;
    constexpr timespec kNap{0, 50'000};
    tries < kYields ? sched_yield() : nanosleep(&kNap, nullptr);
  }
  std::atomic<bool> held_{false};
};

}  // namespace hccomm::transport::ofi
