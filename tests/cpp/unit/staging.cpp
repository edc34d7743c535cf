// SPDX-License-Identifier: Apache-2.0
//
// Device buffers in the engine: every collective and message gives what it gives on host memory,
// whichever ranks sit on a device.
#include "engine/staging.hpp"

#include <gtest/gtest.h>

#include "support/staged.hpp"

namespace hccomm::test {

// The v-form of a call: parts of unequal length, one empty, with gaps between them.
static Call uneven(Call call, int ranks, int me) {
  call.count = 0;
  std::uint64_t at = 3;
  for (int rank = 0; rank < ranks; ++rank) {
    const bool mine = call.collective == Collective::AllToAll;
    call.counts.push_back(mine ? 100u * static_cast<unsigned>(me) + 7u * static_cast<unsigned>(rank)
                          : rank == 1 ? 0u
                                      : 900u + 13u * static_cast<unsigned>(rank));
    call.offsets.push_back(at);
    at += call.counts.back() + 5;
  }
  if (call.collective != Collective::AllToAll) return call;
  at = 1;
  for (int rank = 0; rank < ranks; ++rank) {
    call.recv_counts.push_back(100u * static_cast<unsigned>(rank) + 7u * static_cast<unsigned>(me));
    call.recv_offsets.push_back(at);
    at += call.recv_counts.back() + 2;
  }
  return call;
}

class StagingOver : public testing::TestWithParam<const char*> {};

static void expect_as_on_the_host(Cluster& cluster, const char* algorithm,
                                  const std::function<Call(int rank)>& call_of_rank, TestDevice& a,
                                  TestDevice& b) {
  std::vector<Outcome> expected(static_cast<std::size_t>(cluster.size()));
  cluster.run([&](Node& node) {
    expected[static_cast<std::size_t>(node.rank())] =
        perform(node, call_of_rank(node.rank()), algorithm, nullptr, nullptr);
  });
  for (const int mix : {0, 1}) {
    cluster.run([&](Node& node) {
      TestDevice* const here = of_rank(node.rank(), mix, a, b);
      TestDevice* const there = of_rank(node.rank() + 1 - mix, mix, a, b);
      const Outcome outcome = perform(node, call_of_rank(node.rank()), algorithm, here, there);
      const Outcome& wanted = expected[static_cast<std::size_t>(node.rank())];

      ASSERT_TRUE(outcome.status.ok()) << algorithm << outcome.status.text();
      ASSERT_EQ(outcome.input, wanted.input) << algorithm << " rank " << node.rank();
      ASSERT_EQ(outcome.output, wanted.output) << algorithm << " rank " << node.rank();
    });
  }
}

TEST_P(StagingOver, EveryAlgorithmGivesWhatItGivesOnTheHost) {
  TestDevice a("alpha"), b("beta");
  for (const int ranks : {1, 2, 4}) {
    Cluster cluster(GetParam(), ranks, small_pool(64 << 20));
    for (const algorithm::Algorithm& each : algorithm::algorithms()) {
      if (std::string_view(each.name) == "two_level") continue;  // wants hosts
      for (const bool in_place : {false, true}) {
        const Call call = call_of(each.collective, 5001, in_place, ranks - 1);
        if (in_place && each.collective == Collective::AllToAll) continue;
        expect_as_on_the_host(cluster, each.name, [&](int) { return call; }, a, b);
      }
    }
  }
}

TEST_P(StagingOver, PartsOfUnequalLengthLeaveTheGapsAlone) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 3, small_pool(64 << 20));
  for (const algorithm::Algorithm& each : algorithm::algorithms()) {
    const Collective all[] = {Collective::AllGather, Collective::ReduceScatter, Collective::Gather,
                              Collective::Scatter, Collective::AllToAll};
    if (std::ranges::find(all, each.collective) == std::end(all)) continue;
    plan::Group group;
    group.size = 3;
    const auto call = [&](int rank) { return uneven(call_of(each.collective, 0, false), 3, rank); };
    if (each.refuses != nullptr && each.refuses(call(0), group) != nullptr) continue;
    expect_as_on_the_host(cluster, each.name, call, a, b);
  }
}

TEST_P(StagingOver, AnyCountIsRight) {
  TestDevice a("alpha", 20e-6, 2e9), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(64 << 20, 64 << 10));
  for (const std::uint64_t count : {0ull, 1ull, 7ull, 1000ull, 300'001ull}) {
    for (const char* algorithm : {"direct", "ring"}) {
      const Call call = call_of(Collective::AllReduce, count, count % 2 == 0);
      expect_as_on_the_host(cluster, algorithm, [&](int) { return call; }, a, b);
    }
  }
}

TEST_P(StagingOver, AFullPoolIsNoObstacle) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(1 << 20));
  const Call call = call_of(Collective::AllReduce, 400'000, true);
  expect_as_on_the_host(cluster, "ring", [&](int) { return call; }, a, b);
}

TEST_P(StagingOver, CopiesThatAreCheckedGiveTheSame) {
  TestDevice a("alpha", 20e-6, 2e9), b("beta");
  for (const std::size_t pool : {std::size_t{1} << 20, std::size_t{64} << 20}) {
    for (const std::size_t segment : {0, 4096, 4 << 20}) {
      Cluster cluster(GetParam(), 2, checked(small_pool(pool, segment)));
      for (const std::uint64_t count : {1ull, 5001ull, 400'000ull}) {
        const Call call = call_of(Collective::AllReduce, count, count % 2 == 0);
        expect_as_on_the_host(cluster, "ring", [&](int) { return call; }, a, b);
      }
    }
  }
}

TEST_P(StagingOver, MemoryThatCannotBePinnedIsNoObstacle) {
  TestDevice a("alpha");
  Cluster cluster(GetParam(), 2, small_pool(64 << 20));
  a.pins_left = 1;  // what it takes to open the device

  cluster.run([&](Node& node) {
    const Call call = call_of(Collective::AllReduce, 400'000, true);
    TestDevice* const device = node.rank() == 0 ? &a : nullptr;
    const Outcome outcome = perform(node, call, "ring", device, device);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.text();
    ASSERT_EQ(outcome.output.back(), 2 * 399'999 + 1000);
  });
}

TEST_P(StagingOver, ARepeatedCallPinsNothing) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(64 << 20));
  const auto once = [&] {
    cluster.run([&](Node& node) {
      const Call call = call_of(Collective::AllReduce, 200'000, false);
      ASSERT_TRUE(perform(node, call, "ring", &a, &a).status.ok());
    });
  };
  once();
  const int pins = a.pins;

  for (int k = 0; k < 5; ++k) once();

  EXPECT_EQ(a.pins, pins);
}

TEST_P(StagingOver, ManyOperationsInFlightCompleteInAnyOrder) {
  TestDevice a("alpha", 5e-6, 4e9), b("beta");
  Cluster cluster(GetParam(), 3, small_pool(2 << 20, 64 << 10));

  cluster.run([&](Node& node) {
    TestDevice* const device = of_rank(node.rank(), 0, a, b);
    std::deque<Array> data;
    std::vector<Operation*> ops;
    for (std::size_t k = 0; k < 40; ++k) {
      const Call call = call_of(Collective::AllReduce, k % 4 == 0 ? 100'000 : 3, true);
      data.emplace_back(device, std::vector<std::int64_t>(call.count, node.rank() + int(k)));
      const engine::Buffers buffers{{data.back().where(), data.back().where()}};
      engine::Job job{recipe_of(call, node, "ring", 4096), data.back().data(), data.back().data()};
      if (device != nullptr) job.device = &buffers;
      ops.push_back(
          node.engine().start(node.context(), job, k % 2 == 0 ? Follow::Background : Follow::Soon));
    }
    for (std::size_t k = ops.size(); k-- > 0;) {
      const Status status = node.engine().wait(*ops[k], Deadline::after(Seconds(30)));
      ASSERT_TRUE(status.ok()) << status.text();
      const auto values = data[k].values();
      ASSERT_EQ(values.front(), 3 + 3 * static_cast<int>(k));
      ASSERT_EQ(values.back(), 3 + 3 * static_cast<int>(k));
      node.engine().release(*ops[k]);
    }
  });
}

// Each of two ranks sends to the other.
static void exchange(Cluster& cluster, std::size_t count, int mix, TestDevice& a, TestDevice& b) {
  cluster.run([&](Node& node) {
    const int peer = 1 - node.rank();
    TestDevice* const device = of_rank(node.rank(), mix, a, b);
    Array out(device, numbers(count, node.rank() + 1)), in(device, numbers(count, -9));
    const Where from = out.where(), to = in.where();
    Operation* send = node.engine().start(node.context(), engine::OperationKind::Send,
                                          parcel(peer, 5, out, from));
    Operation* recv = node.engine().start(node.context(), engine::OperationKind::Recv,
                                          parcel(node.rank() == 0 ? -1 : peer, 5, in, to));
    const Deadline deadline = Deadline::after(Seconds(20));
    const Status sent = node.engine().wait(*send, deadline);
    const Status received = node.engine().wait(*recv, deadline);

    ASSERT_TRUE(sent.ok()) << sent.text();
    ASSERT_TRUE(received.ok()) << received.text();
    ASSERT_EQ(in.values(), numbers(count, peer + 1));
    node.engine().release(*send);
    node.engine().release(*recv);
  });
}

TEST_P(StagingOver, MessagesOfEverySizeArrive) {
  TestDevice a("alpha", 10e-6, 4e9), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20, 64 << 10));
  for (const std::size_t count : {0ul, 1ul, 600ul, 50'000ul, 400'000ul}) {
    for (const int mix : {0, 1}) exchange(cluster, count, mix, a, b);
  }
}

TEST_P(StagingOver, MessagesOfOneTagKeepTheirOrder) {
  TestDevice a("alpha", 200e-6), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20, 64 << 10));

  cluster.run([&](Node& node) {
    const Deadline deadline = Deadline::after(Seconds(20));
    std::deque<Array> arrays;
    std::vector<Operation*> ops;
    for (int k = 0; k < 60; ++k) {
      const std::size_t count = k % 7 == 0 ? 40'000 : 5;  // every third from a slow device
      TestDevice* const device = node.rank() == 0 && k % 3 == 0 ? &a : nullptr;
      arrays.emplace_back(device, numbers(count, node.rank() == 0 ? k : -1));
      const Where where = arrays.back().where();
      for (const int peer : {0, 1}) {  // to itself, too
        if (node.rank() == 1 && peer == 1) continue;
        ops.push_back(node.rank() == 0
                          ? node.engine().start(node.context(), engine::OperationKind::Send,
                                                parcel(peer, 2, arrays.back(), where))
                          : node.engine().start(node.context(), engine::OperationKind::Recv,
                                                parcel(0, 2, arrays.back(), where)));
      }
    }
    for (int k = 0; k < 60 && node.rank() == 0; ++k) {
      arrays.emplace_back(k % 2 == 0 ? &b : nullptr, numbers(k % 7 == 0 ? 40'000 : 5, -1));
      const Where where = arrays.back().where();
      ops.push_back(node.engine().start(node.context(), engine::OperationKind::Recv,
                                        parcel(0, 2, arrays.back(), where)));
    }
    for (Operation* op : ops) {
      const Status status = node.engine().wait(*op, deadline);
      ASSERT_TRUE(status.ok()) << status.text();
      node.engine().release(*op);
    }
    const std::size_t first = arrays.size() - 60;
    for (int k = 0; k < 60; ++k) {
      ASSERT_EQ(arrays[first + static_cast<std::size_t>(k)].values().front(), k);
    }
  });
}

TEST_P(StagingOver, TheCallersStreamIsWaitedFor) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20));

  cluster.run([&](Node& node) {
    TestDevice& device = node.rank() == 0 ? a : b;
    const device::Stream stream = device.stream_create(0).take();
    Array data(&device, numbers(1000, 0));
    auto* const inside =
        reinterpret_cast<std::int64_t*>(device.inside(data.where().place.handle, 8000));
    device.launch(stream, [] {}, 0.05);
    device.launch(stream, [=] { inside[999] = 7; });
    const Call call = call_of(Collective::AllReduce, 1000, true);
    const Where where = data.where(0, stream.native);
    const engine::Buffers buffers{{where, where}};
    engine::Job job{recipe_of(call, node, "direct", 0), nullptr, nullptr};
    job.device = &buffers;
    const Status status = node.engine().run(node.context(), job);

    EXPECT_TRUE(status.ok()) << status.text();
    EXPECT_EQ(data.values()[999], 14);
    device.stream_destroy(stream);
  });
}

// How many messages the ranks' devices have copied from where their peers had staged them.
static int fetched(Cluster& cluster) {
  std::atomic<int> all{0};
  cluster.run([&](Node& node) {
    for (const auto& each : node.engine().devices()) {
      const auto at = each.text.find(" messages copied from peers' memory");
      ASSERT_NE(at, std::string::npos) << each.text;
      all += std::stoi(each.text.substr(each.text.rfind(' ', at - 1) + 1));
    }
  });
  return all;
}

TEST(StagingOverShm, BetweenDevicesAByteIsCopiedOnceOnEachSide) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster("shm", 2, small_pool(64 << 20, 64 << 10));
  const auto call = [](Collective collective) { return call_of(collective, 200'000, false); };
  int before = 0;
  const auto expect_more = [&](const char* what) {
    const int now = fetched(cluster);
    EXPECT_GT(now, before) << what;
    before = now;
  };
  cluster.run([&](Node& node) {  // the links
    ASSERT_TRUE(
        perform(node, call(Collective::Barrier), "dissemination", nullptr, nullptr).status.ok());
  });
  expect_as_on_the_host(cluster, "direct", [&](int) { return call(Collective::AllToAll); }, a, b);
  expect_more("all_to_all");
  expect_as_on_the_host(cluster, "direct", [&](int) { return call(Collective::AllGather); }, a, b);
  expect_more("all_gather");
  exchange(cluster, 300'000, 1, a, b);
  expect_more("messages");
  EXPECT_GT(before, 0);
}

TEST(StagingOverShm, APeersMemoryThatCannotBePinnedIsPulled) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster("shm", 2, small_pool(64 << 20, 64 << 10));
  exchange(cluster, 300'000, 1, a, b);
  a.pins_left = 0;  // for all that has not been seen yet
  exchange(cluster, 600'000, 1, a, b);
}

// Out of one device, over the wire, and to the other.
TEST_P(StagingOver, TheFirstPiecesOfAMessageArriveBeforeItsLastAreCopied) {
  if (std::string_view(GetParam()) == "inproc") GTEST_SKIP() << "it reads the peer's memory whole";
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(64 << 20, 64 << 10));
  const auto all_to_all = [&] {
    cluster.run([&](Node& node) {
      const Call call = call_of(Collective::AllToAll, 200'000, false);
      const bool sends = node.rank() == 0;
      const Outcome outcome =
          perform(node, call, "direct", sends ? &a : nullptr, sends ? nullptr : &b);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.text();
    });
  };
  for (int call = 0; call < 2; ++call)
    all_to_all();  // there is a link; it has told what each can do
  const int before = b.copies;
  a.stalls_at = a.copies + 8;
  std::thread watcher([&] {
    const Deadline deadline = Deadline::after(Seconds(20));
    const int own = before + 26;  // cells of rank 1's own part, at most
    while ((!a.stalled || b.copies <= own) && !deadline.passed()) std::this_thread::yield();
    EXPECT_GT(b.copies, own);
    a.stalls_at = 0;
    a.stalled = false;
  });
  all_to_all();
  watcher.join();
}

INSTANTIATE_TEST_SUITE_P(Transports, StagingOver, testing::Values("inproc", "tcp", "shm"),
                         [](const auto& each) { return std::string(each.param); });

}  // namespace hccomm::test
