// SPDX-License-Identifier: Apache-2.0
//
// The builder: which step waits for which, where an unwritten Output is read from, what take()
// adds.
#include "plan/builder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace hccomm::plan {
namespace {

using Ids = std::vector<std::uint32_t>;

Call allreduce(std::uint64_t count, bool in_place) {
  Call call;
  call.collective = Collective::AllReduce;
  call.type = dtype::DType::F32;
  call.count = count;
  call.in_place = in_place;
  return call;
}

Group group(int rank, int size) { return {.rank = rank, .size = size}; }

Slice output(std::uint64_t offset, std::uint64_t count) { return {offset, count, Space::Output}; }
Slice input(std::uint64_t offset, std::uint64_t count) { return {offset, count, Space::Input}; }

// The steps that wait for step `id`.
Ids waiting(const Plan& plan, std::uint32_t id) {
  const Step& step = plan.steps[id];
  const auto first = plan.edges.begin() + step.first_dependent;
  return {first, first + step.dependents};
}

TEST(Builder, AReadWaitsForTheLastWriter) {
  Builder steps(allreduce(8, true), group(0, 3));
  steps.recv(1, output(0, 8));
  steps.send(2, output(2, 4));

  const Plan plan = steps.take("test");

  EXPECT_EQ(waiting(plan, 0), Ids{1});
  EXPECT_EQ(plan.steps[1].dependencies, 1u);
}

TEST(Builder, AWriteWaitsForTheReadersSinceTheLastWrite) {
  Builder steps(allreduce(8, true), group(0, 3));
  steps.recv(1, output(0, 8));
  steps.send(1, output(0, 4));
  steps.send(2, output(4, 4));
  steps.recv(2, output(2, 4));

  const Plan plan = steps.take("test");

  EXPECT_EQ(waiting(plan, 0), (Ids{1, 2}));  // the last receive waits for it through the sends
  EXPECT_EQ(waiting(plan, 1), Ids{3});
  EXPECT_EQ(waiting(plan, 2), Ids{3});
}

TEST(Builder, AWriteWaitsForTheWriteThatNobodyRead) {
  Builder steps(allreduce(8, true), group(0, 3));
  steps.recv(1, output(0, 8));
  steps.recv(2, output(4, 2));

  const Plan plan = steps.take("test");

  EXPECT_EQ(waiting(plan, 0), Ids{1});
}

TEST(Builder, DisjointStepsWaitForNothing) {
  Builder steps(allreduce(8, true), group(0, 3));
  steps.recv(1, output(0, 4));
  steps.recv(1, output(4, 4));
  steps.send(2, input(0, 0));

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 2u);
  EXPECT_TRUE(plan.edges.empty());
}

TEST(Builder, InPlaceAnInputIsItsPlaceInTheLargeBuffer) {
  Call call = allreduce(4, true);
  call.collective = Collective::AllGather;
  Builder steps(call, group(1, 3));
  steps.send(2, input(0, 4));
  steps.recv(0, output(4, 4));  // rank 1's own part
  steps.recv(0, output(0, 4));

  const Plan plan = steps.take("test");

  EXPECT_EQ(waiting(plan, 0), Ids{1});
}

TEST(Builder, InPlaceAnOutputIsItsPlaceInTheLargeInput) {
  Call call = allreduce(0, true);
  call.collective = Collective::ReduceScatter;
  call.counts = {2, 3, 4};
  call.offsets = {10, 20, 30};
  Builder steps(call, group(1, 3));
  steps.send(0, input(20, 3));
  steps.send(0, input(30, 4));
  steps.recv(0, output(0, 3));

  const Plan plan = steps.take("test");

  EXPECT_EQ(waiting(plan, 0), Ids{2});
  EXPECT_TRUE(waiting(plan, 1).empty());
}

TEST(Builder, OutOfPlaceInputAndOutputAreApart) {
  Call call = allreduce(4, false);
  call.collective = Collective::AllGather;
  Builder steps(call, group(1, 3));
  steps.send(2, input(0, 4));
  steps.recv(0, output(4, 4));

  EXPECT_TRUE(steps.take("test").edges.empty());
}

TEST(Builder, AnUnwrittenOutputIsReadFromTheInput) {
  Builder steps(allreduce(8, false), group(0, 2));
  steps.send(1, output(0, 4));
  steps.recv_reduce(1, output(4, 4));

  const Plan plan = steps.take("test");

  EXPECT_EQ(plan.steps[0].src, input(0, 4));
  EXPECT_EQ(plan.steps[1].src, input(4, 4));
  EXPECT_EQ(plan.steps[1].dst, output(4, 4));
}

TEST(Builder, APartlyWrittenOutputIsCompletedBeforeItIsRead) {
  Builder steps(allreduce(8, false), group(0, 2));
  steps.recv(1, output(2, 4));
  steps.send(1, output(0, 8));

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 4u);
  EXPECT_EQ(plan.steps[1].kind, Kind::Copy);
  EXPECT_EQ(plan.steps[1].dst, output(0, 2));
  EXPECT_EQ(plan.steps[1].src, input(0, 2));
  EXPECT_EQ(plan.steps[2].dst, output(6, 2));
  EXPECT_EQ(plan.steps[3].src, output(0, 8));
  EXPECT_EQ(plan.steps[3].dependencies, 3u);
}

TEST(Builder, TakeCopiesWhatWasNeverTouchedInOnePiece) {
  Builder steps(allreduce(10, false), group(0, 2));
  steps.send(1, output(0, 3));
  steps.send(1, output(3, 4));
  steps.recv(1, output(8, 2));

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 4u);
  EXPECT_EQ(plan.steps[3].kind, Kind::Copy);
  EXPECT_EQ(plan.steps[3].dst, output(0, 8));
  EXPECT_EQ(plan.steps[3].src, input(0, 8));
}

TEST(Builder, InPlaceTakeCopiesNothing) {
  Builder steps(allreduce(10, true), group(0, 1));

  EXPECT_TRUE(steps.take("test").steps.empty());
}

TEST(Builder, ACopyOntoItselfIsNothing) {
  Call call = allreduce(4, true);
  call.collective = Collective::AllGather;
  Builder steps(call, group(2, 3));
  steps.copy(output(8, 4), input(0, 4));

  EXPECT_TRUE(steps.take("test").steps.empty());
}

TEST(Builder, OffTheRootOfAReduceTheOutputIsScratch) {
  Call call = allreduce(6, true);
  call.collective = Collective::Reduce;
  call.root = 1;
  Builder steps(call, group(0, 3));
  steps.recv_reduce(2, output(0, 6));
  steps.send(1, output(0, 6));

  const Plan plan = steps.take("test");

  EXPECT_EQ(plan.scratch_count, 6u);
  EXPECT_EQ(plan.steps[0].src, input(0, 6));
  EXPECT_EQ(plan.steps[0].dst, (Slice{0, 6, Space::Scratch}));
  EXPECT_EQ(plan.steps[1].src, (Slice{0, 6, Space::Scratch}));
}

TEST(Builder, TheLowerRankIsTheLeftOperand) {
  Builder steps(allreduce(6, true), group(1, 3));
  steps.recv_reduce(0, output(0, 3));
  steps.recv_reduce(2, output(3, 3));

  const Plan plan = steps.take("test");

  EXPECT_TRUE(plan.steps[0].received_first);
  EXPECT_FALSE(plan.steps[1].received_first);
}

TEST(Builder, MessagesAreNumberedByPeerAndFoundByTheirNumber) {
  Builder steps(allreduce(6, true), group(1, 4));
  steps.recv(3, output(0, 1));
  steps.recv(0, output(1, 1));
  steps.send(3, output(2, 1));
  steps.recv(3, output(3, 1));
  steps.send(2, output(4, 1));
  steps.send(3, output(5, 1));

  const Plan plan = steps.take("test");

  EXPECT_EQ(plan.outlets, (std::vector<std::int32_t>{2, 3}));
  ASSERT_EQ(plan.inlets.size(), 2u);
  EXPECT_EQ(plan.inlets[0].peer, 0);
  EXPECT_EQ(plan.inlets[1].peer, 3);
  EXPECT_EQ(plan.inlets[1].first, 1u);
  EXPECT_EQ(plan.inlets[1].count, 2u);
  EXPECT_EQ(plan.recv_steps, (Ids{1, 0, 3}));
  EXPECT_EQ(plan.steps[5].index, 1u);
}

TEST(Builder, StepsOfNoElementsVanishButSignalsDoNot) {
  Builder steps(allreduce(6, true), group(0, 2));
  steps.send(1, output(6, 0));
  steps.copy(output(0, 0), input(0, 0));
  steps.signal(1);
  steps.await(1);

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 2u);
  EXPECT_EQ(plan.steps[0].kind, Kind::Send);
  EXPECT_EQ(plan.steps[0].src.count, 0u);
  EXPECT_EQ(plan.steps[1].kind, Kind::Recv);
}

TEST(Builder, AfterAFenceEveryStepWaitsForAllBefore) {
  Builder steps(allreduce(6, true), group(0, 2));
  steps.signal(1);
  steps.await(1);
  steps.fence();
  steps.signal(1);
  steps.await(1);

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 5u);  // the third joins the first two
  EXPECT_EQ(waiting(plan, 0), Ids{2});
  EXPECT_EQ(waiting(plan, 1), Ids{2});
  EXPECT_EQ(waiting(plan, 2), (Ids{3, 4}));
}

TEST(Builder, AFenceAfterOneStepAddsNone) {
  Builder steps(allreduce(6, true), group(0, 2));
  steps.recv(1, output(0, 6));
  steps.fence();
  steps.fence();
  steps.signal(1);

  const Plan plan = steps.take("test");

  ASSERT_EQ(plan.steps.size(), 2u);
  EXPECT_EQ(waiting(plan, 0), Ids{1});
}

TEST(Builder, PremultiplyAndAverageAreStepsOnlyForTheirOperation) {
  Call call = allreduce(6, false);
  Builder plain(call, group(0, 2));
  plain.premultiply(output(0, 6));
  plain.average(output(0, 6));
  EXPECT_EQ(plain.take("test").steps.size(), 1u);  // only the copy of what nothing touched

  call.op = dtype::RedOp::PremulSum;
  Builder scaled(call, group(0, 2));
  scaled.premultiply(output(0, 6));
  const Plan plan = scaled.take("test");
  ASSERT_EQ(plan.steps.size(), 1u);
  EXPECT_EQ(plan.steps[0].kind, Kind::Multiply);
  EXPECT_EQ(plan.steps[0].src, input(0, 6));
  EXPECT_EQ(plan.steps[0].dst, output(0, 6));
}

TEST(Builder, ALongSegmentedChainHasEdgesLinearInItsSteps) {
  constexpr std::uint64_t kSegments = 20000, kSegment = 16;
  Builder steps(allreduce(kSegments * kSegment, false), group(1, 4));
  for (std::uint64_t round = 0; round < 3; ++round) {
    for (std::uint64_t k = 0; k < kSegments; ++k) {
      const Slice segment = output(k * kSegment, kSegment);
      steps.send(2, segment);
      steps.recv_reduce(0, segment);
    }
  }

  const Plan plan = steps.take("test");

  EXPECT_EQ(plan.steps.size(), 6 * kSegments);
  EXPECT_LE(plan.edges.size(), 2 * plan.steps.size());
}

TEST(BuilderDeathTest, RefusesWhatOnlyABugCouldAskFor) {
  Builder steps(allreduce(6, true), group(0, 2));

  EXPECT_DEATH(steps.send(0, output(0, 1)), "own rank");
  EXPECT_DEATH(steps.send(1, output(3, 4)), "inside its buffer");
  EXPECT_DEATH(steps.send(2, output(0, 1)), "rank of the group");
  EXPECT_DEATH(steps.copy(output(0, 2), input(0, 1)), "length");
}

}  // namespace
}  // namespace hccomm::plan
