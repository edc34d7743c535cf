// SPDX-License-Identifier: Apache-2.0
//
// HCCOMM_ALGO: what its text means, and how a wrong one is refused.
#include "select/rules.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace hccomm::select {
namespace {

using plan::Collective;

std::string found(const Rules& rules, Collective collective, std::uint64_t bytes) {
  const Rule* rule = rules.find(collective, bytes);
  return rule == nullptr ? "none" : rule->algorithm->name;
}

std::string refusal(const char* given) {
  try {
    Rules::parse(given);
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), Code::InvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(Rules, RangesIncludeTheirBeginningAndExcludeTheirEnd) {
  const Rules rules = Rules::parse("allreduce:0-8K tree,8K- ring");

  EXPECT_EQ(found(rules, Collective::AllReduce, 0), "tree");
  EXPECT_EQ(found(rules, Collective::AllReduce, 8191), "tree");
  EXPECT_EQ(found(rules, Collective::AllReduce, 8192), "ring");
  EXPECT_EQ(found(rules, Collective::AllReduce, 1ull << 40), "ring");
  EXPECT_EQ(found(rules, Collective::Broadcast, 0), "none");
}

TEST(Rules, NoRangeMeansAllSizesAndBlanksDoNotMatter) {
  const Rules rules = Rules::parse("  broadcast : chain ;allgather:-1M  bruck, 1M-2M   ring; ");

  EXPECT_EQ(found(rules, Collective::Broadcast, 12345), "chain");
  EXPECT_EQ(found(rules, Collective::AllGather, 100), "bruck");
  EXPECT_EQ(found(rules, Collective::AllGather, 1 << 20), "ring");
  EXPECT_EQ(found(rules, Collective::AllGather, 2 << 20), "none");
}

TEST(Rules, PythonsNamesOfCollectivesAreUnderstood) {
  const Rules rules = Rules::parse("all_reduce:ring;all_to_all:direct");

  EXPECT_EQ(found(rules, Collective::AllReduce, 10), "ring");
  EXPECT_EQ(found(rules, Collective::AllToAll, 10), "direct");
  EXPECT_THROW(Rules::parse("all_reduc:ring"), Error);
  EXPECT_THROW(Rules::parse("all_reducer:ring"), Error);
}

TEST(Rules, TheFirstRangeThatHoldsWins) {
  const Rules rules = Rules::parse("allreduce:0-4K direct,ring");

  EXPECT_EQ(found(rules, Collective::AllReduce, 10), "direct");
  EXPECT_EQ(found(rules, Collective::AllReduce, 4096), "ring");
}

TEST(Rules, ASizeThatNotAllRanksKnowFallsUnderRulesForAllSizesOnly) {
  const Rules rules = Rules::parse("alltoall:0-1M direct,pairwise;gather:1K- direct");

  EXPECT_EQ(found(rules, Collective::AllToAll, kNoLimit), "pairwise");
  EXPECT_EQ(found(rules, Collective::Gather, kNoLimit), "none");
}

TEST(Rules, NothingIsNoRule) {
  EXPECT_TRUE(Rules::parse("").empty());
  EXPECT_TRUE(Rules::parse(" ; ").empty());
}

TEST(Rules, AWrongTextIsRefusedWithItsPlaceAndARemedy) {
  EXPECT_EQ(refusal("allreduce:0-8K tre"),
            "HCCOMM_ALGO=\"allreduce:0-8K tre\", character 16: \"tre\" is no algorithm for "
            "allreduce; give one of direct, star, scatter_gather, ring, tree, recursive_doubling, "
            "halving_doubling, two_level");
  EXPECT_NE(refusal("broadcast:chain;alreduce:ring")
                .find("character 17: \"alreduce\" is no "
                      "collective; give one of allreduce"),
            std::string::npos);
  EXPECT_NE(refusal("allreduce:8X- ring").find("character 11: size=\"8X\""), std::string::npos);
  EXPECT_NE(refusal("allreduce:8K-8K ring").find("holds no size"), std::string::npos);
  EXPECT_NE(refusal("allreduce:8K ring").find("is no range of sizes; write"), std::string::npos);
  EXPECT_NE(refusal("ring").find("names no collective; write"), std::string::npos);
  EXPECT_NE(refusal("allreduce:ring,").find("is missing; write"), std::string::npos);
  EXPECT_NE(refusal("allreduce:0-8K").find("is no algorithm"), std::string::npos);
}

}  // namespace
}  // namespace hccomm::select
