// SPDX-License-Identifier: Apache-2.0
//
// What the ofi transport counts on whatever the provider: numbers in 32 bits, and credits that may
// overtake each other. The transport suite runs the rest.
#include <gtest/gtest.h>

#include "transport/ofi/peer.hpp"

namespace hccomm::transport::ofi {
namespace {

TEST(Immediate, SaysWhoseWhatAndWhichInThirtyTwoBits) {
  for (const std::uint32_t peer : {0u, 1u, kMaxPeers - 1}) {
    for (const Kind kind : {Kind::Eager, Kind::Ring, Kind::EagerCredit, Kind::Hello}) {
      for (const std::uint16_t value : {0, 1, 0x8000, 0xffff}) {
        const Immediate found = Immediate::unpack(Immediate{peer, kind, value}.pack());

        EXPECT_EQ(found.peer, peer);
        EXPECT_EQ(found.kind, kind);
        EXPECT_EQ(found.value, value);
      }
    }
  }
}

TEST(Window, IsShutWhenAllThatMayBeSentIsUnderWay) {
  Window window{0, 0, 2};

  EXPECT_TRUE(window.open());
  window.sent = 2;
  EXPECT_FALSE(window.open());
  window.credit(1);
  EXPECT_TRUE(window.open());
}

TEST(Window, CountsOnPastSixteenBits) {
  constexpr std::uint32_t kSent = 3 * 65536 + 5;
  Window window{kSent, kSent - 10, 16};

  window.credit(static_cast<std::uint16_t>(kSent - 2));

  EXPECT_EQ(window.acked, kSent - 2);
}

TEST(Window, LearnsNothingFromACreditThatWasOvertaken) {
  Window window{100, 90, 16};
  window.credit(98);

  window.credit(94);

  EXPECT_EQ(window.acked, 98u);
}

TEST(Window, TakesNoCreditForWhatWasNeverSent) {
  Window window{100, 98, 16};

  window.credit(101);

  EXPECT_EQ(window.acked, 98u);
}

TEST(Peer, HasAPlaceForEveryFrameThatCanBeUnderWay) {
  Peer peer;
  for (unsigned i = 0; i < kEagerSlots + kRingSlots; ++i) {
    Arrival& place = peer.slot_of(static_cast<std::uint16_t>(65530 + i));

    EXPECT_FALSE(place.here) << "two frames share a place";
    place.here = true;
  }
}

}  // namespace
}  // namespace hccomm::transport::ofi
