// SPDX-License-Identifier: Apache-2.0
//
// The choice of an algorithm: there always is one, it is the same on every rank, and it says why.
#include "select/select.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "collective/collective.hpp"

namespace hccomm::select {
namespace {

using plan::Call;
using plan::Collective;
using plan::Group;

Call call_of(Collective collective, std::uint64_t count) {
  Call call;
  call.collective = collective;
  call.type = dtype::DType::F32;
  call.count = count;
  return call;
}

Group group_of(int size, int per_host = 0, int rank = 0) {
  Group group{.rank = rank, .size = size};
  for (int r = 0; r < size && per_host > 0; ++r) group.host_of.push_back(r / per_host);
  if (per_host > 0) group.hosts = (size + per_host - 1) / per_host;
  return group;
}

TEST(Select, FindsTheSameAlgorithmThatServesOnEveryRankEverywhere) {
  for (const collective::Descriptor& each : collective::collectives()) {
    for (const int size : {1, 2, 3, 4, 7, 8, 16, 33, 64, 100}) {
      for (const int per_host : {0, 1, 2, 8}) {
        for (const std::uint64_t count : {0ull, 1ull, 1000ull, 100000ull, 1ull << 28}) {
          for (const bool shm : {true, false}) {
            const Facts facts{.cores = 8, .shm_intra_host = shm};
            const Call call = call_of(each.id, each.id == Collective::Barrier ? 0 : count);
            const Choice first = choose(call, group_of(size, per_host, 0), facts);
            const Group last_rank = group_of(size, per_host, size - 1);
            const Choice last = choose(call, last_rank, facts);
            ASSERT_NE(first.algorithm, nullptr);
            EXPECT_EQ(first.algorithm, last.algorithm);
            EXPECT_EQ(first.tuning.segment, last.tuning.segment);
            EXPECT_GT(first.tuning.segment, 0u);
            EXPECT_EQ(first.algorithm->collective, each.id);
            const auto refuses = first.algorithm->refuses;
            EXPECT_TRUE(refuses == nullptr || refuses(call, last_rank) == nullptr);
          }
        }
      }
    }
  }
}

TEST(Select, EveryLineOfTheTableNamesAnAlgorithmOfItsCollective) {
  for (const Default& line : defaults()) {
    EXPECT_NE(algorithm::find(line.collective, line.algorithm), nullptr) << line.algorithm;
  }
}

TEST(Select, KnowsWhereTheRanksAre) {
  EXPECT_EQ(place_of(group_of(8), {.cores = 8}), Place::Shared);
  EXPECT_EQ(place_of(group_of(8), {.cores = 2}), Place::Crowded);
  EXPECT_EQ(place_of(group_of(8), {}), Place::Shared);
  EXPECT_EQ(place_of(group_of(8), {.cores = 8, .shm_intra_host = false}), Place::Network);
  EXPECT_EQ(place_of(group_of(8, 4), {.cores = 8}), Place::Hosts);
  EXPECT_EQ(place_of(group_of(8, 1), {.cores = 8}), Place::Network);
}

TEST(Select, InSharedMemoryOneHopForLittleAndTwoForMuch) {
  const Facts facts{.cores = 8};

  EXPECT_STREQ(choose(call_of(Collective::AllReduce, 16), group_of(4), facts).algorithm->name,
               "direct");
  EXPECT_STREQ(choose(call_of(Collective::AllReduce, 1 << 20), group_of(4), facts).algorithm->name,
               "scatter_gather");
  EXPECT_STREQ(choose(call_of(Collective::AllReduce, 16), group_of(8, 4), facts).algorithm->name,
               "two_level");
}

TEST(Select, SaysWhy) {
  const Choice choice = choose(call_of(Collective::AllReduce, 16), group_of(4), {.cores = 8});

  EXPECT_EQ(choice.why, "one host with shared memory, 4 ranks, 64 bytes: one hop, little to send");
}

TEST(Select, ARuleOverridesTheTable) {
  const Rules rules = Rules::parse("allreduce:64- tree");
  const Facts facts{.cores = 8};

  const Choice ruled = choose(call_of(Collective::AllReduce, 16), group_of(4), facts, rules);
  const Choice free = choose(call_of(Collective::AllReduce, 15), group_of(4), facts, rules);

  EXPECT_STREQ(ruled.algorithm->name, "tree");
  EXPECT_EQ(ruled.why, "HCCOMM_ALGO for 64 bytes");
  EXPECT_STREQ(free.algorithm->name, "direct");
}

TEST(Select, AMeasuredTableComesBeforeTheDefaultsAndAfterRules) {
  const Table table = Table::parse(
      "# made for a test\n"
      "allreduce shared 4 1K tree\n"
      "\n"
      "allreduce shared any any ring  # the rest\n",
      "test");
  const Facts facts{.cores = 8};
  const Group group = group_of(4);
  const auto chosen = [&](std::uint64_t count, const Group& of, const Rules& rules = {}) {
    return std::string(
        choose(call_of(Collective::AllReduce, count), of, facts, rules, table).algorithm->name);
  };

  EXPECT_EQ(chosen(256, group), "tree");
  EXPECT_EQ(chosen(257, group), "ring");
  EXPECT_EQ(chosen(16, group_of(5)), "ring");
  EXPECT_EQ(chosen(16, group, Rules::parse("allreduce:direct")), "direct");
  EXPECT_EQ(chosen(16, group_of(4, 2)), "two_level") << "no line for several hosts";
}

TEST(Select, AWrongTableIsRefusedWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"allreduce shared 4 1K", "line 1: it has not five words"},
      {"\nallreduce shared 4 1K tree x", "line 2: it has not five words"},
      {"reduceall shared 4 1K tree", "\"reduceall\" is no collective"},
      {"allreduce here 4 1K tree", "\"here\" is no place"},
      {"allreduce shared 0 1K tree", "\"0\" is no number of ranks"},
      {"allreduce shared 4 1X tree", "most_bytes=\"1X\""},
      {"allreduce shared 4 1K bruck", "\"bruck\" is no algorithm for allreduce"},
  };
  for (const auto& [wrong, why] : cases) {
    try {
      Table::parse(wrong, "/tmp/table");
      FAIL() << wrong;
    } catch (const Error& error) {
      EXPECT_EQ(error.status().code(), Code::InvalidArgument);
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("/tmp/table"), std::string::npos);
    }
  }
}

TEST(Select, ARuleThatDoesNotServeIsRefusedWithTheReason) {
  const Rules rules = Rules::parse("reducescatter:halving");

  try {
    choose(call_of(Collective::ReduceScatter, 16), group_of(3), {.cores = 8}, rules);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), Code::InvalidArgument);
    EXPECT_STREQ(error.what(),
                 "reducescatter(count=16, f32, sum): HCCOMM_ALGO asks for halving, which does not "
                 "serve it: the number of ranks is no power of two; change the rule");
  }
}

TEST(Select, PartsThatRanksDoNotAllKnowDoNotMoveTheChoice) {
  Call mine = call_of(Collective::AllToAll, 0), theirs = mine;
  mine.counts = mine.offsets = mine.recv_counts = mine.recv_offsets =
      std::vector<std::uint64_t>(40);
  theirs = mine;
  theirs.counts[1] = 1 << 30;

  EXPECT_EQ(choose(mine, group_of(40, 1), {}).algorithm,
            choose(theirs, group_of(40, 1), {}).algorithm);
  EXPECT_EQ(choose(mine, group_of(40, 1), {}).tuning.segment,
            choose(theirs, group_of(40, 1), {}).tuning.segment);
}

TEST(Select, TheSegmentIsTheUsersWhereGiven) {
  const Facts facts{.cores = 8, .segment_bytes = 4096};

  EXPECT_EQ(choose(call_of(Collective::AllReduce, 1 << 20), group_of(4), facts).tuning.segment,
            1024u);
}

}  // namespace
}  // namespace hccomm::select
