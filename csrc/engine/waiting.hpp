// SPDX-License-Identifier: Apache-2.0
//
// How a driver waits that finds nothing to do: when it lets others have its core, and when it
// sleeps. Engine::drive asks.
#pragma once

#include <chrono>
#include <utility>

#include "base/clock.hpp"

namespace hccomm::engine {

// How long a waiter polls before it sleeps. To wake a core that is halted takes about as long as a
// waiter spins (36 us): two ranks that answer each other, one of which has slept, would go on
// falling asleep over each other's waking. So a sleep that was not worth it makes those that follow
// spin for eight times as long, until one of them has slept for longer than that.
class Patience {
 public:
  Patience(std::chrono::microseconds spin, bool grows)
      : spin_(spin), most_(grows ? 8 * spin : spin), now_(spin) {}
  std::chrono::microseconds now() const { return now_; }
  // What a waiter that has slept waited for has come after so long in all.
  void slept(Clock::duration waited) { now_ = waited <= most_ ? most_ : spin_; }

 private:
  std::chrono::microseconds spin_, most_, now_;
};

// Whether a waiter yields at once. With a core for every rank two may still sit on one, where only
// a yield lets the peer answer; to anybody else a yield gives the core away for as long as he likes
// (a millisecond). So a waiter polls first, unless the yield before this brought what was waited
// for, and soon: then it was the peer that ran meanwhile.
class Courtesy {
 public:
  // From one to the other and back takes microseconds, with his polls.
  static constexpr auto kHandover = std::chrono::microseconds(200);

  bool at_once() const { return at_once_; }
  void yielded(Clock::duration away) { handed_over_ = away < kHandover; }
  // Something has come, or not, at the first look since.
  void found() { at_once_ = std::exchange(handed_over_, false); }
  void found_nothing() {
    if (std::exchange(handed_over_, false)) at_once_ = false;
  }

 private:
  bool at_once_ = false, handed_over_ = false;  // handed_over_: by the last yield, just now
};

struct Waiting {
  Patience patience;
  Courtesy courtesy{};
};

}  // namespace hccomm::engine
