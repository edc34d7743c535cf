// SPDX-License-Identifier: Apache-2.0
//
// The ring of transport/shm by itself: what goes in comes out, in order, whatever the sizes; a slow
// reader holds the writer up; a damaged ring is refused.
#include "transport/shm/ring.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "support/inbox.hpp"

namespace hccomm::transport::shm {
namespace {

using test::Frame;
using test::pattern;
using test::Recorder;

struct Ring {
  explicit Ring(std::size_t area_bytes = kMinAreaBytes)
      : area(area_bytes), lines(ring_bytes(area_bytes) / kLineBytes) {}

  std::byte* memory() { return reinterpret_cast<std::byte*>(lines.data()); }
  std::byte* cell(std::size_t number) { return memory() + kHeadBytes + number * kCellBytes; }

  struct alignas(kLineBytes) Line {
    std::byte bytes[kLineBytes];
  };
  std::size_t area;
  std::vector<Line> lines;
  RingWriter writer{memory(), area};
  RingReader reader{memory(), area};
};

// Keeps the last frame's header, whole.
struct Last final : Inbox {
  void deliver(const wire::Header& header, const std::byte* bytes) override {
    last = header;
    payload.assign(bytes, bytes + header.length);
  }
  Placement begin(const wire::Header&) override { return {}; }
  void consume(const std::byte*, std::size_t) override {}
  void end() override {}

  wire::Header last;
  std::vector<std::byte> payload;
};

// Sends the frame, reading whenever the ring is full.
void carry(Ring& ring, const Frame& frame, Recorder& inbox) {
  Outgoing out = frame.outgoing();
  for (;;) {
    const Progress progress = ring.writer.send(out);
    ASSERT_NE(progress, Progress::Broken);
    if (progress == Progress::Done) return;
    ASSERT_EQ(ring.reader.poll(inbox, 1 << 30), RingReader::Taken::Some);
  }
}

TEST(ShmRing, CarriesEveryOddSizeUnchangedIntoBothPlacements) {
  for (const bool direct : {false, true}) {
    Ring ring;
    Recorder inbox(direct);
    std::vector<std::size_t> sizes;
    for (std::size_t bytes = 0; bytes <= 300; ++bytes) sizes.push_back(bytes);
    for (std::size_t bytes = 301; bytes <= 200000; bytes += 787) sizes.push_back(bytes);
    for (std::size_t near : {kChunkBytes - 1, kChunkBytes, kChunkBytes + 1, 4 * kChunkBytes}) {
      sizes.push_back(near);
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const Frame frame = pattern(sizes[i], i);

      carry(ring, frame, inbox);
      while (ring.reader.poll(inbox, 1) == RingReader::Taken::Some) {
      }

      ASSERT_EQ(inbox.frames.size(), 1U) << sizes[i];
      ASSERT_EQ(inbox.frames.back(), frame) << sizes[i];
      inbox.frames.clear();
    }
  }
}

// Which headers are written short follows from what differs: each field, alone and in turn with
// frames of another context, must come out as it went in.
TEST(ShmRing, EveryFieldOfAHeaderArrivesWhetherItIsWrittenShortOrWhole) {
  wire::Header plain;
  plain.type = wire::Type::Tagged;
  plain.context = 7;
  plain.sequence = ~std::uint64_t{0};
  plain.fingerprint = ~std::uint64_t{1};
  std::vector<wire::Header> headers(8, plain);
  headers[1].flags = 0xff;
  headers[2].index = 1;
  headers[3].source = 1;
  headers[4].check = 1;
  headers[5].address = std::uint64_t{1} << 63;
  headers[6].context = 8;
  headers[7].type = wire::Type::Data;
  for (const std::size_t bytes : {0, 8, 40, 41, 72, 73, 104, 105, 4000}) {
    Ring ring;
    Last inbox;
    const Frame content = pattern(bytes, 1);
    for (int round = 0; round < 200; ++round) {
      wire::Header header = headers[round * 5 % headers.size()];
      header.length = bytes;
      Outgoing out{header, content.payload.data(), 0};
      ASSERT_EQ(ring.writer.send(out), Progress::Done);
      ASSERT_EQ(out.sent, sizeof header + bytes);
      ASSERT_EQ(ring.reader.poll(inbox, 1), RingReader::Taken::Some);
      ASSERT_EQ(std::memcmp(&inbox.last, &header, sizeof header), 0) << bytes << " " << round;
      ASSERT_EQ(inbox.payload, content.payload) << bytes << " " << round;
    }
  }
}

TEST(ShmRing, HandsPartsOnInMultiplesOfSixteenBytesExceptTheLast) {
  Ring ring;
  Recorder inbox(false);

  carry(ring, pattern(3 * kChunkBytes + 5, 1), inbox);
  while (ring.reader.poll(inbox, 1 << 30) == RingReader::Taken::Some) {
  }

  ASSERT_EQ(inbox.pieces.size(), 4U);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(inbox.pieces[i] % 16, 0U);
  EXPECT_EQ(inbox.pieces[3], 5U);
}

TEST(ShmRing, HoldsTheWriterUpWhileTheReaderIsSlowAndKeepsTheOrder) {
  Ring ring;
  Recorder inbox(false);
  std::size_t sent = 0;
  for (;;) {
    const Frame frame = pattern(40, sent);
    Outgoing out = frame.outgoing();
    if (ring.writer.send(out) == Progress::Again) {
      EXPECT_EQ(out.sent, 0U);
      break;
    }
    ++sent;
  }

  EXPECT_EQ(sent, kCells);
  EXPECT_FALSE(ring.writer.moved());
  ASSERT_EQ(ring.reader.poll(inbox, 1), RingReader::Taken::Some);
  EXPECT_TRUE(ring.writer.moved());
  carry(ring, pattern(40, sent), inbox);
  while (ring.reader.poll(inbox, 1 << 30) == RingReader::Taken::Some) {
  }

  ASSERT_EQ(inbox.frames.size(), sent + 1);
  for (std::size_t i = 0; i <= sent; ++i) ASSERT_EQ(inbox.frames[i], pattern(40, i));
}

TEST(ShmRing, OwesMuchOnceAQuarterOfTheCellsOrOfTheAreaHasComeFree) {
  for (const std::size_t bytes : {std::size_t{8}, kChunkBytes}) {
    Ring ring;
    Recorder inbox(false);
    const std::size_t quarter = bytes == 8 ? kCells / 4 : kMinAreaBytes / kChunkBytes / 4;
    for (int round = 0; round < 2; ++round) {
      for (std::size_t i = 0; i < quarter; ++i) {
        EXPECT_FALSE(ring.reader.owes_much()) << bytes << " " << i;
        carry(ring, pattern(bytes, i), inbox);
        ASSERT_EQ(ring.reader.poll(inbox, 1), RingReader::Taken::Some);
      }
      EXPECT_TRUE(ring.reader.owes_much()) << bytes;
      ring.reader.told();
    }
  }
}

TEST(ShmRing, PollStopsNearItsBudget) {
  Ring ring;
  Recorder inbox(false);
  for (std::size_t i = 0; i < 10; ++i) carry(ring, pattern(8, i), inbox);

  ASSERT_EQ(ring.reader.poll(inbox, 3 * (8 + sizeof(wire::Header))), RingReader::Taken::Some);

  EXPECT_EQ(inbox.frames.size(), 3U);
}

TEST(ShmRing, ADiscardedFrameTouchesItsDestinationNoMoreButStillEnds) {
  for (const bool direct : {false, true}) {
    Ring ring;
    Recorder inbox(direct);
    carry(ring, pattern(2 * kChunkBytes, 1), inbox);
    ASSERT_EQ(ring.reader.poll(inbox, 1), RingReader::Taken::Some);

    ring.reader.discard();
    ASSERT_EQ(ring.reader.poll(inbox, 1), RingReader::Taken::Some);
    carry(ring, pattern(2 * kChunkBytes, 2), inbox);
    ASSERT_EQ(ring.reader.poll(inbox, 1 << 30), RingReader::Taken::Some);

    ASSERT_EQ(inbox.frames.size(), 2U);
    const auto& cut = inbox.frames[0].payload;
    EXPECT_TRUE(std::all_of(cut.begin() + kChunkBytes, cut.end(),
                            [](std::byte each) { return each == std::byte{0}; }));
    EXPECT_EQ(inbox.frames[1], pattern(2 * kChunkBytes, 2));
  }
}

TEST(ShmRing, TwoThreadsStreamMixedSizesWithoutLossOrRace) {
  constexpr std::size_t kFrames = 20000;
  const auto size_of = [](std::size_t i) { return i % 97 == 0 ? i * 7 % 70001 : i % 150; };
  Ring ring;
  std::thread writer([&] {
    for (std::size_t i = 0; i < kFrames; ++i) {
      const Frame frame = pattern(size_of(i), i);
      Outgoing out = frame.outgoing();
      while (ring.writer.send(out) == Progress::Again) std::this_thread::yield();
    }
  });

  Recorder inbox(false);
  std::size_t seen = 0;
  std::size_t wrong = 0;
  while (seen < kFrames) {
    if (ring.reader.poll(inbox, 1 << 16) == RingReader::Taken::Nothing) std::this_thread::yield();
    for (const Frame& frame : inbox.frames) wrong += frame != pattern(size_of(seen), seen), ++seen;
    inbox.frames.clear();
  }
  writer.join();

  EXPECT_EQ(wrong, 0U);
}

// One damaged word each: the reader must say Bad, and never read outside the ring.
class ShmRingDamaged : public testing::Test {
 protected:
  void put(std::size_t offset, std::uint64_t value) {
    std::memcpy(ring.cell(0) + offset, &value, sizeof value);
  }
  RingReader::Taken poll() { return ring.reader.poll(inbox, 1 << 30); }

  static constexpr std::size_t kLengthAt = 8 + offsetof(wire::Header, length);
  Ring ring;
  Recorder inbox{false};
};

TEST_F(ShmRingDamaged, InlineLengthBeyondTheCell) {
  Frame frame = pattern(8, 0);
  Outgoing out = frame.outgoing();
  out.header.context = 1;  // so that it is written whole
  ASSERT_EQ(ring.writer.send(out), Progress::Done);
  put(kLengthAt, kInlineBytes + 1);

  EXPECT_EQ(poll(), RingReader::Taken::Bad);
  EXPECT_NE(ring.reader.fault().find("73"), std::string::npos);
}

TEST_F(ShmRingDamaged, ShortLengthBeyondTheCell) {
  carry(ring, pattern(8, 0), inbox);
  ring.cell(0)[3] = std::byte{kShortBytes + 1};

  EXPECT_EQ(poll(), RingReader::Taken::Bad);
  EXPECT_NE(ring.reader.fault().find("105"), std::string::npos);
}

TEST_F(ShmRingDamaged, BlockTooShortForOne) {
  carry(ring, pattern(1000, 0), inbox);
  put(kLengthAt, 0);

  EXPECT_EQ(poll(), RingReader::Taken::Bad);
}

TEST_F(ShmRingDamaged, HugeLengthIsOnlyACountOfParts) {
  carry(ring, pattern(1000, 0), inbox);
  put(kLengthAt, ~std::uint32_t{0});

  EXPECT_EQ(poll(), RingReader::Taken::Some);
  EXPECT_TRUE(ring.reader.inside_frame());
}

TEST_F(ShmRingDamaged, UnknownKindOrAPartWithoutAFrame) {
  for (const std::uint64_t kind : {0, 3, 5, 255}) {
    Ring fresh;
    const std::uint64_t control = std::uint64_t{1} << 32 | kind;
    std::memcpy(fresh.cell(0), &control, sizeof control);

    EXPECT_EQ(fresh.reader.poll(inbox, 1), RingReader::Taken::Bad) << kind;
  }
}

TEST_F(ShmRingDamaged, AFrameInsideAFrame) {
  carry(ring, pattern(kChunkBytes + 1, 0), inbox);
  const std::uint64_t control = std::uint64_t{1} << 32 | 1;
  std::memcpy(ring.cell(1), &control, sizeof control);

  EXPECT_EQ(poll(), RingReader::Taken::Bad);
}

TEST_F(ShmRingDamaged, ReaderCountersThatRunAheadBreakTheWriter) {
  auto* head = reinterpret_cast<Head*>(ring.memory());
  head->cells_read = 5000;
  const Frame frame = pattern(8, 0);
  Progress progress = Progress::Done;
  for (std::size_t i = 0; i <= kCells && progress == Progress::Done; ++i) {
    Outgoing out = frame.outgoing();
    progress = ring.writer.send(out);
  }

  EXPECT_EQ(progress, Progress::Broken);
}

TEST(ShmRingSize, IsAPowerOfTwoWithinItsLimits) {
  EXPECT_EQ(area_for(0), kMinAreaBytes);
  EXPECT_EQ(area_for(1'000'000), std::size_t{1} << 20);
  EXPECT_EQ(area_for(~std::uint64_t{0}), kMaxAreaBytes);
  EXPECT_FALSE(valid_area(kMinAreaBytes + 64));
  EXPECT_FALSE(valid_area(2 * std::uint64_t{kMaxAreaBytes}));
}

}  // namespace
}  // namespace hccomm::transport::shm
