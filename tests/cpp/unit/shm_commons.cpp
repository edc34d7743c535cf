// SPDX-License-Identifier: Apache-2.0
//
// The commons of transport/shm: what goes to several rings is stored once, whatever its size; who
// does not read keeps only itself waiting; a piece is there until all that were sent it have read
// it; and a cell that points elsewhere is refused.
#include "transport/shm/commons.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "support/inbox.hpp"
#include "transport/shm/ring.hpp"

namespace hccomm::transport::shm {
namespace {

using test::Frame;
using test::pattern;
using test::Recorder;

class ShmCommons : public testing::Test {
 protected:
  struct Ring {
    Ring(Commons* commons, const std::byte* seen)
        : lines((ring_bytes(kMinAreaBytes) + kLineBytes) / kLineBytes),
          writer(memory(), kMinAreaBytes, commons),
          reader(memory(), kMinAreaBytes, seen) {}
    std::byte* memory() { return reinterpret_cast<std::byte*>(lines.data()); }

    struct alignas(kLineBytes) Line {
      std::byte bytes[kLineBytes];
    };
    std::vector<Line> lines;
    RingWriter writer;
    RingReader reader;
    Recorder inbox{false};
  };

  void SetUp() override {
    commons = Commons::make().take();
    seen = Segment::map(commons->descriptor(), kCommonsBytes).take();
  }
  Ring& ring() { return rings.emplace_back(commons.get(), seen.data()); }
  static Outgoing fanned(const Frame& frame, std::uint32_t fan = 1) {
    Outgoing out = frame.outgoing();
    out.fan = fan;
    return out;
  }
  static void read(Ring& ring) {
    while (ring.reader.poll(ring.inbox, 1 << 30) == RingReader::Taken::Some) {
    }
  }
  // The bytes of the area that the reader is done with: 0 as long as all came by the commons.
  static std::uint64_t area_read(Ring& ring) {
    return reinterpret_cast<const Head*>(ring.memory())->bytes_read;
  }
  // Sends the frame to the ring again and again, never reading, until it takes no more.
  static std::size_t fill(Ring& ring, std::deque<Frame>& frames, std::size_t bytes) {
    for (;;) {
      frames.push_back(pattern(bytes, frames.size()));
      Outgoing out = fanned(frames.back());
      if (ring.writer.send(out) != Progress::Done) return frames.size() - 1;
    }
  }

  std::shared_ptr<Commons> commons;
  Segment seen;
  std::deque<Ring> rings;
};

TEST_F(ShmCommons, EveryRingReadsTheOneCopy) {
  Ring& a = ring();
  Ring& b = ring();
  std::uint64_t number = 0;
  for (const std::size_t bytes : {kFanBytes, kFanBytes + 1, kChunkBytes - 1, kChunkBytes,
                                  kChunkBytes + 1, 5 * kChunkBytes + 77, std::size_t{600'001}}) {
    const Frame frame = pattern(bytes, ++number);
    Frame changed = frame;
    Outgoing first = fanned(frame), second = fanned(changed);
    ASSERT_EQ(a.writer.send(first), Progress::Done) << bytes;
    // Stored once: the second ring's frame says what the first one's payload was.
    std::fill(changed.payload.begin(), changed.payload.end(), std::byte{0});
    ASSERT_EQ(b.writer.send(second), Progress::Done) << bytes;
    read(a);
    read(b);
    ASSERT_EQ(a.inbox.frames.back(), frame) << bytes;
    ASSERT_EQ(b.inbox.frames.back(), frame) << bytes;
  }
  EXPECT_EQ(area_read(a), 0U);
}

TEST_F(ShmCommons, OtherNumbersOperationsAndPartsAreOtherBytes) {
  Ring& a = ring();
  const Frame one = pattern(20'000, 1), two = pattern(20'000, 2);
  Frame third = pattern(20'000, 3);
  third.number = 1;
  Outgoing frames[] = {fanned(one), fanned(two), fanned(third, 2)};
  for (Outgoing& out : frames) ASSERT_EQ(a.writer.send(out), Progress::Done);
  read(a);
  EXPECT_EQ(a.inbox.frames, (std::vector<Frame>{one, two, third}));
}

TEST_F(ShmCommons, SmallOrSingleFramesGoThroughTheRing) {
  Ring& a = ring();
  const Frame small = pattern(kFanBytes - 1, 1), single = pattern(2 * kFanBytes, 2);
  Outgoing first = fanned(small), second = fanned(single, 0);
  ASSERT_EQ(a.writer.send(first), Progress::Done);
  read(a);
  const std::uint64_t before = area_read(a);
  EXPECT_GT(before, 0U);
  ASSERT_EQ(a.writer.send(second), Progress::Done);
  read(a);
  EXPECT_GT(area_read(a), before);
}

TEST_F(ShmCommons, AWriterWaitsForItsOwnReader) {
  Ring& a = ring();
  std::deque<Frame> frames;
  const std::size_t sent = fill(a, frames, kChunkBytes);
  EXPECT_EQ(sent, kCommonsBytes / kChunkBytes);
  EXPECT_FALSE(a.writer.moved());  // it may sleep until the reader moves
  ASSERT_EQ(a.reader.poll(a.inbox, 1), RingReader::Taken::Some);
  EXPECT_TRUE(a.writer.moved());
  Outgoing out = fanned(frames.back());
  EXPECT_EQ(a.writer.send(out), Progress::Done);
  read(a);
  ASSERT_EQ(a.inbox.frames.size(), frames.size());
  for (std::size_t i = 0; i < frames.size(); ++i) ASSERT_EQ(a.inbox.frames[i], frames[i]) << i;
  EXPECT_EQ(area_read(a), 0U);
}

TEST_F(ShmCommons, WhoDoesNotReadKeepsNobodyElseWaiting) {
  Ring& stuck = ring();
  Ring& a = ring();
  std::deque<Frame> frames;
  const std::size_t held = fill(stuck, frames, kChunkBytes);
  for (std::uint64_t number = 1000; number < 1200; ++number) {
    const Frame frame = pattern(3 * kChunkBytes + 5, number);
    Outgoing out = fanned(frame);
    ASSERT_EQ(a.writer.send(out), Progress::Done);
    read(a);
    ASSERT_EQ(a.inbox.frames.back(), frame);
  }
  EXPECT_GT(area_read(a), 0U);  // through its own area
  read(stuck);                  // and what the other was sent is still as it was
  ASSERT_EQ(stuck.inbox.frames.size(), held);
  for (std::size_t i = 0; i < held; ++i) ASSERT_EQ(stuck.inbox.frames[i], frames[i]) << i;
  // All of it is free again, though the ring that held it sends nothing.
  const std::uint64_t before = area_read(a);
  const Frame frame = pattern(kChunkBytes, 2000);
  Outgoing out = fanned(frame);
  ASSERT_EQ(a.writer.send(out), Progress::Done);
  read(a);
  EXPECT_EQ(a.inbox.frames.back(), frame);
  EXPECT_EQ(area_read(a), before);
}

TEST_F(ShmCommons, ARingThatEndsLetsGo) {
  {
    Ring gone(commons.get(), seen.data());
    std::deque<Frame> frames;
    fill(gone, frames, kChunkBytes);
  }
  Ring& a = ring();
  std::deque<Frame> frames;
  EXPECT_EQ(fill(a, frames, kChunkBytes), kCommonsBytes / kChunkBytes);
}

TEST_F(ShmCommons, ManyPiecesAreNoMoreThanItCounts) {
  Ring& a = ring();
  std::deque<Frame> frames;
  EXPECT_EQ(fill(a, frames, kFanBytes), std::min(Commons::kPieces, kCommonsBytes / kFanBytes));
  read(a);
  for (std::size_t i = 0; i + 1 < frames.size(); ++i) ASSERT_EQ(a.inbox.frames[i], frames[i]) << i;
}

TEST_F(ShmCommons, ACellThatPointsElsewhereIsRefused) {
  const Frame frame = pattern(kChunkBytes, 1);
  for (const std::uint64_t offset : {std::uint64_t{1}, kCommonsBytes - kChunkBytes + kLineBytes,
                                     std::uint64_t{kCommonsBytes}, ~std::uint64_t{63}}) {
    Ring& a = ring();
    Outgoing out = fanned(frame);
    ASSERT_EQ(a.writer.send(out), Progress::Done);
    std::memcpy(a.memory() + kHeadBytes + 8 + sizeof(wire::Header), &offset, sizeof offset);
    EXPECT_EQ(a.reader.poll(a.inbox, 1), RingReader::Taken::Bad) << offset;
    EXPECT_NE(a.reader.fault().find("commons"), std::string::npos);
  }
  Ring none(commons.get(), nullptr);  // nor does one of a peer whose commons are not mapped here
  Outgoing out = fanned(frame);
  ASSERT_EQ(none.writer.send(out), Progress::Done);
  EXPECT_EQ(none.reader.poll(none.inbox, 1), RingReader::Taken::Bad);
}

}  // namespace
}  // namespace hccomm::transport::shm
