// SPDX-License-Identifier: Apache-2.0
//
// What is special to transport/inproc: whom it refuses, a full queue, and who hears of a stop.
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#include "support/inbox.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {
namespace {

using test::Frame;
using test::pattern;
using test::Recorder;

// One rank: its transport and the links it was handed.
class Rank final : public Acceptor {
 public:
  explicit Rank(char id) {
    card.uuid = std::string(16, id);
    card.pid = getpid();
    transport = inproc_transport().open({std::string(16, 'j'), "", card.uuid}, *this).take();
    card.addresses = {{"inproc", transport->address()}};
  }
  bool reserve(const std::string&) override { return true; }
  void accepted(Accepted peer) override { links.push_back(std::move(peer.link)); }
  void abandoned(const std::string&) override {}

  Card card;
  std::vector<std::unique_ptr<Link>> links;
  std::unique_ptr<Transport> transport;
};

class Inproc : public testing::Test {
 protected:
  void SetUp() override {
    dialed = a.transport->connect(b.card, Deadline::after(Seconds(5))).take();
    taken = std::move(b.links.at(0));
  }
  Rank a{'a'}, b{'b'};
  std::unique_ptr<Link> dialed, taken;
};

TEST_F(Inproc, RefusesOtherProcessesAndRanksThatDoNotListenHere) {
  Card elsewhere = b.card;
  elsewhere.pid = 1;
  Card unknown = b.card;
  unknown.uuid = std::string(16, 'x');

  EXPECT_EQ(a.transport->refuses(a.card, b.card), "");
  EXPECT_NE(a.transport->refuses(a.card, elsewhere).find("process 1"), std::string::npos);
  EXPECT_NE(a.transport->refuses(a.card, unknown), "");
  b.transport->stop();
  EXPECT_NE(a.transport->refuses(a.card, b.card), "");
}

TEST_F(Inproc, AFullQueueHoldsTheSenderUpUntilTheReaderHasRead) {
  const Frame frame = pattern(dialed->frame_bytes(), 1);
  Outgoing out = frame.outgoing();
  std::size_t sent = 0;
  while (dialed->send(out) == Progress::Done) out = frame.outgoing(), ++sent;
  ASSERT_TRUE(dialed->sleeping(true));

  Recorder inbox(false);
  while (taken->pending()) ASSERT_TRUE(taken->poll(inbox, 1 << 30));

  pollfd entry = {dialed->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 1) << "the sender waits for room and must be woken";
  dialed->sleeping(false);
  EXPECT_EQ(dialed->send(out), Progress::Done);
  EXPECT_EQ(inbox.frames.size(), sent);
  EXPECT_GE(sent, 2U);
}

TEST_F(Inproc, WhatWasTakenBackIsNoLongerRead) {
  const Frame frame = pattern(64, 3);
  std::vector<std::byte> copy(64);
  const auto address = reinterpret_cast<std::uintptr_t>(frame.payload.data());

  dialed->withdraw(7);

  EXPECT_EQ(taken->pull(7, copy.data(), address, copy.size()).code(), Code::Aborted);
  EXPECT_EQ(copy, std::vector<std::byte>(64));
  EXPECT_TRUE(taken->pull(8, copy.data(), address, copy.size()).ok());
  EXPECT_EQ(copy, frame.payload);

  dialed.reset();

  EXPECT_EQ(taken->pull(8, copy.data(), address, copy.size()).code(), Code::PeerLost);
}

TEST_F(Inproc, TwoThreadsStreamAndPullWithoutARace) {
  constexpr std::uint64_t kFrames = 2000;
  std::vector<std::vector<std::byte>> sources;
  for (std::uint64_t i = 0; i < kFrames; ++i) sources.push_back(pattern(64, i).payload);
  std::thread sender([&] {
    for (std::uint64_t i = 0; i < kFrames; ++i) {
      Outgoing out;
      out.header.sequence = i;
      out.header.address = reinterpret_cast<std::uintptr_t>(sources[i].data());
      while (dialed->send(out) == Progress::Again) std::this_thread::yield();
      dialed->flush();
    }
  });

  struct Puller final : Inbox {
    explicit Puller(Link& from) : link(from) {}
    void deliver(const wire::Header& header, const std::byte*) override {
      std::vector<std::byte> copy(64);
      right += link.pull(7, copy.data(), header.address, copy.size()).ok() &&
               copy == pattern(64, header.sequence).payload;
      ++seen;
    }
    Placement begin(const wire::Header&) override { return {}; }
    void consume(const std::byte*, std::size_t) override {}
    void end() override {}
    Link& link;
    std::uint64_t right = 0, seen = 0;
  } inbox(*taken);
  while (inbox.seen < kFrames && taken->poll(inbox, 1 << 16)) std::this_thread::yield();
  sender.join();

  EXPECT_EQ(inbox.right, kFrames);
}

}  // namespace
}  // namespace hccomm::transport
