// SPDX-License-Identifier: Apache-2.0
//
// When a peer counts as silent: only time in which we could have heard it is held against it.
#include "engine/silence.hpp"

#include <gtest/gtest.h>

namespace hccomm::engine {
namespace {

using std::chrono::milliseconds;

// A process that looks every 50 ms, and may be away.
struct Looker {
  Silence silence;
  Clock::time_point now{std::chrono::hours(1)};

  void look_for(milliseconds time) {
    for (const auto end = now + time; now < end;) silence.look(now += milliseconds(50));
  }
  void away_for(milliseconds time) { silence.look(now += time); }
};

TEST(Silence, LastsFromTheLookAfterTheLastWord) {
  Looker looker;
  looker.look_for(milliseconds(1000));
  looker.silence.heard();

  looker.look_for(milliseconds(50));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));

  looker.look_for(milliseconds(2900));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(2900));
}

TEST(Silence, BeforeTheFirstLookDoesNotCount) {
  Looker looker;

  looker.away_for(milliseconds(60'000));

  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));
}

TEST(Silence, OfAPeerIsNotOurOwnAbsence) {
  Looker looker;
  looker.look_for(milliseconds(50));

  for (int i = 0; i < 5; ++i) looker.away_for(milliseconds(950));  // and the peer is quiet as well

  EXPECT_EQ(looker.silence.lasted(), 5 * Silence::kLongestLook);
}

TEST(Silence, EndsWithAWordThatCameWhileWeWereAway) {
  Looker looker;
  looker.look_for(milliseconds(2800));

  looker.silence.heard();  // progress() has read it before the look
  looker.away_for(milliseconds(950));

  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));
}

// Their stop, and then our own: what the two add up to is no silence of three seconds.
TEST(Silence, DoesNotAddOurStopToTheirs) {
  Looker looker;
  looker.look_for(milliseconds(50));

  looker.look_for(milliseconds(950 + 250));  // they were stopped, just before a beat
  looker.away_for(milliseconds(950));
  looker.look_for(milliseconds(250));

  EXPECT_LT(looker.silence.lasted(), milliseconds(2900));
}

TEST(Silence, RestartsWithANewConnection) {
  Looker looker;
  looker.look_for(milliseconds(2800));

  looker.silence.restart();
  looker.away_for(milliseconds(200));

  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));
}

}  // namespace
}  // namespace hccomm::engine
