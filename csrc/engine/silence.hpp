// SPDX-License-Identifier: Apache-2.0
//
// How long a peer has said nothing, as far as we could have heard it: Engine::tick keeps one for
// each channel. Time in which this process was stopped, or did not get a processor, is not held
// against the peer.
#pragma once

#include <algorithm>

#include "base/clock.hpp"

namespace hccomm::engine {

// Owns:   nothing.
// Thread: guarded by the engine's lock.
// Fails:  never.
class Silence {
 public:
  // A gap between two looks counts for so much at most: in the rest of it we were away.
  static constexpr Clock::duration kLongestLook = std::chrono::milliseconds(200);

  // Something has come.
  void heard() { heard_ = true; }
  // Starts anew: nothing is expected of the peer before this.
  void restart() {
    heard_ = true;
    looked_ = {};
  }
  // A look at the clock, after everything that has come was taken.
  void look(Clock::time_point now, Clock::duration longest = kLongestLook) {
    const Clock::duration since =
        looked_ == Clock::time_point{} ? Clock::duration{} : now - looked_;
    lasted_ = heard_ ? Clock::duration{} : lasted_ + std::min(since, longest);
    heard_ = false;
    looked_ = now;
  }
  Clock::duration lasted() const { return lasted_; }

 private:
  bool heard_ = true;
  Clock::time_point looked_{};
  Clock::duration lasted_{};
};

}  // namespace hccomm::engine
