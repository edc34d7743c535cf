// SPDX-License-Identifier: Apache-2.0
//
// How long a driver polls before it sleeps, and when it lets others have its core.
#include "engine/waiting.hpp"

#include <gtest/gtest.h>

#include "engine/rest.hpp"

namespace hccomm::test {

TEST(Patience, GrowsWhenASleepWasNotWorthItAndGoesWithALongOne) {
  using std::chrono::microseconds;
  engine::Patience patience(microseconds(60), true);

  patience.slept(microseconds(150));
  EXPECT_EQ(patience.now(), microseconds(480));
  patience.slept(microseconds(481));
  EXPECT_EQ(patience.now(), microseconds(60));
}

TEST(Patience, StaysAsTheUserHasSetIt) {
  using std::chrono::microseconds;
  for (const int spin : {0, 60}) {
    engine::Patience patience(microseconds(spin), false);

    patience.slept(microseconds(1));

    EXPECT_EQ(patience.now(), microseconds(spin));
  }
}

TEST(Rest, IsTwiceAsLongWithEachFailureUntilManyCallsWentWell) {
  engine::Rest rest;
  const auto calls = [&] {
    int count = 0;
    while (!rest.over()) ++count;
    return count;
  };
  EXPECT_EQ(calls(), 0);
  rest.let_down();
  rest.let_down();  // a call that was in flight beside the first
  EXPECT_EQ(calls(), 16);
  rest.let_down();
  EXPECT_EQ(calls(), 32);
  for (int call = 0; call < 16; ++call) rest.well();
  rest.let_down();
  EXPECT_EQ(calls(), 16);
}

TEST(Courtesy, YieldsAtOnceToWhoAnsweredSoonAndToNobodyElse) {
  using std::chrono::microseconds;
  engine::Courtesy courtesy;

  courtesy.found();  // while it polled
  EXPECT_FALSE(courtesy.at_once());
  courtesy.yielded(microseconds(2000));  // to who has work of his own
  courtesy.found();
  EXPECT_FALSE(courtesy.at_once());
  courtesy.yielded(microseconds(20));
  courtesy.found();
  EXPECT_TRUE(courtesy.at_once());
  courtesy.found_nothing();  // and has not yielded
  EXPECT_TRUE(courtesy.at_once());
  courtesy.yielded(microseconds(1));
  courtesy.found_nothing();
  courtesy.found();
  EXPECT_FALSE(courtesy.at_once());
}

}  // namespace hccomm::test
