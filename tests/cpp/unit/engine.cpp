// SPDX-License-Identifier: Apache-2.0
//
// The engine over real transports: collectives and messages of every size in any legal order, and
// what happens when ranks disagree, are late or leave.
#include "engine/engine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>

#include "support/cluster.hpp"

namespace hccomm::test {

using engine::Follow;
using engine::Job;
using engine::Operation;

static plan::Call allreduce_of(std::uint64_t count, bool in_place = false) {
  plan::Call call;
  call.collective = plan::Collective::AllReduce;
  call.type = dtype::DType::I64;
  call.count = count;
  call.in_place = in_place;
  return call;
}

static Job job_of(std::shared_ptr<const engine::Recipe> recipe, const void* input, void* output,
                  double seconds = 30) {
  return {std::move(recipe), static_cast<std::byte*>(const_cast<void*>(input)),
          static_cast<std::byte*>(output), 1.0, Seconds(seconds)};
}

static engine::Parcel parcel(int peer, std::uint64_t tag, void* data, std::uint64_t bytes,
                             std::uint8_t kind = 0) {
  return {peer, tag, static_cast<std::byte*>(data), bytes, kind, Seconds(20), Follow::Soon};
}

class EngineOver : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!std::string(GetParam()).ends_with("ofi")) return;
    auto found = builtin_named("ofi").survey();
    if (!found.ok()) GTEST_SKIP() << found.status().text();
  }
};

// Over ofi where a provider is chosen for tests (tests/cpp/CMakeLists.txt).
static std::vector<const char*> ways() {
  if (getenv("HCCOMM_OFI_PROVIDER") != nullptr) return {"ofi", "sealed-ofi"};
  return {"inproc", "tcp", "shm", "framed-shm", "sealed-inproc", "sealed-tcp", "sealed-shm"};
}

TEST_P(EngineOver, AllreduceOfEverySizeIsRight) {
  for (const int ranks : {2, 4}) {
    Cluster cluster(GetParam(), ranks);
    for (const char* algorithm : {"direct", "scatter_gather", "ring", "tree"}) {
      for (const std::uint64_t count : {1ull, 7ull, 1000ull, 200'003ull}) {
        cluster.run([&](Node& node) {
          std::vector<std::int64_t> in(count), out(count, -1);
          std::iota(in.begin(), in.end(), node.rank() * 1000);
          const auto recipe = recipe_of(allreduce_of(count), node, algorithm, 8192);

          const Status status =
              node.engine().run(node.context(), job_of(recipe, in.data(), out.data()));

          ASSERT_TRUE(status.ok()) << status.text();
          const std::int64_t base = 1000ll * ranks * (ranks - 1) / 2;
          for (std::uint64_t i = 0; i < count; ++i) {
            ASSERT_EQ(out[i], base + static_cast<std::int64_t>(ranks * i)) << algorithm << i;
          }
        });
      }
    }
  }
}

TEST_P(EngineOver, ManyOperationsInFlightCompleteInAnyOrder) {
  Cluster cluster(GetParam(), 3);

  cluster.run([&](Node& node) {
    std::vector<std::vector<std::int64_t>> data(40);
    std::vector<Operation*> ops;
    for (std::size_t k = 0; k < data.size(); ++k) {
      data[k].assign(k % 4 == 0 ? 100'000 : 3, node.rank() + static_cast<int>(k));
      const auto recipe = recipe_of(allreduce_of(data[k].size(), true), node, "ring", 4096);
      ops.push_back(node.engine().start(node.context(),
                                        job_of(recipe, data[k].data(), data[k].data()),
                                        k % 2 == 0 ? Follow::Background : Follow::Soon));
    }
    for (std::size_t k = data.size(); k-- > 0;) {
      const Status status = node.engine().wait(*ops[k], Deadline::after(Seconds(30)));
      ASSERT_TRUE(status.ok()) << status.text();
      ASSERT_EQ(data[k].front(), 3 + 3 * static_cast<int>(k));
      ASSERT_EQ(data[k].back(), 3 + 3 * static_cast<int>(k));
      node.engine().release(*ops[k]);
    }
  });
}

TEST_P(EngineOver, AnUnwaitedOperationIsDrivenByTheServiceThread) {
  Cluster cluster(GetParam(), 2);
  std::atomic<int> calls{0};

  cluster.run([&](Node& node) {
    std::vector<std::int64_t> data(300'000, 1);
    const auto recipe = recipe_of(allreduce_of(data.size(), true), node, "ring", 8192);
    Operation* op = node.engine().start(node.context(), job_of(recipe, data.data(), data.data()),
                                        node.rank() == 0 ? Follow::Background : Follow::Soon);
    node.engine().on_done(
        *op, [](void* counter, int code) { *static_cast<std::atomic<int>*>(counter) += 1 + code; },
        &calls);
    const Deadline deadline = Deadline::after(Seconds(20));
    while (!op->done() && !deadline.passed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ASSERT_TRUE(op->done());
    ASSERT_EQ(data.front() + data.back(), 4);
    node.engine().release(*op);
  });

  const Deadline deadline = Deadline::after(Seconds(5));
  while (calls.load() < 2 && !deadline.passed()) std::this_thread::yield();
  EXPECT_EQ(calls.load(), 2);
}

TEST_P(EngineOver, BothMaySendBeforeTheyReceive) {
  Cluster cluster(GetParam(), 2);
  for (const std::size_t bytes : {0ul, 8ul, 5'000ul, 3'000'000ul}) {
    cluster.run([&](Node& node) {
      const int peer = 1 - node.rank();
      std::vector<std::uint8_t> out(bytes, static_cast<std::uint8_t>(node.rank() + 1));
      std::vector<std::uint8_t> in(bytes, 0);
      const Deadline deadline = Deadline::after(Seconds(20));

      Operation* send = node.engine().start(node.context(), engine::OperationKind::Send,
                                            parcel(peer, 5, out.data(), bytes));
      Operation* recv =
          node.engine().start(node.context(), engine::OperationKind::Recv,
                              parcel(node.rank() == 0 ? -1 : peer, 5, in.data(), bytes));
      const Status sent = node.engine().wait(*send, deadline);
      const Status received = node.engine().wait(*recv, deadline);

      ASSERT_TRUE(sent.ok()) << sent.text();
      ASSERT_TRUE(received.ok()) << received.text();
      ASSERT_EQ(recv->peer, peer);
      ASSERT_EQ(in, std::vector<std::uint8_t>(bytes, static_cast<std::uint8_t>(peer + 1)));
      node.engine().release(*send);
      node.engine().release(*recv);
    });
  }
}

TEST_P(EngineOver, AMessageThatLeavesAtOnceIsRecordedAsOthersAre) {
  Cluster cluster(GetParam(), 2);
  cluster.run([&](Node& node) {
    const int peer = 1 - node.rank();
    for (std::size_t round = 0; round < 3; ++round) {
      for (const std::size_t bytes : {0ul, 8ul, 5'000ul, 300'000ul}) {
        std::vector<std::uint8_t> out(bytes, static_cast<std::uint8_t>(node.rank() + 1));
        std::vector<std::uint8_t> in(bytes, 0);
        int source = -2;

        const Status done = node.engine().exchange(
            node.context(), parcel(peer, 5, out.data(), bytes),
            parcel(node.rank() == 0 ? -1 : peer, 5, in.data(), bytes), source);

        ASSERT_TRUE(done.ok()) << done.text();
        ASSERT_EQ(source, peer);
        ASSERT_EQ(in, std::vector<std::uint8_t>(bytes, static_cast<std::uint8_t>(peer + 1)));
      }
    }
    const std::string dump = node.engine().dump(node.context());
    const auto times = [&](const char* word) {
      std::size_t count = 0;
      for (auto at = dump.find(word); at != dump.npos; at = dump.find(word, at + 1)) ++count;
      return count;
    };

    EXPECT_EQ(times("\"hccomm:send\""), 12u) << dump;
    EXPECT_EQ(times("\"hccomm:recv\""), 12u) << dump;
    EXPECT_EQ(times("\"completed\""), 24u) << dump;
    EXPECT_EQ(node.context().matching.from_any, 0u);
  });
}

TEST_P(EngineOver, ManyTagsLeaveFewLinesBehind) {
  Cluster cluster(GetParam(), 2);
  cluster.run([&](Node& node) {
    const int peer = 1 - node.rank();
    for (std::uint64_t tag = 0; tag < 1000; ++tag) {
      std::uint64_t out = tag, in = 0;
      int source = -2;
      const Status done =
          node.engine().exchange(node.context(), parcel(peer, tag, &out, 8),
                                 parcel(tag % 2 == 0 ? -1 : peer, tag, &in, 8), source);
      ASSERT_TRUE(done.ok()) << done.text();
      ASSERT_EQ(in, tag);
    }

    EXPECT_LE(node.context().matching.lines.size(), 260u);
  });
}

TEST_P(EngineOver, MessagesMatchByTagInOrder) {
  Cluster cluster(GetParam(), 2);
  const Deadline deadline = Deadline::after(Seconds(20));

  cluster.run([&](Node& node) {
    std::vector<Operation*> ops;
    std::vector<std::int64_t> values(200, -1);
    if (node.rank() == 0) {
      std::iota(values.begin(), values.end(), 0);
      for (int k = 0; k < 200; ++k) {
        ops.push_back(node.engine().start(node.context(), engine::OperationKind::Send,
                                          parcel(1, k % 2, &values[k], 8)));
      }
    } else {
      for (const int tag : {1, 0}) {
        for (int k = tag; k < 200; k += 2) {
          ops.push_back(node.engine().start(node.context(), engine::OperationKind::Recv,
                                            parcel(0, tag, &values[k], 8)));
        }
      }
    }
    for (Operation* op : ops) {
      ASSERT_TRUE(node.engine().wait(*op, deadline).ok());
      node.engine().release(*op);
    }
    for (int k = 0; k < 200; ++k) ASSERT_EQ(values[k], k);
  });
}

// A message of several frames, or of one that arrives in parts: wanted before it begins to come or
// later, by rank or from any; and one of another length than is wanted is refused.
TEST_P(EngineOver, AMessageInPartsLandsInTheReceiveThatWantsIt) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    const int peer = 1 - node.rank();
    std::vector<std::int64_t> mine(8000, node.rank()), theirs(8000, -1);
    const auto sends = [&](std::uint64_t tag, std::uint64_t bytes) {
      return node.engine().start(node.context(), engine::OperationKind::Send,
                                 parcel(peer, tag, mine.data(), bytes));
    };
    const auto receives = [&](int from, std::uint64_t tag, std::uint64_t bytes) {
      return node.engine().start(node.context(), engine::OperationKind::Recv,
                                 parcel(from, tag, theirs.data(), bytes));
    };
    const auto ends = [&](Operation* op) {
      const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
      node.engine().release(*op);
      return status;
    };
    for (std::uint64_t round = 0; round < 40; ++round) {
      const std::uint64_t bytes = 33'000 + 760 * round;
      const int from = round % 3 == 0 ? -1 : peer;
      std::ranges::fill(theirs, -1);
      Operation* in = round % 2 == 0 ? receives(from, 2, bytes) : nullptr;
      Operation* const out = sends(2, bytes);
      if (in == nullptr) in = receives(from, 2, bytes);
      ASSERT_TRUE(ends(in).ok());
      ASSERT_TRUE(ends(out).ok());
      ASSERT_EQ(std::ranges::count(theirs, peer), static_cast<std::int64_t>(bytes / 8));
    }
    Operation* const in = receives(peer, 2, 50'000);
    Operation* const out = sends(2, 60'000);
    EXPECT_EQ(ends(in).code(), Code::Mismatch);
    static_cast<void>(ends(out));  // taken or not: the receiver has said why
  });
}

TEST_P(EngineOver, RanksThatDisagreeAllLearnWhoCalledWhat) {
  Cluster cluster(GetParam(), 3);

  cluster.run([&](Node& node) {
    std::int64_t value = 1;
    const auto recipe =
        recipe_of(allreduce_of(1, true), node, "direct", 0, node.rank() == 1 ? 99 : 11);
    const Status status = node.engine().run(node.context(), job_of(recipe, &value, &value));

    EXPECT_EQ(status.code(), Code::Mismatch) << status.text();
    EXPECT_NE(status.text().find("rank 1"), std::string::npos) << status.text();
  });
}

static std::shared_ptr<const engine::Recipe> broadcast_from(int root, Node& node) {
  plan::Call call;
  call.collective = plan::Collective::Broadcast;
  call.type = dtype::DType::I64;
  call.count = 1;
  call.root = root;
  call.in_place = true;
  engine::Recipe recipe = *recipe_of(call, node, "binomial", 0, 70 + root);
  recipe.rooted = true;
  return std::make_shared<const engine::Recipe>(std::move(recipe));
}

// At this call, unless the other rank comes so late that the root does not wait for it any more:
// then at the next.
TEST_P(EngineOver, TwoRootsOfOneBroadcastBothLearn) {
  Cluster cluster(GetParam(), 2);
  std::atomic<int> at_once{0};

  cluster.run([&](Node& node) {
    std::int64_t value = node.rank();
    const auto broadcast = [&](int root) {
      return node.engine().run(node.context(), job_of(broadcast_from(root, node), &value, &value));
    };
    Status status = broadcast(node.rank());
    if (!status.ok()) ++at_once;
    if (status.ok()) status = broadcast(1 - node.rank());

    EXPECT_EQ(status.code(), Code::Mismatch) << status.text();
  });

  EXPECT_GE(at_once, 1);
}

TEST_P(EngineOver, ARootDoesNotWaitForEverForARankThatWantsAnotherMessageFirst) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    std::int64_t value = 5 - node.rank(), note = 7 * (1 - node.rank());
    const auto broadcast = [&] {
      const auto recipe = broadcast_from(0, node);
      const Status status = node.engine().run(node.context(), job_of(recipe, &value, &value));
      EXPECT_TRUE(status.ok()) << status.text();
    };
    if (node.rank() == 0) broadcast();
    Operation* op = node.rank() == 0
                        ? node.engine().start(node.context(), engine::OperationKind::Send,
                                              parcel(1, 1, &note, sizeof note))
                        : node.engine().start(node.context(), engine::OperationKind::Recv,
                                              parcel(0, 1, &note, sizeof note));
    EXPECT_TRUE(node.engine().wait(*op, Deadline::after(Seconds(20))).ok());
    node.engine().release(*op);
    if (node.rank() == 1) broadcast();

    EXPECT_EQ(value, 5);
    EXPECT_EQ(note, 7);
  });
}

TEST_P(EngineOver, AMessageOfAnotherTypeIsRefusedOnBothSides) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    std::int64_t value = 1;
    const auto mine = parcel(1 - node.rank(), 3, &value, 8, node.rank() == 0 ? 5 : 14);
    Operation* first = node.rank() == 0
                           ? node.engine().start(node.context(), engine::OperationKind::Send, mine)
                           : node.engine().start(node.context(), engine::OperationKind::Recv, mine);
    Operation* second = node.engine().start(node.context(), engine::OperationKind::Recv,
                                            parcel(1 - node.rank(), 4, &value, 8));
    const Status late = node.engine().wait(*second, Deadline::after(Seconds(20)));
    EXPECT_EQ(late.code(), Code::Mismatch) << late.text();
    EXPECT_NE(late.text().find("of i64"), std::string::npos) << late.text();
    node.engine().release(*first);
    node.engine().release(*second);
  });
}

TEST_P(EngineOver, AMissingRankIsNamedAtTheDeadline) {
  Cluster cluster(GetParam(), 3);

  cluster.run([&](Node& node) {
    if (node.rank() == 2) return;
    std::int64_t value = 1;
    const auto recipe = recipe_of(allreduce_of(1, true), node, "direct");
    const Status status = node.engine().run(node.context(), job_of(recipe, &value, &value, 0.3));

    EXPECT_EQ(status.code(), Code::Timeout) << status.text();
    EXPECT_NE(status.text().find("rank 2"), std::string::npos) << status.text();
  });
}

TEST_P(EngineOver, ARankThatLeavesIsNamedByThoseThatWaitForIt) {
  Cluster cluster(GetParam(), 3);
  cluster.run([&](Node& node) {
    std::int64_t value = 1;
    const auto recipe = recipe_of(allreduce_of(1, true), node, "direct");
    ASSERT_TRUE(node.engine().run(node.context(), job_of(recipe, &value, &value)).ok());
  });

  cluster.run([&](Node& node) {
    if (node.rank() == 1) {
      node.leave();
      return;
    }
    std::int64_t value = 1;
    const auto recipe = recipe_of(allreduce_of(1, true), node, "direct");
    const Status status = node.engine().run(node.context(), job_of(recipe, &value, &value, 10));

    EXPECT_EQ(status.code(), Code::PeerLost) << status.text();
    EXPECT_EQ(status.rank(), 1);
  });
  std::vector<transport::Card> cards;
  for (int rank = 0; rank < 3; ++rank) cards.push_back(cluster[rank].card());
  cluster[1].context() = {};
  cluster[1].meet(cards, 8);  // so that the cluster can end like any other
}

TEST_P(EngineOver, AHeldOperationIsItsHoldersToo) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    engine::Engine& engine = node.engine();
    std::int64_t sent = 7, value = 0;
    Operation* const op = engine.start(node.context(), engine::OperationKind::Recv,
                                       parcel(node.rank(), 1, &value, 8));
    engine.hold(*op);
    engine.release(*engine.start(node.context(), engine::OperationKind::Send,
                                 parcel(node.rank(), 1, &sent, 8)));
    EXPECT_TRUE(engine.wait(*op, Deadline::after(Seconds(20))).ok());
    engine.release(*op);
    EXPECT_TRUE(op->done()) << "released, but not free yet";
    engine.let_go(*op);
    EXPECT_EQ(value, 7);
  });
  cluster.run([&](Node& node) {
    if (node.rank() != 0) return;
    engine::Engine& engine = node.engine();
    std::int64_t value = 0;
    Operation* const op =
        engine.start(node.context(), engine::OperationKind::Recv, parcel(1, 2, &value, 8));
    engine.hold(*op);

    engine.poison(node.context(), Status(Code::Aborted, "enough"), true);

    EXPECT_FALSE(op->done()) << "others still work on its buffers";
    engine.let_go(*op);
    const Status status = engine.wait(*op, Deadline::after(Seconds(20)));
    EXPECT_EQ(status.code(), Code::Aborted) << status.text();
    engine.release(*op);
  });
}

TEST_P(EngineOver, AnAbortUnblocksAWaiter) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    if (node.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      node.engine().poison(node.context(), Status(Code::Aborted, "enough"), true);
      return;
    }
    std::vector<std::int64_t> data(100'000, 1);
    const auto recipe = recipe_of(allreduce_of(data.size(), true), node, "ring", 4096);
    Operation* op =
        node.engine().start(node.context(), job_of(recipe, data.data(), data.data()), Follow::Soon);
    std::thread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      node.engine().poison(node.context(), Status(Code::Aborted, "enough"), true);
    });
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(10)));
    late.join();
    EXPECT_EQ(status.code(), Code::Aborted) << status.text();
    node.engine().release(*op);
  });
}

INSTANTIATE_TEST_SUITE_P(Transports, EngineOver, testing::ValuesIn(ways()), [](const auto& each) {
  std::string name = each.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace hccomm::test
