// SPDX-License-Identifier: Apache-2.0
//
// How long a peer has said nothing, as far as we could have heard it: Engine::tick keeps one for
// each channel. Time in which this process was stopped, or did not get a processor, is not held
// against the peer.
#pragma once

#include <algorithm>

#include "base/clock.hpp"

namespace hccomm::engine {

// How often every process tells its peers that it is alive, and looks whether they are.
inline constexpr auto kBeat = std::chrono::milliseconds(250);
inline constexpr auto kGlance = std::chrono::milliseconds(50);

// Owns:   nothing.
// Thread: guarded by the engine's lock.
// Fails:  never.
class Silence {
 public:
  // A gap between two looks counts for so much at most: in the rest of it we were away.
  static constexpr Clock::duration kLongestLook = std::chrono::milliseconds(200);

  // Something has come.
  void heard() { heard_ = true; }
  // It was a beat, which says for how long the peer has heard nothing of us. Where the line is cut
  // in one direction the side that still hears learns so of it, before the other falls silent.
  void told(Clock::duration unheard) {
    told_ = unheard > kUsual ? unheard + kBeat : Clock::duration{};  // it may be a beat old
  }
  // Starts anew: nothing is expected of the peer before this.
  void restart() {
    heard_ = true;
    looked_ = {};
  }
  // A look at the clock, after everything that has come was taken.
  void look(Clock::time_point now, Clock::duration longest = kLongestLook) {
    const Clock::duration since =
        looked_ == Clock::time_point{} ? Clock::duration{} : now - looked_;
    if (since > longest) away_ = now;  // then it is we who were silent
    if (now - away_ < kForgiven) told_ = {};
    const Clock::duration counted = std::min(since, longest);
    unheard_ = heard_ ? Clock::duration{} : unheard_ + counted;
    lasted_ = heard_ ? told_ : lasted_ + counted;
    heard_ = false;
    told_ = {};
    looked_ = now;
  }
  Clock::duration lasted() const { return lasted_; }
  // The part of it that is our own ears', for our beats. To tell the peer what it has told us would
  // echo, and grow with each beat.
  Clock::duration unheard() const { return unheard_; }

  // A cut in one direction lets a beat through that says nothing yet; then it may take a look to
  // count it, another to see the end, and a third to tell all ranks. Goes off the silence that may
  // last, half of it at most: every rank raises within that.
  static constexpr Clock::duration kNotice = kBeat + 3 * kGlance;
  static Seconds limit(Seconds most) { return std::max(most - Seconds(kNotice), most / 2); }

 private:
  static constexpr Clock::duration kUsual = kBeat + 2 * kGlance;  // between two beats
  static constexpr Clock::duration kForgiven = std::chrono::seconds(1);

  bool heard_ = true;
  Clock::time_point looked_{}, away_{};
  Clock::duration unheard_{}, lasted_{}, told_{};
};

}  // namespace hccomm::engine
