// SPDX-License-Identifier: Apache-2.0
//
// Among more ranks than cores what is reduced is asked for, and comes in frames; what flows from a
// root or to one comes so without a word.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "engine/engine.hpp"
#include "support/cluster.hpp"

namespace hccomm::test {

using engine::Follow;
using engine::Job;
using engine::Operation;

using Numbers = std::vector<std::int64_t>;

static plan::Call sum_of(std::uint64_t count) {
  plan::Call call;
  call.collective = plan::Collective::AllReduce;
  call.type = dtype::DType::I64;
  call.count = count;
  return call;
}

static Job job_of(std::shared_ptr<const engine::Recipe> recipe, const Numbers& in, Numbers& out) {
  return {std::move(recipe), reinterpret_cast<std::byte*>(const_cast<std::int64_t*>(in.data())),
          reinterpret_cast<std::byte*>(out.data()), 1.0, Seconds(30)};
}

// Among more ranks than cores: whether the ranks start together or not, and though a segment needs
// the place of one before it.
TEST(Crowded, NobodyPullsWhatIsReduced) {
  for (const int ranks : {2, 3}) {
    Cluster cluster("faulty-inproc", ranks);
    std::atomic<int> pulled{0};
    for (int rank = 0; rank < ranks; ++rank) {
      cluster[rank].mischief().on_send([&](const wire::Header& header) {
        if (header.type == wire::Type::Done) ++pulled;
        return Deed::Pass;
      });
    }
    cluster.run([&](Node& node) {
      const std::uint64_t count = 200'000;
      std::vector<std::int64_t> in(count, node.rank()), out(count, -1);
      const auto recipe = recipe_of(sum_of(count), node, "direct", 16 << 10);
      for (int call = 0; call < 10; ++call) {
        std::this_thread::sleep_for(std::chrono::milliseconds(call % 3 == node.rank() ? 2 : 0));
        const Status status = node.engine().run(node.context(), job_of(recipe, in, out));
        ASSERT_TRUE(status.ok()) << status.text();
        ASSERT_EQ(out.front(), ranks * (ranks - 1) / 2);
        ASSERT_EQ(out.back(), ranks * (ranks - 1) / 2);
      }
    });

    EXPECT_EQ(pulled, 0) << ranks;
  }
}

// Who calls first asks the other for its part, which comes without a second word.
TEST(Crowded, WhatIsReducedIsAskedForBeforeItIsOffered) {
  Cluster cluster("faulty-inproc", 2);
  std::atomic<int> asked{0};
  cluster[0].mischief().on_send([&](const wire::Header& header) {
    if (header.type == wire::Type::Stream && header.address == 1) ++asked;
    return Deed::Pass;
  });
  const std::uint64_t count = 200'000;
  const Numbers in(count, 3);
  Numbers out[2] = {in, in};

  Operation* running[2];
  for (const int rank : {0, 1}) {
    Node& node = cluster[rank];
    const auto recipe = recipe_of(sum_of(count), node, "direct", 1 << 20);
    running[rank] =
        node.engine().start(node.context(), job_of(recipe, in, out[rank]), Follow::Background);
  }
  for (const int rank : {0, 1}) {
    const Status status = cluster[rank].engine().wait(*running[rank], Deadline::never());
    ASSERT_TRUE(status.ok()) << status.text();
    cluster[rank].engine().release(*running[rank]);
    EXPECT_EQ(out[rank].front(), 6);
    EXPECT_EQ(out[rank].back(), 6);
  }

  EXPECT_GT(asked, 0);
}

// 240 kB of rank 1: more than goes unasked else.
static std::shared_ptr<const engine::Recipe> large_broadcast(Node& node) {
  plan::Call call = sum_of(30'000);
  call.collective = plan::Collective::Broadcast;
  call.root = 1;
  call.in_place = true;
  engine::Recipe recipe = *recipe_of(call, node, "direct", 0, 71);
  recipe.rooted = true;
  return std::make_shared<const engine::Recipe>(std::move(recipe));
}

// Neither offered nor asked for nor answered, though it is larger than what else goes unasked.
TEST(Flowing, ALargeMessageOfARootedCallGoesUnasked) {
  Cluster cluster("faulty-inproc", 2);
  std::atomic<int> words{0};
  for (int rank = 0; rank < 2; ++rank) {
    cluster[rank].mischief().on_send([&](const wire::Header& header) {
      const wire::Type type = header.type;
      if (type == wire::Type::Ready || type == wire::Type::Stream || type == wire::Type::Done ||
          type == wire::Type::Written) {
        ++words;
      }
      return Deed::Pass;
    });
  }
  cluster.run([&](Node& node) {
    const auto recipe = large_broadcast(node);
    for (int round = 0; round < 20; ++round) {
      std::this_thread::sleep_for(std::chrono::milliseconds(round % 3 == node.rank() ? 2 : 0));
      Numbers data(30'000, node.rank() == 1 ? round : -1);
      const Status status = node.engine().run(node.context(), job_of(recipe, data, data));
      ASSERT_TRUE(status.ok()) << status.text();
      ASSERT_EQ(data.front(), round);
      ASSERT_EQ(data.back(), round);
    }
  });

  EXPECT_EQ(words, 0);
}

TEST(Flowing, ARootThatRunsAheadWaitsForWhoIsBehind) {
  Cluster cluster("faulty-inproc", 2);
  std::atomic<std::uint64_t> newest{0}, reached{0};  // calls
  cluster[1].mischief().on_send([&](const wire::Header& header) {
    if (header.type == wire::Type::Data) newest = header.sequence;
    return Deed::Pass;
  });
  cluster.run([&](Node& node) {
    const auto recipe = large_broadcast(node);
    for (int round = 0; round < 120; ++round) {
      if (node.rank() == 0 && round == 1) {  // the first call is confirmed
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        reached = newest.load();
      }
      Numbers data(30'000, node.rank() == 1 ? round : -1);
      const Status status = node.engine().run(node.context(), job_of(recipe, data, data));
      ASSERT_TRUE(status.ok()) << status.text();
      ASSERT_EQ(data.front(), round);
      ASSERT_EQ(data.back(), round);
    }
  });

  EXPECT_GT(reached, 15u);
  EXPECT_LT(reached, 45u);  // 8 MiB of 240 kB each
}

}  // namespace hccomm::test
