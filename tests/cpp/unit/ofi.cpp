// SPDX-License-Identifier: Apache-2.0
//
// What the ofi transport counts on whatever the provider: numbers in 32 bits, and credits that may
// overtake each other. The transport suite runs the rest.
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "transport/ofi/cache.hpp"
#include "transport/ofi/litter.hpp"
#include "transport/ofi/monitor.hpp"
#include "transport/ofi/peer.hpp"

namespace hccomm::transport::ofi {
namespace {

TEST(Immediate, SaysWhoseWhatAndWhichInThirtyTwoBits) {
  for (const std::uint32_t peer : {0u, 1u, kMaxPeers - 1}) {
    for (const Kind kind :
         {Kind::Eager, Kind::Ring, Kind::Direct, Kind::EagerCredit, Kind::Hello}) {
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
  for (unsigned i = 0; i < 3 * kEagerSlots + kRingSlots * kPieces + kDirectWrites; ++i) {
    Arrival& place = peer.slot_of(static_cast<std::uint16_t>(65530 + i));

    EXPECT_FALSE(place.here) << "two frames share a place";
    place.here = true;
  }
}

TEST(Peer, ThatSleepsHasMissedWhatWasSentSinceItLooked) {
  for (const std::uint16_t number : {0, 0x7fff, 0x8000, 0xffff}) {
    Peer sleeper, sender;
    sleeper.expected = sender.next = number;
    const std::uint16_t word = sleeper.sleep_word();

    EXPECT_NE(word & kAsleep, 0) << "it would be taken for a rail's hello";
    EXPECT_FALSE(sender.overtaken(word));
    ++sender.next;
    EXPECT_TRUE(sender.overtaken(word));
  }
}

TEST(Advert, FitsWhatProvidersInjectWhereThereIsOneRail) {
  Advert advert;
  advert.lanes = 1;

  EXPECT_LE(advert.used_bytes(), 64u);
}

TEST(Advert, IsOfOneMessageAlone) {
  wire::Header header;
  header.type = wire::Type::Data;
  header.context = 7;
  header.sequence = 8;
  header.index = 9;
  Advert advert;
  advert.context = 7;
  advert.sequence = 8;
  advert.index = 9;

  EXPECT_TRUE(advert.is_of(header));
  header.index = 10;
  EXPECT_FALSE(advert.is_of(header));
  header.index = 9;
  header.fingerprint = 1;
  EXPECT_FALSE(advert.is_of(header));
}

// ---- who may write where: the words that revoke an advert go another way than adverts -----------

wire::Header message(std::uint32_t index) {
  wire::Header header;
  header.type = wire::Type::Data;
  header.index = index;
  return header;
}

Advert advert_of(std::uint32_t index) {
  Advert advert;
  advert.index = index;
  return advert;
}

TEST(Claim, HoldsUntilItIsRevoked) {
  Claim claim;
  EXPECT_FALSE(claim.allows(message(0)));
  claim.take(advert_of(1), 10);
  EXPECT_TRUE(claim.allows(message(1)));
  EXPECT_FALSE(claim.allows(message(2)));

  claim.revoke(10);

  EXPECT_FALSE(claim.allows(message(1)));
  claim.take(advert_of(2), 11);
  EXPECT_TRUE(claim.allows(message(2)));
}

TEST(Claim, ThatIsRevokedBeforeItComesNeverHolds) {
  Claim claim;
  claim.revoke(10);

  claim.take(advert_of(1), 10);

  EXPECT_FALSE(claim.allows(message(1)));
  claim.take(advert_of(2), 11);
  EXPECT_TRUE(claim.allows(message(2)));
}

TEST(Claim, NoneHoldsOfSeveralThatAreRevokedBeforeTheFirstComes) {
  for (const std::uint16_t first : {std::uint16_t{10}, std::uint16_t{65534}}) {
    const auto number = [&](int i) { return static_cast<std::uint16_t>(first + i); };
    Claim claim;
    claim.revoke(number(0));
    claim.revoke(number(3));

    claim.take(advert_of(1), number(0));
    EXPECT_FALSE(claim.allows(message(1)));
    claim.take(advert_of(2), number(3));
    EXPECT_FALSE(claim.allows(message(2)));
    claim.take(advert_of(3), number(5));

    EXPECT_TRUE(claim.allows(message(3)));
  }
}

TEST(Claim, AUsedOneThatIsRevokedDoesNotHarmTheNext) {
  Claim claim;
  claim.take(advert_of(1), 10);
  claim.used_up();
  claim.revoke(10);

  claim.take(advert_of(2), 40'010);

  EXPECT_TRUE(claim.allows(message(2)));
}

// ---- memory that is registered ------------------------------------------------------------------

constexpr std::size_t kPages = 64 * 4096;

std::byte* map(void* at = nullptr) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at != nullptr ? MAP_FIXED : 0);
  void* const data = mmap(at, kPages, PROT_READ | PROT_WRITE, flags, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

class Watched : public testing::Test {
 protected:
  void SetUp() override {
    Monitor& monitor = Monitor::instance();
    if (!monitor.why_not().empty()) GTEST_SKIP() << monitor.why_not();
    data_ = map();
    ASSERT_NE(data_, nullptr);
    watched_ = monitor.watch(data_, kPages);
    ASSERT_GE(watched_, 0);
    ASSERT_TRUE(monitor.whole(watched_));
  }
  void TearDown() override {
    if (watched_ >= 0) Monitor::instance().forget(watched_);
    if (data_ != nullptr) munmap(data_, kPages);
  }
  bool whole() { return Monitor::instance().whole(watched_); }
  std::byte* data_ = nullptr;
  int watched_ = -1;
};

TEST_F(Watched, MemoryThatIsUsedStaysWhole) {
  for (std::size_t at = 0; at < kPages; at += 512) data_[at] = std::byte{1};

  EXPECT_TRUE(whole());
}

TEST_F(Watched, MemoryThatWasFreedIsBrokenWhenItsPlaceIsUsedAgain) {
  ASSERT_EQ(munmap(data_, kPages), 0);
  ASSERT_EQ(map(data_), data_);

  EXPECT_FALSE(whole());
}

TEST_F(Watched, MemoryMappedOverInOneCallIsBroken) {
  ASSERT_EQ(map(data_), data_);

  EXPECT_FALSE(whole());
}

TEST_F(Watched, OnePageGivenBackBreaksIt) {
  data_[4096] = std::byte{1};
  ASSERT_EQ(madvise(data_ + 4096, 4096, MADV_DONTNEED), 0);

  EXPECT_FALSE(whole());
}

TEST_F(Watched, MemoryThatMovedIsBroken) {
  void* const moved = mremap(data_, kPages, 2 * kPages, MREMAP_MAYMOVE);
  ASSERT_NE(moved, MAP_FAILED);

  EXPECT_TRUE(moved == data_ || !whole());
  munmap(moved, 2 * kPages);
  data_ = nullptr;
}

TEST_F(Watched, WhatLiesBesideItDoesNotMatter) {
  std::byte* const other = map();
  ASSERT_EQ(munmap(other, kPages), 0);

  EXPECT_TRUE(whole());
}

// A cache for no cards: what it remembers is all there is to see.
class Cached : public testing::Test {
 protected:
  void SetUp() override {
    if (!Monitor::instance().why_not().empty()) GTEST_SKIP() << Monitor::instance().why_not();
    cache_.set(2 * kPages);
    for (std::byte*& each : data_) ASSERT_NE(each = map(), nullptr);
  }
  void TearDown() override {
    cache_.clear();
    for (std::byte* const each : data_) {
      if (each != nullptr) munmap(each, kPages);
    }
  }
  Entry* use(std::byte* data, std::size_t bytes = kPages) {
    return cache_.use(data, bytes, Access::Write);
  }
  void use_once(std::byte* data) { cache_.done(*use(data)); }
  const Rails none_{};
  Cache cache_{none_};
  std::byte* data_[4] = {};
};

TEST_F(Cached, WhatWasUsedIsStillRegisteredAndPartsOfItAre) {
  use_once(data_[0]);
  Entry* const whole = use(data_[0]);

  EXPECT_EQ(use(data_[0] + 5000, 100), whole);
  EXPECT_EQ(cache_.registered_bytes(), kPages);
}

TEST_F(Cached, WhatIsOnlyReadIsNoLeaveToWrite) {
  Entry* const read = cache_.use(data_[0], kPages, Access::Read);

  EXPECT_NE(use(data_[0]), read);
}

TEST_F(Cached, WhatWasUsedLongestAgoGoesFirst) {
  for (const int each : {0, 1, 0, 2}) use_once(data_[each]);
  const auto registered = [&](int each) {
    const std::size_t before = cache_.registered_bytes();
    const bool same = cache_.use(data_[each], 1, Access::Read)->memory.bytes == kPages;
    return same && cache_.registered_bytes() == before;
  };

  EXPECT_EQ(cache_.registered_bytes(), 2 * kPages);
  EXPECT_TRUE(registered(0));
  EXPECT_TRUE(registered(2));
  EXPECT_FALSE(registered(1));
}

TEST_F(Cached, WhatIsInUseStaysHoweverMuchItIs) {
  std::vector<Entry*> entries;
  for (std::byte* const each : data_) entries.push_back(use(each));

  EXPECT_EQ(cache_.registered_bytes(), 4 * kPages);
  for (Entry* const each : entries) EXPECT_EQ(each->memory.bytes, kPages);
}

TEST_F(Cached, MemoryThatWasFreedIsRegisteredAnewAndTheOldDropped) {
  use_once(data_[0]);
  ASSERT_EQ(munmap(data_[0], kPages), 0);
  ASSERT_EQ(map(data_[0]), data_[0]);

  Entry* const again = use(data_[0]);

  EXPECT_TRUE(Monitor::instance().whole(again->watched));
  EXPECT_EQ(cache_.registered_bytes(), kPages);
}

TEST_F(Cached, MemoryThatWasFreedIsNotKeptForAnybody) {
  use_once(data_[0]);
  ASSERT_EQ(munmap(std::exchange(data_[0], nullptr), kPages), 0);

  use_once(data_[1]);

  EXPECT_EQ(cache_.registered_bytes(), kPages);
}

TEST_F(Cached, WithNoRoomNothingStaysRegistered) {
  cache_.set(0);

  use_once(data_[0]);

  EXPECT_EQ(cache_.registered_bytes(), 0u);
}

TEST_F(Cached, WhatTheProgramRegistersStaysHoweverLittleRoomThereIs) {
  cache_.set(0);
  Entry* const kept = cache_.keep(data_[0], kPages).value();

  use_once(data_[0]);
  use_once(data_[1]);

  EXPECT_EQ(cache_.registered_bytes(), kPages);
  EXPECT_EQ(use(data_[0] + 4096, 100), kept);
  cache_.done(*kept);
  EXPECT_EQ(cache_.registered_bytes(), kPages) << "a message still uses it";
  cache_.done(*kept);
  EXPECT_EQ(cache_.registered_bytes(), 0u);
}

TEST_F(Cached, WhatTheProgramRegistersTakesNoRoomFromWhatWasUsed) {
  for (const int each : {0, 1}) EXPECT_TRUE(cache_.keep(data_[each], kPages).ok());

  for (const int each : {2, 3}) use_once(data_[each]);

  EXPECT_EQ(cache_.registered_bytes(), 4 * kPages);
}

TEST_F(Cached, WhatTheProgramRegistersTwiceStaysUntilTheSecondEnd) {
  cache_.set(0);
  Entry* const first = cache_.keep(data_[0], kPages).value();
  Entry* const second = cache_.keep(data_[0], kPages).value();

  cache_.done(*first);

  EXPECT_EQ(first, second);
  EXPECT_EQ(cache_.registered_bytes(), kPages);
  cache_.done(*second);
  EXPECT_EQ(cache_.registered_bytes(), 0u);
}

TEST_F(Cached, MemoryThatIsTakenAwayIsNoLongerFound) {
  Entry* const first = use(data_[0]);
  cache_.revoke(*first);

  Entry* const second = use(data_[0]);

  EXPECT_NE(second, first);
  cache_.done(*first);
  EXPECT_EQ(cache_.registered_bytes(), kPages);
}

// ---- what a killed process leaves behind --------------------------------------------------------

// A file as the shm provider makes one, by a name that no process has.
class Litter : public testing::Test {
 protected:
  void SetUp() override {
    const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) GTEST_SKIP() << "no file can be made in /dev/shm";
    close(fd);
  }
  void TearDown() override { unlink(path_.c_str()); }
  bool is_there() const { return access(path_.c_str(), F_OK) == 0; }

  const std::string name_ = "999999999:0:" + std::to_string(getpid());
  const std::string path_ = "/dev/shm/" + name_;
};

TEST_F(Litter, StaysWhileItsOwnerLivesAndIsSweptThereafter) {
  UniqueFd kept = keep_shared_memory("fi_shm://" + name_);
  ASSERT_TRUE(kept);

  sweep_shared_memory();
  EXPECT_TRUE(is_there());
  kept.reset();

  EXPECT_GE(sweep_shared_memory(), 1);
  EXPECT_FALSE(is_there());
}

TEST_F(Litter, OfAnotherProgramIsNotTouched) {
  sweep_shared_memory();

  EXPECT_TRUE(is_there());
}

TEST_F(Litter, IsKeptByTheNameOfAnEndpointAlone) {
  EXPECT_FALSE(keep_shared_memory(name_));
  EXPECT_FALSE(keep_shared_memory("fi_shm://../shm/" + name_));
  EXPECT_FALSE(keep_shared_memory("fi_shm://"));
}

}  // namespace
}  // namespace hccomm::transport::ofi
