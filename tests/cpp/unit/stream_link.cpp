// SPDX-License-Identifier: Apache-2.0
#include "transport/stream_link.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include "support/link_pair.hpp"
#include "support/tls_pair.hpp"

namespace hccomm::transport {
namespace {

using test::Collector;
using test::header_of;
using test::matches;
using test::payload_of;
using test::poll_until;

// A link, and the bare other end of its socket.
struct HalfPair {
  HalfPair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    link = std::make_unique<StreamLink>(UniqueFd(ends[0]), "stream to the test");
    other.reset(ends[1]);
  }
  void write(const void* data, std::size_t bytes) const {
    EXPECT_EQ(::send(other.get(), data, bytes, MSG_NOSIGNAL), static_cast<ssize_t>(bytes));
  }
  std::unique_ptr<StreamLink> link;
  UniqueFd other;
};

std::string frame(std::uint32_t index, std::size_t bytes) {
  const wire::Header header = header_of(index, bytes);
  const auto payload = payload_of(index, bytes);
  std::string out(reinterpret_cast<const char*>(&header), sizeof header);
  out.append(reinterpret_cast<const char*>(payload.data()), payload.size());
  return out;
}

TEST(StreamLink, AFrameIsDeliveredOnceItIsWhole) {
  HalfPair pair;
  Collector inbox;
  const std::string bytes = frame(7, 5);

  for (const char each : bytes) {
    EXPECT_TRUE(inbox.messages.empty());
    pair.write(&each, 1);
    ASSERT_TRUE(pair.link->pending());
    ASSERT_TRUE(pair.link->poll(inbox, 1 << 20));
  }

  ASSERT_EQ(inbox.messages.size(), 1u);
  EXPECT_EQ(inbox.messages[0].header.index, 7u);
  EXPECT_TRUE(matches(inbox.messages[0].payload, 7));
  EXPECT_FALSE(pair.link->pending());
}

TEST(StreamLink, PayloadsAreAlignedWhateverWentBefore) {
  struct Aligned final : Inbox {
    void deliver(const wire::Header&, const std::byte* payload) override {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(payload) % 16, 0u);
      ++frames;
    }
    Placement begin(const wire::Header&) override { return {}; }
    void consume(const std::byte* piece, std::size_t) override {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece) % 16, 0u);
    }
    void end() override { ++frames; }
    int frames = 0;
  } inbox;
  HalfPair pair;
  std::string bytes;
  for (const std::size_t size : {3, 0, 17, 1, 100'001, 64}) bytes += frame(1, size);

  std::thread writer([&] { pair.write(bytes.data(), bytes.size()); });
  const bool all = poll_until(*pair.link, inbox, [&] { return inbox.frames == 6; });
  writer.join();

  EXPECT_TRUE(all);
}

TEST(StreamLink, WhatArrivedBeforeTheEndIsHandedOverFirst) {
  HalfPair pair;
  Collector inbox;
  const std::string bytes = frame(1, 8) + frame(2, 8);
  pair.write(bytes.data(), bytes.size());
  pair.other.reset();

  EXPECT_FALSE(poll_until(*pair.link, inbox, [] { return false; }));

  EXPECT_EQ(inbox.messages.size(), 2u);
  EXPECT_EQ(pair.link->status().code(), Code::PeerLost);
  EXPECT_NE(pair.link->status().text().find("stream to the test"), std::string::npos);
  wire::Header header = header_of(0, 0);
  Outgoing late{header};
  EXPECT_EQ(pair.link->send(late), Progress::Broken);
}

TEST(StreamLink, ABrokenSendShowsInTheNextPoll) {
  HalfPair pair;
  Collector inbox;
  shutdown(pair.other.get(), SHUT_RD);  // the peer reads no more, and says nothing
  Outgoing out{header_of(0, 0)};

  EXPECT_EQ(pair.link->send(out), Progress::Broken);

  EXPECT_TRUE(pair.link->pending());
  EXPECT_FALSE(pair.link->poll(inbox, 1 << 20));
  EXPECT_EQ(pair.link->status().code(), Code::PeerLost);
}

TEST(StreamLink, GarbageBreaksTheLinkAndIsNamed) {
  HalfPair pair;
  Collector inbox;
  const std::string bytes = frame(1, 8) + std::string(64, '\xee');
  pair.write(bytes.data(), bytes.size());

  EXPECT_FALSE(poll_until(*pair.link, inbox, [] { return false; }));

  EXPECT_EQ(inbox.messages.size(), 1u);
  EXPECT_EQ(pair.link->status().code(), Code::Integrity);
  EXPECT_NE(pair.link->status().text().find("unknown type 238"), std::string::npos);
}

TEST(StreamLink, AnImpossibleLengthBreaksTheLink) {
  HalfPair pair;
  Collector inbox;
  const wire::Header header = header_of(0, std::size_t{1} << 31);
  pair.write(&header, sizeof header);

  EXPECT_FALSE(poll_until(*pair.link, inbox, [] { return false; }));

  EXPECT_EQ(pair.link->status().code(), Code::Integrity);
  EXPECT_EQ(inbox.parted, 0u);
}

TEST(StreamLink, AFullSocketAnswersAgainAndKeepsItsPlace) {
  HalfPair pair;
  StreamLink receiver(std::move(pair.other), "the other end");
  Collector inbox, unused;
  const auto payload = payload_of(3, 8 << 20);
  Outgoing out{header_of(3, payload.size()), payload.data()};

  EXPECT_EQ(pair.link->send(out), Progress::Again);
  EXPECT_TRUE(pair.link->wants_write());
  int partial = 0;
  while (pair.link->send(out) == Progress::Again) {
    ASSERT_TRUE(!receiver.pending() || receiver.poll(inbox, 64 << 10));
    ASSERT_LT(++partial, 1'000'000);
  }

  EXPECT_FALSE(pair.link->wants_write());
  EXPECT_EQ(out.sent, sizeof out.header + payload.size());
  ASSERT_TRUE(
      poll_until(receiver, inbox, [&] { return inbox.messages.size() == 1 && !inbox.open(); }));
  EXPECT_TRUE(matches(inbox.messages[0].payload, 3));
}

TEST(StreamLink, SleepingReportsWhatPendingHasReceived) {
  HalfPair pair;
  Collector inbox;
  EXPECT_TRUE(pair.link->sleeping(true));
  const std::string bytes = frame(1, 8);
  pair.write(bytes.data(), bytes.size());
  pollfd entry{pair.link->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 10'000), 1);
  EXPECT_TRUE(pair.link->sleeping(false));

  ASSERT_TRUE(pair.link->pending());

  EXPECT_FALSE(pair.link->sleeping(true));
  ASSERT_TRUE(pair.link->poll(inbox, 1 << 20));
  EXPECT_TRUE(pair.link->sleeping(true));
}

// 256 MiB through one buffer's worth of memory on either side; the receiver checks each piece.
class LongStream : public testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(LongStream, ArrivesInOrderAndWhole) {
  constexpr std::size_t kFrame = (512 << 10) + 48;  // crosses every page boundary
  constexpr std::uint32_t kFrames = 512;
  struct Checker final : Inbox {
    explicit Checker(bool direct_) : direct(direct_), landing(kFrame) {}
    void deliver(const wire::Header& header, const std::byte* payload) override {
      check(header.index, payload, header.length, 0);
      ++frames;
    }
    Placement begin(const wire::Header& header) override {
      index = header.index;
      offset = 0;
      return {direct ? landing.data() : nullptr};
    }
    void consume(const std::byte* piece, std::size_t bytes) override {
      check(index, piece, bytes, offset);
      offset += bytes;
    }
    void end() override {
      if (direct) check(index, landing.data(), kFrame, 0);
      ++frames;
    }
    void check(std::uint32_t found, const std::byte* data, std::size_t bytes, std::size_t at) {
      right = right && found == frames && std::memcmp(data, wanted.data() + at, bytes) == 0;
    }
    const bool direct;
    std::vector<std::byte> landing, wanted = payload_of(1, kFrame);
    std::uint32_t index = 0, frames = 0;
    std::size_t offset = 0;
    bool right = true;
  } checker(std::get<0>(GetParam()));
  HalfPair pair;
  const bool encrypted = std::get<1>(GetParam());
  const std::uint32_t frames = encrypted ? kFrames / 4 : kFrames;
  std::unique_ptr<StreamLink> sending;
  if (encrypted) {
    ASSERT_TRUE(tls_available().ok()) << tls_available().text();
    test::TlsPair tls;
    pair.link = std::move(tls.left);
    sending = std::move(tls.right);
  } else {
    sending = std::make_unique<StreamLink>(std::move(pair.other), "the sender");
  }
  StreamLink& sender = *sending;

  bool sent = true;
  std::thread thread([&] {
    Collector unused;
    const auto payload = payload_of(1, kFrame);
    for (std::uint32_t i = 0; i < frames && sent; ++i) {
      sent = test::send_all(sender, unused, header_of(i, kFrame), payload.data());
    }
  });
  const bool all = poll_until(*pair.link, checker, [&] { return checker.frames == frames; });
  if (!all) shutdown(pair.link->fd(), SHUT_RDWR);
  thread.join();

  EXPECT_TRUE(all && sent);
  EXPECT_TRUE(checker.right);
}

INSTANTIATE_TEST_SUITE_P(Ways, LongStream, testing::Combine(testing::Bool(), testing::Bool()),
                         [](const auto& each) {
                           return std::string(std::get<0>(each.param) ? "Direct" : "Pieces") +
                                  (std::get<1>(each.param) ? "Encrypted" : "");
                         });

}  // namespace
}  // namespace hccomm::transport
