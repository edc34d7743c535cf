// SPDX-License-Identifier: Apache-2.0
//
// Monotonic time and deadlines. Every wait in the library takes a Deadline.
#pragma once

#include <algorithm>
#include <chrono>

namespace hccomm {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// A point in time after which waiting is pointless. Value type.
class Deadline {
 public:
  Deadline() = default;  // never
  explicit Deadline(Clock::time_point at) : at_(at) {}
  // Zero or negative seconds mean "already"; a huge value means never.
  static Deadline after(Seconds seconds) {
    if (seconds.count() > 3.0e8) return {};
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(seconds));
  }
  static Deadline never() { return {}; }

  bool passed() const { return at_ != Clock::time_point::max() && Clock::now() >= at_; }
  bool finite() const { return at_ != Clock::time_point::max(); }
  Clock::time_point at() const { return at_; }
  // Time left, never negative; at most `cap` milliseconds (for poll and epoll).
  int left_ms(int cap = 1000) const {
    if (!finite()) return cap;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return static_cast<int>(std::clamp<long long>(left, 0, cap));
  }
  Seconds left() const { return finite() ? Seconds(at_ - Clock::now()) : Seconds(3.0e8); }

 private:
  Clock::time_point at_ = Clock::time_point::max();
};

}  // namespace hccomm
