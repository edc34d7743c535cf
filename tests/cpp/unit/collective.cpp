// SPDX-License-Identifier: Apache-2.0
//
// What each collective accepts, refuses and says: checks, sizes, bus factors, fingerprints.
#include "collective/collective.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/error.hpp"

namespace hccomm::collective {
namespace {

using dtype::DType;
using dtype::RedOp;
using plan::Call;
using plan::Collective;
using plan::Group;

Call call_of(Collective collective, std::uint64_t count = 8) {
  Call call;
  call.collective = collective;
  call.type = DType::F32;
  call.count = collective == Collective::Barrier ? 0 : count;
  return call;
}

Group group_of(int rank, int size) { return {.rank = rank, .size = size}; }

std::string refusal(const Call& call, int size = 4, int rank = 0) {
  try {
    check(call, group_of(rank, size));
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), Code::InvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(Collective, EveryOneIsListedUnderItsName) {
  std::set<Collective> seen;
  for (const Descriptor& each : collectives()) {
    EXPECT_STREQ(each.name, plan::name(each.id));
    EXPECT_EQ(refusal(call_of(each.id)), "accepted");
    seen.insert(each.id);
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(plan::kCollectives));
}

TEST(Collective, ARootOutsideTheGroupIsRefused) {
  for (const Collective id :
       {Collective::Broadcast, Collective::Reduce, Collective::Gather, Collective::Scatter}) {
    Call call = call_of(id);
    call.root = 4;
    EXPECT_NE(refusal(call).find("root 4 is outside 0..3; give"), std::string::npos);
    call.root = -1;
    EXPECT_NE(refusal(call).find("root -1 is outside"), std::string::npos);
  }
}

TEST(Collective, AnOperationWithoutMeaningIsRefused) {
  Call call = call_of(Collective::AllReduce);
  call.type = DType::I32;
  call.op = RedOp::Avg;
  EXPECT_EQ(refusal(call),
            "allreduce: avg has no meaning for i32; convert the data or choose another operation");

  call.collective = Collective::Broadcast;  // has none
  EXPECT_EQ(refusal(call), "accepted");
}

TEST(Collective, CountsThatOverflowAreRefused) {
  EXPECT_NE(refusal(call_of(Collective::AllReduce, ~0ull)).find("more than 2^63 bytes"),
            std::string::npos);
  EXPECT_EQ(refusal(call_of(Collective::AllReduce, 1ull << 61)), "accepted");
  EXPECT_NE(refusal(call_of(Collective::AllGather, 1ull << 61)).find("times 4 ranks"),
            std::string::npos);

  Call parts = call_of(Collective::AllGather);
  parts.counts = {1, 1, 1, 2};
  parts.offsets = {0, 1, 2, ~0ull};
  EXPECT_NE(refusal(parts).find("offsets[3]"), std::string::npos);
}

TEST(Collective, PartsNeedOneEntryForEachRank) {
  Call call = call_of(Collective::ReduceScatter);
  call.counts = {1, 2};
  call.offsets = {0, 1};
  EXPECT_NE(refusal(call).find("counts has 2 and offsets 2 entries for 4 ranks; give one"),
            std::string::npos);

  Call none = call_of(Collective::AllReduce);
  none.counts = {1, 2, 3, 4};
  EXPECT_NE(refusal(none).find("all ranks have the same count"), std::string::npos);

  Call odd = call_of(Collective::Gather);
  odd.recv_counts = {1, 2, 3, 4};
  EXPECT_NE(refusal(odd).find("only alltoall receives"), std::string::npos);
}

TEST(Collective, PartsThatOverlapWhereTheyAreWrittenAreRefused) {
  Call call = call_of(Collective::AllGather);
  call.counts = {4, 0, 4, 4};
  call.offsets = {8, 9, 0, 3};
  EXPECT_EQ(refusal(call),
            "allgather: the parts of ranks 2 [0..4) and 3 [3..7) overlap; change offsets");

  call.collective = Collective::Scatter;  // reads them: may overlap
  EXPECT_EQ(refusal(call), "accepted");
  call.in_place = true;
  EXPECT_NE(refusal(call).find("overlap"), std::string::npos);
}

TEST(Collective, AllToAllNeedsTwoBuffersAndOneLengthForItself) {
  Call call = call_of(Collective::AllToAll);
  call.in_place = true;
  EXPECT_NE(refusal(call).find("give a separate output"), std::string::npos);

  call.in_place = false;
  call.counts = call.recv_counts = {1, 2, 3, 4};
  call.offsets = call.recv_offsets = {0, 1, 3, 6};
  EXPECT_EQ(refusal(call, 4, 2), "accepted");
  call.recv_counts[2] = 1;
  EXPECT_NE(refusal(call, 4, 2).find("sends to itself; make them equal"), std::string::npos);
  call.recv_counts.clear();
  EXPECT_NE(refusal(call).find("recv_counts has 0"), std::string::npos);
}

TEST(Collective, ABarrierMovesNothing) {
  Call call = call_of(Collective::Barrier);
  call.count = 1;
  EXPECT_NE(refusal(call).find("give 0"), std::string::npos);
}

TEST(Collective, BuffersAreAsLongAsTheCollectiveSays) {
  const Group root = group_of(0, 4), other = group_of(1, 4);
  EXPECT_EQ(input_count(call_of(Collective::AllReduce), other), 8u);
  EXPECT_EQ(output_count(call_of(Collective::AllGather), other), 32u);
  EXPECT_EQ(input_count(call_of(Collective::ReduceScatter), other), 32u);
  EXPECT_EQ(output_count(call_of(Collective::ReduceScatter), other), 8u);
  EXPECT_EQ(input_count(call_of(Collective::Broadcast), root), 8u);
  EXPECT_EQ(input_count(call_of(Collective::Broadcast), other), 0u);
  EXPECT_EQ(output_count(call_of(Collective::Reduce), other), 0u);
  EXPECT_EQ(output_count(call_of(Collective::Gather), root), 32u);
  EXPECT_EQ(output_count(call_of(Collective::Gather), other), 0u);
  EXPECT_EQ(input_count(call_of(Collective::Scatter), root), 32u);
  EXPECT_EQ(input_count(call_of(Collective::Scatter), other), 0u);
  EXPECT_EQ(output_count(call_of(Collective::Scatter), other), 8u);
  EXPECT_EQ(input_count(call_of(Collective::AllToAll), other), 32u);

  Call parts = call_of(Collective::AllGather);
  parts.counts = {1, 5, 0, 2};
  parts.offsets = {10, 2, 99, 0};
  EXPECT_EQ(input_count(parts, other), 5u);
  EXPECT_EQ(output_count(parts, other), 11u);
  EXPECT_EQ(total_count(parts, other), 8u);
}

TEST(Collective, BusFactorsAreThoseOfNcclTests) {
  EXPECT_DOUBLE_EQ(find(Collective::AllReduce).bus_factor(4), 1.5);
  EXPECT_DOUBLE_EQ(find(Collective::AllGather).bus_factor(4), 0.75);
  EXPECT_DOUBLE_EQ(find(Collective::ReduceScatter).bus_factor(4), 0.75);
  EXPECT_DOUBLE_EQ(find(Collective::AllToAll).bus_factor(4), 0.75);
  EXPECT_DOUBLE_EQ(find(Collective::Broadcast).bus_factor(4), 1);
  EXPECT_DOUBLE_EQ(find(Collective::Reduce).bus_factor(4), 1);
}

TEST(Fingerprint, SaysWhatTheOtherRankCalled) {
  for (const Descriptor& each : collectives()) {
    Call call = call_of(each.id, 1024);
    call.root = each.rooted ? 3 : 0;
    EXPECT_EQ(describe_fingerprint(fingerprint(call)), describe(call));
  }
  EXPECT_EQ(describe(call_of(Collective::AllReduce, 1024)), "allreduce(count=1024, f32, sum)");
  EXPECT_EQ(describe(call_of(Collective::Broadcast, 1024)), "broadcast(count=1024, f32, root=0)");
  EXPECT_EQ(describe(call_of(Collective::Barrier)), "barrier()");
}

TEST(Fingerprint, DiffersWhereTheCallDoes) {
  const Call call = call_of(Collective::Reduce);
  std::vector<Call> others(5, call);
  others[0].collective = Collective::AllReduce;
  others[1].count = 9;
  others[2].type = DType::I32;
  others[3].op = RedOp::Max;
  others[4].root = 1;
  for (const Call& other : others) EXPECT_NE(fingerprint(other), fingerprint(call));
}

TEST(Fingerprint, LeavesOutWhatRanksMayHaveDifferent) {
  Call mine = call_of(Collective::AllToAll, 0), theirs;
  mine.counts = mine.recv_counts = {1, 2};
  mine.offsets = mine.recv_offsets = {0, 1};
  theirs = mine;
  theirs.counts = {7, 7};
  EXPECT_EQ(fingerprint(mine), fingerprint(theirs));
  EXPECT_EQ(describe_fingerprint(fingerprint(mine)), "alltoall(counts by rank, f32)");

  mine.collective = theirs.collective = Collective::AllGather;
  EXPECT_NE(fingerprint(mine), fingerprint(theirs));
  theirs = mine;
  theirs.in_place = true;
  theirs.offsets = {5, 9};
  theirs.op = RedOp::Max;
  theirs.root = 1;
  EXPECT_EQ(fingerprint(mine), fingerprint(theirs));
}

TEST(Fingerprint, HugeCountsAreHashed) {
  const Call huge = call_of(Collective::AllReduce, 1ull << 40);
  const Call other = call_of(Collective::AllReduce, (1ull << 40) + 1);

  EXPECT_NE(fingerprint(huge), fingerprint(other));
  EXPECT_NE(describe_fingerprint(fingerprint(huge)).find("count of 2^35 or more"),
            std::string::npos);
}

TEST(Fingerprint, NonsenseIsNotNamed) {
  EXPECT_NE(describe_fingerprint(0).find("unknown call"), std::string::npos);
  EXPECT_NE(describe_fingerprint(~0ull).find("unknown call"), std::string::npos);
}

}  // namespace
}  // namespace hccomm::collective
