// SPDX-License-Identifier: Apache-2.0
//
// When a peer counts as silent: only time in which we could have heard it is held against it.
#include "engine/silence.hpp"

#include <gtest/gtest.h>

#include <utility>

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

  EXPECT_LT(looker.silence.lasted(), Silence::limit(Seconds(3)));
}

// The line is cut from us to them: their beats still come, and say so.
TEST(Silence, LastsForThePeerThatHearsUsNoMore) {
  Looker looker;
  looker.look_for(milliseconds(1000));

  for (int beats = 1; beats <= 4; ++beats) {
    looker.look_for(milliseconds(200));
    looker.silence.heard();
    looker.silence.told(milliseconds(250) * beats);
    looker.look_for(milliseconds(50));
  }
  EXPECT_EQ(looker.silence.lasted(), milliseconds(1000) + kBeat);

  looker.look_for(milliseconds(500));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(1500) + kBeat);

  looker.silence.heard();
  looker.silence.told(milliseconds(300));  // as between any two beats
  looker.look_for(milliseconds(50));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));
}

// A queue on a slow line: one beat comes late, and the next ones in time.
TEST(Silence, DoesNotEchoBetweenTwoThatHearEachOther) {
  Looker one, other;
  one.look_for(milliseconds(1000));
  other.look_for(milliseconds(1000));
  one.silence.heard();
  one.look_for(milliseconds(50));
  other.look_for(milliseconds(500));  // without a word

  for (int beats = 0; beats < 20; ++beats) {
    for (auto [from, to] : {std::pair(&other, &one), std::pair(&one, &other)}) {
      to->silence.heard();
      to->silence.told(from->silence.unheard());
      to->look_for(milliseconds(50));
    }
    one.look_for(milliseconds(200));
    other.look_for(milliseconds(200));
  }

  EXPECT_LE(one.silence.lasted(), kBeat);
  EXPECT_LE(other.silence.lasted(), kBeat);
}

// We were stopped: of course they have heard nothing.
TEST(Silence, DoesNotBelieveThePeerWhereWeWereAway) {
  Looker looker;
  looker.look_for(milliseconds(1000));

  looker.silence.heard();
  looker.silence.told(milliseconds(900));
  looker.away_for(milliseconds(950));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));

  looker.silence.heard();
  looker.silence.told(milliseconds(1100));  // sent before our next beat came
  looker.look_for(milliseconds(50));
  EXPECT_EQ(looker.silence.lasted(), milliseconds(0));
}

// The look that counts what came last, the one that sees the end; telling.
TEST(Silence, IsOverSoonEnoughForAllToKnowInTime) {
  const auto late = 2 * kGlance;

  EXPECT_LT(Silence::limit(Seconds(3)) + late, Seconds(3));
  EXPECT_LT(Silence::limit(Seconds(1)) + late, Seconds(1));
  EXPECT_EQ(Silence::limit(Seconds(0.5)), Seconds(0.25));
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
