// SPDX-License-Identifier: Apache-2.0
//
// The model of a machine: what single steps cost, and that whole groups behave as the textbook
// says.
#include "plan/simulate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "algorithm/algorithms.hpp"

namespace hccomm::plan {
namespace {

constexpr Machine kMachine{
    .inside = {1e-6, 1e-9}, .across = {1e-5, 1e-8}, .gamma = 0, .eager_bytes = 0};

std::vector<Plan> plans_of(Collective collective, const char* algorithm, int size,
                           std::uint64_t count, std::uint64_t segment,
                           const std::vector<int>& host_of = {}) {
  Call call;
  call.collective = collective;
  call.type = dtype::DType::F32;
  call.count = count;
  std::vector<Plan> plans;
  for (int rank = 0; rank < size; ++rank) {
    Group group{.rank = rank, .size = size, .host_of = host_of};
    if (!host_of.empty()) group.hosts = host_of.back() + 1;
    plans.push_back(algorithm::find(collective, algorithm)->make(call, group, {segment}));
  }
  return plans;
}

TEST(Simulate, AMessageCostsAlphaAndBetaPerByte) {
  const auto plans = plans_of(Collective::Broadcast, "chain", 2, 1000, 0);

  const Simulation inside = simulate(plans, {}, 4, kMachine);
  const Simulation across = simulate(plans, std::vector<int>{0, 1}, 4, kMachine);

  EXPECT_TRUE(inside.complete);
  EXPECT_NEAR(inside.seconds, 1e-6 + 4000e-9, 1e-12);
  EXPECT_NEAR(across.seconds, 1e-5 + 4000e-8, 1e-12);
  EXPECT_EQ(across.bytes_across, 4000u);
  EXPECT_EQ(inside.bytes_across, 0u);
}

TEST(Simulate, AReductionCostsGammaPerByte) {
  Machine machine = kMachine;
  machine.gamma = 1e-9;
  const auto plans = plans_of(Collective::Reduce, "binomial", 2, 1000, 0);

  EXPECT_NEAR(simulate(plans, {}, 4, machine).seconds, 1e-6 + 8000e-9, 1e-12);
}

TEST(Simulate, CountsMessagesAndBytesOfEveryLink) {
  const Simulation ring = simulate(plans_of(Collective::AllReduce, "ring", 4, 400, 0), {}, 4);

  EXPECT_EQ(ring.messages, 4u * 6);
  EXPECT_EQ(ring.bytes, 4u * 6 * 400);
  ASSERT_EQ(ring.links.size(), 4u);
  EXPECT_EQ(ring.links[3].from, 3);
  EXPECT_EQ(ring.links[3].to, 0);
  EXPECT_EQ(ring.links[3].bytes, 6u * 400);
}

TEST(Simulate, PlansThatNeverEndAreSaidSo) {
  auto plans = plans_of(Collective::Broadcast, "chain", 2, 1000, 0);
  plans[1] = Plan{};

  EXPECT_FALSE(simulate(plans, {}, 4, kMachine).complete);
}

TEST(Simulate, SegmentsMakeAChainHardlyLongerThanOneTransfer) {
  const std::uint64_t count = 1 << 20;
  const double whole =
      simulate(plans_of(Collective::Broadcast, "chain", 16, count, 0), {}, 4, kMachine).seconds;
  const double cut =
      simulate(plans_of(Collective::Broadcast, "chain", 16, count, count / 256), {}, 4, kMachine)
          .seconds;

  EXPECT_NEAR(whole, 15 * (1e-6 + 4e-9 * count), 1e-5);
  EXPECT_LT(cut, 1.2 * (4e-9 * count));
}

TEST(Simulate, TwoLevelsSendTheDataAcrossOnce) {
  std::vector<int> host_of;
  for (int rank = 0; rank < 16; ++rank) host_of.push_back(rank / 8);
  const auto bytes_across = [&](const char* algorithm) {
    return simulate(plans_of(Collective::AllReduce, algorithm, 16, 1 << 16, 0, host_of), host_of, 4)
        .bytes_across;
  };

  EXPECT_EQ(bytes_across("two_level"), 2u * 4 * (1 << 16));
  EXPECT_EQ(bytes_across("scatter_gather"), 8 * bytes_across("two_level"));
}

TEST(Simulate, AThousandRanksTakeTheHopsOfTheirAlgorithm) {
  const double hop = kMachine.inside.alpha + 4e-9 * 16;

  const Simulation doubling =
      simulate(plans_of(Collective::AllReduce, "recursive_doubling", 1024, 16, 0), {}, 4, kMachine);
  const Simulation tree =
      simulate(plans_of(Collective::AllReduce, "tree", 1024, 1 << 20, 1 << 14), {}, 4, kMachine);

  EXPECT_TRUE(doubling.complete && tree.complete);
  EXPECT_NEAR(doubling.seconds, 10 * hop, 1e-9);
  EXPECT_LT(tree.seconds, 10 * 4e-9 * (1 << 20));  // recursive doubling takes that
}

TEST(Simulate, ALargeRingTakesTwoLaps) {
  constexpr int kRanks = 500;
  const Simulation ring =
      simulate(plans_of(Collective::AllReduce, "ring", kRanks, kRanks, 0), {}, 4, kMachine);

  EXPECT_TRUE(ring.complete);
  EXPECT_NEAR(ring.seconds, 2 * (kRanks - 1) * (kMachine.inside.alpha + 4e-9), 1e-9);
}

}  // namespace
}  // namespace hccomm::plan
