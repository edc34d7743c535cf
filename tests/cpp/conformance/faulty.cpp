// SPDX-License-Identifier: Apache-2.0
//
// Every algorithm of every collective over a transport that does harm (support/faulty.hpp): frames
// that are late change nothing; one that is lost, overtaken or a link that is cut is an error with
// a name on every rank, by the deadline, and never a wrong result. A new algorithm is covered by
// being listed.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "algorithm/algorithms.hpp"
#include "collective/collective.hpp"
#include "plan/shape.hpp"
#include "support/cluster.hpp"

namespace hccomm::test {
namespace {

constexpr int kRanks = 4;
constexpr std::uint64_t kCount = 64, kSegment = 16;  // several frames to a message
constexpr Seconds kPatience{30}, kShort{0.4};

using Row = std::vector<std::int64_t>;

class FaultyTransportUnder : public testing::TestWithParam<algorithm::Algorithm> {
 protected:
  static plan::Call call() {
    plan::Call call;
    call.collective = GetParam().collective;
    call.type = dtype::DType::I64;
    call.count = call.collective == plan::Collective::Barrier ? 0 : kCount;
    return call;
  }
  static plan::Group group_of(int rank) {
    return {.rank = rank, .size = kRanks, .host_of = {0, 0, 1, 1}, .hosts = 2};
  }
  static bool refuses() {
    return GetParam().refuses != nullptr && GetParam().refuses(call(), group_of(0)) != nullptr;
  }
  static std::shared_ptr<const engine::Recipe> recipe(int rank) {
    auto recipe = std::make_shared<engine::Recipe>();
    recipe->plan = GetParam().make(call(), group_of(rank), {kSegment});
    recipe->element_bytes = sizeof(std::int64_t);
    recipe->reduce = dtype::reduce(dtype::DType::I64, dtype::RedOp::Sum);
    recipe->reduce_many = dtype::reduce_many(dtype::DType::I64, dtype::RedOp::Sum);
    recipe->fingerprint = collective::fingerprint(call());
    recipe->what = collective::describe(call());
    engine::finish_recipe(*recipe);
    return recipe;
  }
  static Row input_of(int rank) {
    Row row(std::max<std::uint64_t>(1, plan::input_count(call(), group_of(rank))));
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = (rank + 1) * 10'000 + static_cast<std::int64_t>(i);
    }
    return row;
  }
  // Where the result is wrong, or nothing.
  static std::string wrong(int rank, const Row& out) {
    const std::vector<plan::Call> calls(kRanks, call());
    for (const plan::Piece& piece :
         collective::find(call().collective).reference(calls, group_of(rank))) {
      for (std::uint64_t i = 0; i < piece.count; ++i) {
        std::int64_t expected = 0;
        for (const plan::Origin& from : piece.origins) {
          expected += input_of(from.rank)[from.offset + i];
        }
        if (out[piece.offset + i] == expected) continue;
        return text("rank ", rank, ", element ", piece.offset + i, ": ", out[piece.offset + i],
                    ", not ", expected);
      }
    }
    return "";
  }
  // Once on this rank; a result that is said to be there must be right.
  static Status once(Node& node, Seconds timeout) {
    Row in = input_of(node.rank());
    Row out(std::max<std::uint64_t>(1, plan::output_count(call(), group_of(node.rank()))), -1);
    const Status status = node.engine().run(
        node.context(), {recipe(node.rank()), reinterpret_cast<std::byte*>(in.data()),
                         reinterpret_cast<std::byte*>(out.data()), 1.0, timeout});
    if (status.ok()) {
      EXPECT_EQ(wrong(node.rank(), out), "");
    }
    return status;
  }
  // Does `deed` to one frame of the job; then every rank must fail in one of these ways.
  static void expect_error(const char* transport, Deed deed, Seconds timeout,
                           const std::set<Code>& allowed) {
    static constexpr int kFrame = 3;
    Cluster cluster(transport, kRanks);
    cluster.run([](Node& node) { EXPECT_TRUE(once(node, kPatience).ok()); });
    const auto seen = std::make_shared<std::atomic<int>>(0);
    for (int rank = 0; rank < kRanks; ++rank) {
      cluster[rank].mischief().on_send([=](const wire::Header& header) {
        return header.type == wire::Type::Data && (*seen)++ == kFrame ? deed : Deed::Pass;
      });
    }
    cluster.run([&](Node& node) {
      const Deadline end = Deadline::after(kPatience);
      Status status;
      while (status.ok() && !end.passed()) status = once(node, timeout);  // some need nothing of it
      EXPECT_TRUE(allowed.contains(status.code()))
          << "rank " << node.rank() << ": " << name(status.code()) << ": " << status.text();
      EXPECT_NE(status.text(), "");
    });
  }
};

// One algorithm of each collective: these take longer.
class FaultyTransportUnderCollectives : public FaultyTransportUnder {};

TEST_P(FaultyTransportUnder, LateFramesChangeNothing) {
  if (refuses()) GTEST_SKIP() << "it does not serve this call";
  Cluster cluster("faulty-inproc", kRanks);
  for (int rank = 0; rank < kRanks; ++rank) {
    cluster[rank].mischief().on_send([n = rank](const wire::Header&) mutable {
      return ++n % 3 == 0 ? Deed::Delay : Deed::Pass;
    });
  }
  cluster.run([](Node& node) {
    const Status status = once(node, kPatience);
    EXPECT_TRUE(status.ok()) << status.text();
  });
}

TEST_P(FaultyTransportUnderCollectives, ACutLinkLosesARankForAll) {
  if (refuses()) GTEST_SKIP() << "it does not serve this call";
  expect_error("faulty-inproc", Deed::Cut, kPatience, {Code::PeerLost});
}

TEST_P(FaultyTransportUnderCollectives, ALostFrameEndsAtTheDeadline) {
  if (refuses()) GTEST_SKIP() << "it does not serve this call";
  expect_error("faulty-inproc", Deed::Drop, kShort, {Code::Timeout});
}

TEST_P(FaultyTransportUnderCollectives, ALostFrameIsNamedWhereFramesAreChecked) {
  if (refuses()) GTEST_SKIP() << "it does not serve this call";
  expect_error("sealed-faulty-inproc", Deed::Drop, kShort, {Code::Integrity, Code::Timeout});
}

TEST_P(FaultyTransportUnderCollectives, AnOvertakenFrameIsNamedWhereFramesAreChecked) {
  if (refuses()) GTEST_SKIP() << "it does not serve this call";
  expect_error("sealed-faulty-inproc", Deed::Swap, kShort, {Code::Integrity, Code::Timeout});
}

std::string name_of(const testing::TestParamInfo<algorithm::Algorithm>& info) {
  return text(plan::name(info.param.collective), "_", info.param.name);
}

std::vector<algorithm::Algorithm> first_of_each() {
  std::vector<algorithm::Algorithm> found;
  std::set<plan::Collective> seen;
  for (const algorithm::Algorithm& each : algorithm::algorithms()) {
    if (seen.insert(each.collective).second) found.push_back(each);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(All, FaultyTransportUnder, testing::ValuesIn(algorithm::algorithms()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(All, FaultyTransportUnderCollectives, testing::ValuesIn(first_of_each()),
                         name_of);

}  // namespace
}  // namespace hccomm::test
