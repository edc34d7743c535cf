// SPDX-License-Identifier: Apache-2.0
//
// What a connection's end means to the engine: the communicators that have it lose the rank, those
// made later get another connection, whichever of the two processes noticed what first.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "engine/engine.hpp"
#include "support/cluster.hpp"
#include "transport/stream_link.hpp"

namespace hccomm::test {

static plan::Call one_number() {
  plan::Call call;
  call.collective = plan::Collective::AllReduce;
  call.type = dtype::DType::I64;
  call.count = 1;
  call.in_place = true;
  return call;
}

static Status sum(Node& node, std::int64_t& value, double seconds = 20) {
  auto* data = reinterpret_cast<std::byte*>(&value);
  return node.engine().run(
      node.context(), {recipe_of(one_number(), node, "direct"), data, data, 1.0, Seconds(seconds)});
}

static void expect_sum_of_ones(Node& node) {
  std::int64_t value = 1;
  const Status status = sum(node, value);
  EXPECT_TRUE(status.ok()) << "rank " << node.rank() << ": " << status.text();
  EXPECT_EQ(value, node.size());
}

static bool is_data(const wire::Header& header) { return header.type == wire::Type::Data; }

class LinksOver : public testing::TestWithParam<const char*> {};

TEST_P(LinksOver, ACutLinkLosesTheRankAndTheNextGroupGetsAnother) {
  Cluster cluster(GetParam(), 3);
  cluster.run(expect_sum_of_ones);

  cluster[0].mischief().once(Deed::Cut, 0, is_data);
  cluster.run([](Node& node) {
    Status status;
    for (int round = 0; round < 3 && status.ok(); ++round) {  // who had all it needed goes on
      std::int64_t value = 1;
      status = sum(node, value);
    }
    EXPECT_EQ(status.code(), Code::PeerLost) << status.text();
  });

  cluster.meet_again(8);
  cluster.run(expect_sum_of_ones);
}

// Who drives runs callbacks, too. What comes meanwhile lies unread, which is not its sender's
// silence: beats that said so would make the sender take the busy rank for lost.
TEST_P(LinksOver, ARankThatIsBusyInACallbackIsNotLost) {
  engine::Settings settings;
  settings.silence = Seconds(1);
  Cluster cluster(GetParam(), 2, settings);
  cluster.run(expect_sum_of_ones);

  cluster.run([](Node& node) {
    std::int64_t words[3] = {};
    const auto start = [&](engine::OperationKind kind, std::uint64_t tag) {
      auto* data = reinterpret_cast<std::byte*>(&words[tag]);
      return node.engine().start(
          node.context(), kind,
          {1 - node.rank(), tag, data, sizeof words[tag], 0, Seconds(20), engine::Follow::Soon});
    };
    const auto receives = engine::OperationKind::Recv, sends = engine::OperationKind::Send;
    const bool busy = node.rank() == 0;
    std::vector<engine::Operation*> operations = {start(busy ? receives : sends, 0),
                                                  start(busy ? receives : sends, 1)};
    if (busy) {
      node.engine().on_done(
          *operations[0],
          [](void*, int) { std::this_thread::sleep_for(std::chrono::milliseconds(2500)); },
          nullptr);
      EXPECT_TRUE(node.engine().wait(*operations[1], Deadline::after(Seconds(20))).ok());
    }
    operations.push_back(start(busy ? sends : receives, 2));
    for (engine::Operation* each : operations) {
      const Status status = node.engine().wait(*each, Deadline::after(Seconds(20)));
      EXPECT_TRUE(status.ok()) << "rank " << node.rank() << ": " << status.text();
      node.engine().release(*each);
    }
  });
}

// No thread, no memory: the rank that lacks it says so, nobody is lost, and later it may go well.
TEST_P(LinksOver, AProcessThatCannotEvenBeginToConnectNamesItself) {
  Cluster cluster(GetParam(), 2);
  cluster.run([](Node& node) { node.refuse_to_dial(true); });
  cluster.run([](Node& node) {
    std::int64_t value = 1;
    const Status status = sum(node, value);
    EXPECT_EQ(status.code(), Code::System) << status.text();
    EXPECT_NE(status.text().find("no thread can be started"), std::string::npos) << status.text();
  });

  cluster.run([](Node& node) { node.refuse_to_dial(false); });
  cluster.meet_again(8);
  cluster.run(expect_sum_of_ones);
}

// What rank 0 says of its link to rank 1, once it begins so; else what it said at last.
static std::string words_of_the_link(Cluster& cluster, const std::string& beginning) {
  std::string words;
  const auto begins = [&] {
    words = cluster[0].engine().describe(cluster[0].context(), 1);
    return words.starts_with(beginning);
  };
  const Deadline deadline = Deadline::after(Seconds(20));
  while (!begins() && !deadline.passed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return words;
}

TEST_P(LinksOver, ARankThatHasLeftIsDescribedAsSuch) {
  Cluster cluster(GetParam(), 2);
  EXPECT_EQ(cluster[0].engine().describe(cluster[0].context(), 1), "not connected yet");
  cluster.run(expect_sum_of_ones);

  cluster[1].leave();

  const std::string wanted = "left: it has closed world";
  EXPECT_EQ(words_of_the_link(cluster, wanted), wanted);
  EXPECT_EQ(cluster[1].engine().describe(cluster[1].context(), 0), "closed");
  cluster[0].leave();
  cluster.meet(8);
}

TEST_P(LinksOver, ARankThatIsLostIsDescribedWithTheReason) {
  Cluster cluster(GetParam(), 2);
  cluster.run(expect_sum_of_ones);

  cluster[1].mischief().once(Deed::Cut, 0, is_data);
  std::int64_t value = 1;
  EXPECT_EQ(sum(cluster[1], value).code(), Code::PeerLost);

  const std::string words = words_of_the_link(cluster, "lost: ");
  EXPECT_TRUE(words.starts_with("lost: ")) << words;
  EXPECT_GT(words.size(), 10u) << words;
}

// Rank 0 has dropped its end and begins anew; rank 1 still holds the old one and has not looked.
TEST_P(LinksOver, AnEndThatOnlyOneSideKnowsOfDoesNotKeepTheOtherOut) {
  Cluster cluster(GetParam(), 2);
  cluster.run(expect_sum_of_ones);
  std::vector<transport::Card> cards{cluster[0].card(), cluster[1].card()};

  cluster[0].mischief().once(Deed::Cut, 0, is_data);
  std::int64_t value = 1;
  EXPECT_EQ(sum(cluster[0], value).code(), Code::PeerLost);
  cluster[0].leave();
  cluster[0].meet(cards, 9);
  std::thread early([&] { expect_sum_of_ones(cluster[0]); });
  cluster[1].leave();
  cluster[1].meet(cards, 9);
  expect_sum_of_ones(cluster[1]);
  early.join();
}

// What a descriptor stands for, "socket:[123]"; "" where it is closed. Asked by its name: to
// fstat() it here while another thread closes it is a race to the thread sanitizer.
static std::string named(int fd) {
  std::error_code closed;
  return std::filesystem::read_symlink(text("/proc/self/fd/", fd), closed).string();
}

// It has met us, we have never met it (our init failed, say), and it dies.
TEST_P(LinksOver, TheEndOfAPeerWeNeverMetIsNoticedAndReleased) {
  Cluster cluster(GetParam(), 2);
  cluster.run(expect_sum_of_ones);
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  UniqueFd theirs(ends[1]);
  const std::string ours = named(ends[0]);

  ASSERT_TRUE(cluster[0].engine().reserve("a stranger's id!"));
  cluster[0].engine().accepted("a stranger's id!",
                               std::make_unique<transport::StreamLink>(UniqueFd(ends[0]), "test"));
  theirs.reset();

  const Deadline deadline = Deadline::after(Seconds(30));
  while (named(ends[0]) == ours && !deadline.passed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_NE(named(ends[0]), ours);
}

// A send runs out of time, its caller uses the buffer again, and only then somebody receives.
TEST_P(LinksOver, AMessageThatWasGivenUpIsNeverReceivedWithOtherBytes) {
  Cluster cluster(GetParam(), 2);
  cluster.run(expect_sum_of_ones);
  constexpr std::uint64_t kBytes = 1 << 20;
  std::vector<char> sent(kBytes, 1), got(kBytes, 0);
  std::atomic<bool> given_up{false};

  cluster.run([&](Node& node) {
    engine::Parcel parcel{1 - node.rank(), 7, nullptr, kBytes, 0, Seconds(0.1)};
    if (node.rank() == 0) {
      parcel.data = reinterpret_cast<std::byte*>(sent.data());
      engine::Operation* op =
          node.engine().start(node.context(), engine::OperationKind::Send, parcel);
      EXPECT_EQ(node.engine().wait(*op, Deadline::never()).code(), Code::Timeout);
      std::ranges::fill(sent, 2);
      given_up = true;
      node.engine().release(*op);
      return;
    }
    while (!given_up) std::this_thread::yield();
    parcel.timeout = Seconds(3);
    parcel.data = reinterpret_cast<std::byte*>(got.data());
    engine::Operation* op =
        node.engine().start(node.context(), engine::OperationKind::Recv, parcel);
    EXPECT_FALSE(node.engine().wait(*op, Deadline::never()).ok());
    node.engine().release(*op);
  });
}

// It broadcasts, leaves and ends before anybody has asked.
TEST_P(LinksOver, WhatARankHadSentBeforeItEndedIsThere) {
  std::array<std::unique_ptr<Node>, 2> nodes;
  std::vector<transport::Card> cards;
  for (int rank = 0; rank < 2; ++rank) {
    nodes[rank] = std::make_unique<Node>(GetParam(), rank, 2);
    cards.push_back(nodes[rank]->card());
  }
  for (auto& node : nodes) node->meet(cards);
  std::thread other([&] { expect_sum_of_ones(*nodes[1]); });
  expect_sum_of_ones(*nodes[0]);
  other.join();
  plan::Call call = one_number();
  call.collective = plan::Collective::Broadcast;
  call.root = 1;
  const auto broadcast = [&](Node& node, std::int64_t& value) {
    auto* data = reinterpret_cast<std::byte*>(&value);
    return node.engine().run(node.context(),
                             {recipe_of(call, node, "direct"), data, data, 1.0, Seconds(20)});
  };

  for (std::int64_t value = 0; value < 100; ++value) {
    EXPECT_TRUE(broadcast(*nodes[1], value).ok());
  }
  nodes[1]->leave();
  nodes[1].reset();

  for (std::int64_t wanted = 0; wanted < 100; ++wanted) {
    std::int64_t value = -1;
    const Status status = broadcast(*nodes[0], value);
    ASSERT_TRUE(status.ok()) << wanted << ": " << status.text();
    EXPECT_EQ(value, wanted);
  }
  std::int64_t value = 1;
  EXPECT_EQ(sum(*nodes[0], value).code(), Code::PeerLost);
  nodes[0]->leave();
}

// It offers a large message, or its part of a collective, then closes and ends; only then somebody
// wants it.
TEST_P(LinksOver, WhatARankThatHasLeftHadOfferedIsLostWithIt) {
  for (const bool collective : {false, true}) {
    Cluster cluster(GetParam(), 2);
    cluster.run(expect_sum_of_ones);
    constexpr std::uint64_t kBytes = 1 << 20;
    std::vector<std::byte> sent(kBytes), got(kBytes);
    plan::Call call = one_number();
    call.collective = plan::Collective::Broadcast;
    call.count = kBytes / sizeof(std::int64_t);
    call.root = 1;
    const auto begin = [&](Node& node, std::vector<std::byte>& data) {
      const Seconds timeout(20);
      const auto kind =
          node.rank() == 1 ? engine::OperationKind::Send : engine::OperationKind::Recv;
      if (!collective) {
        return node.engine().start(node.context(), kind,
                                   {1 - node.rank(), 7, data.data(), kBytes, 0, timeout});
      }
      return node.engine().start(
          node.context(), {recipe_of(call, node, "direct"), data.data(), data.data(), 1.0, timeout},
          engine::Follow::Background);
    };

    engine::Operation* const offer = begin(cluster[1], sent);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    cluster[1].leave();
    cluster[1].engine().release(*offer);
    words_of_the_link(cluster, "left: it has closed world");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the link's end is noticed

    engine::Operation* const wanted = begin(cluster[0], got);
    const Status status = cluster[0].engine().wait(*wanted, Deadline::never());
    EXPECT_EQ(status.code(), Code::PeerLost) << collective << ": " << status.text();
    cluster[0].engine().release(*wanted);
    cluster[0].leave();
    cluster.meet(8);
  }
}

// The receiver's buffer cannot be written from outside, as some memory of devices cannot.
TEST(PlaceThatCannotBeWritten, EndsTheCallOnBothRanksWithTheRemedy) {
  Cluster cluster("shm", 2);
  cluster.run(expect_sum_of_ones);
  if (cluster[0].engine().describe(cluster[0].context(), 1) != "shm (single copy)") {
    GTEST_SKIP() << "process_vm_writev is refused here";
  }
  constexpr std::size_t kBytes = 512 << 10;
  void* closed = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(closed, MAP_FAILED);
  std::vector<std::byte> data(kBytes);
  plan::Call call;
  call.collective = plan::Collective::Broadcast;
  call.type = dtype::DType::I64;
  call.count = kBytes / 8;
  call.in_place = true;
  std::atomic<bool> expected{false};

  cluster.run([&](Node& node) {
    while (node.rank() == 0 && !expected) std::this_thread::yield();
    auto* buffer = node.rank() == 0 ? data.data() : static_cast<std::byte*>(closed);
    engine::Operation* op = node.engine().start(
        node.context(), {recipe_of(call, node, "direct"), buffer, buffer, 1.0, Seconds(60)},
        engine::Follow::Soon);
    expected = true;
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(30)));
    EXPECT_NE(status.text().find("HCCOMM_CMA=off"), std::string::npos)
        << "rank " << node.rank() << ": " << status.text();
    node.engine().release(*op);
  });
  munmap(closed, kBytes);
}

TEST_P(LinksOver, ManyGroupsOneAfterTheOtherKeepTheirLink) {
  Cluster cluster(GetParam(), 2);
  for (std::uint64_t id = 20; id < 60; ++id) {
    cluster.run(expect_sum_of_ones);
    cluster.meet_again(id);
  }
  cluster.run(expect_sum_of_ones);
}

// ---- HCCOMM_INTEGRITY: no harm to a frame becomes a wrong result ------------------------------

// Rank 0 fails while its link is full, and closes: the reason still reaches rank 1, and at once.
TEST(FullLink, IsEmptiedWhileItsGroupCloses) {
  Cluster cluster("tcp", 2);
  cluster.run(expect_sum_of_ones);
  std::vector<std::byte> data(60'000);
  const auto message = [&](int peer, std::uint64_t tag) {
    return engine::Parcel{peer, tag, data.data(), data.size(), 0, Seconds(30)};
  };
  std::vector<engine::Operation*> sends;
  for (bool full = false; !full && sends.size() < 10'000;) {
    sends.push_back(cluster[0].engine().start(cluster[0].context(), engine::OperationKind::Send,
                                              message(1, 5)));
    full = !sends.back()->done();
  }
  ASSERT_FALSE(sends.back()->done()) << "the link never filled";

  cluster[0].engine().poison(cluster[0].context(), Status(Code::Aborted, "the test", 0), true);
  std::thread reads([&] {
    engine::Operation* op =
        cluster[1].engine().start(cluster[1].context(), engine::OperationKind::Recv, message(0, 6));
    EXPECT_EQ(cluster[1].engine().wait(*op, Deadline::after(Seconds(30))).code(), Code::Aborted);
    cluster[1].engine().release(*op);
  });
  EXPECT_TRUE(cluster[0].engine().quiesce(cluster[0].context(), Deadline::after(Seconds(20))));

  reads.join();
  for (engine::Operation* each : sends) cluster[0].engine().release(*each);
}

class SealedOver : public testing::TestWithParam<const char*> {
 protected:
  // Sums `count` ones on three ranks until somebody fails; nobody may be given a wrong sum.
  static void expect_integrity(Deed deed, std::uint64_t count, int frame) {
    Cluster cluster(GetParam(), 3);
    cluster.run(expect_sum_of_ones);
    cluster[1].mischief().once(deed, frame, is_data);

    cluster.run([&](Node& node) {
      plan::Call call = one_number();
      call.count = count;
      const auto recipe = recipe_of(call, node, "ring", 256 << 10);
      Status status;
      for (int round = 0; round < 50 && status.ok(); ++round) {
        std::vector<std::int64_t> data(count, 1);
        auto* at = reinterpret_cast<std::byte*>(data.data());
        status = node.engine().run(node.context(), {recipe, at, at, 1.0, Seconds(20)});
        if (status.ok()) {
          ASSERT_EQ(data, std::vector<std::int64_t>(count, 3));
        }
      }
      EXPECT_EQ(status.code(), Code::Integrity) << status.text();
      EXPECT_NE(status.text().find("rank 1"), std::string::npos) << status.text();
    });
  }
};

TEST_P(SealedOver, AFlippedBitOfASmallMessageIsNamed) { expect_integrity(Deed::FlipPayload, 3, 2); }
// Those that leave nothing to copies between memories.
class SealedWhole : public SealedOver {};
TEST_P(SealedWhole, AFlippedBitOfALargeMessageIsNamed) {
  expect_integrity(Deed::FlipPayload, 300'000, 3);
}
TEST_P(SealedOver, AFlippedBitOfAHeaderIsNamed) { expect_integrity(Deed::FlipHeader, 1000, 1); }
TEST_P(SealedOver, ALostFrameIsNamed) { expect_integrity(Deed::Drop, 1000, 1); }
TEST_P(SealedOver, ARepeatedFrameIsNamed) { expect_integrity(Deed::Repeat, 1000, 1); }
TEST_P(SealedOver, AnOvertakenFrameIsNamed) { expect_integrity(Deed::Swap, 1000, 1); }

TEST_P(SealedOver, LateFramesAreNoHarm) {
  Cluster cluster(GetParam(), 3);
  for (int rank = 0; rank < 3; ++rank) {
    cluster[rank].mischief().on_send([n = rank](const wire::Header&) mutable {
      return ++n % 3 == 0 ? Deed::Delay : Deed::Pass;
    });
  }
  for (int round = 0; round < 4; ++round) cluster.run(expect_sum_of_ones);
}

INSTANTIATE_TEST_SUITE_P(Transports, SealedOver,
                         testing::Values("sealed-faulty-inproc", "sealed-faulty-tcp",
                                         "sealed-faulty-shm"),
                         [](const auto& each) { return std::string(each.param).substr(14); });
INSTANTIATE_TEST_SUITE_P(Frames, SealedOver,
                         testing::Values("framed-faulty-inproc", "framed-faulty-shm"),
                         [](const auto& each) { return std::string(each.param).substr(14); });
INSTANTIATE_TEST_SUITE_P(Transports, SealedWhole,
                         testing::Values("sealed-faulty-inproc", "sealed-faulty-tcp",
                                         "framed-faulty-tcp", "sealed-faulty-shm"),
                         [](const auto& each) {
                           std::string name = each.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

INSTANTIATE_TEST_SUITE_P(Transports, LinksOver,
                         testing::Values("faulty-inproc", "faulty-tcp", "faulty-shm"),
                         [](const auto& each) { return std::string(each.param).substr(7); });

}  // namespace hccomm::test
