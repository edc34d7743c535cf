// SPDX-License-Identifier: Apache-2.0
//
// What a faulty transport (faulty.hpp) shall do to which frame.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>

#include "wire/frame.hpp"

namespace hccomm::test {

enum class Deed : std::uint8_t { Pass, Drop, FlipPayload, FlipHeader, Delay, Swap, Repeat, Cut };

// What one process's links do. Thread: any; set before or between the frames it is meant for.
class Mischief {
 public:
  // Asked once for each frame that is about to leave.
  using OnSend = std::function<Deed(const wire::Header&)>;

  void on_send(OnSend what) {
    const std::lock_guard lock(mutex_);
    on_send_ = std::move(what);
  }
  Deed decide(const wire::Header& header) {
    const std::lock_guard lock(mutex_);
    return on_send_ ? on_send_(header) : Deed::Pass;
  }
  // Does `deed` to the n-th frame (from 0) that `which` says yes to, and to no other.
  void once(Deed deed, int n, std::function<bool(const wire::Header&)> which) {
    on_send([deed, n, which = std::move(which), seen = 0](const wire::Header& header) mutable {
      return which(header) && seen++ == n ? deed : Deed::Pass;
    });
  }

 private:
  std::mutex mutex_;
  OnSend on_send_;
};

}  // namespace hccomm::test
