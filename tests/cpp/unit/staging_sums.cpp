// SPDX-License-Identifier: Apache-2.0
//
// Sums that end on a device and are made there: the same bits, only where a trial finds that right
// and quicker, and only where neither operand nor sum is wanted on the host.
#include <gtest/gtest.h>

#include "engine/sums.hpp"
#include "support/staged.hpp"
#include "support/summing_device.hpp"

namespace hccomm::test {

using engine::Sums;

static engine::Settings sums_on(Sums where, std::size_t pool = 64 << 20) {
  engine::Settings settings = small_pool(pool);
  settings.staging_sums = where;
  return settings;
}

// One call on the host, then with rank `at` on the device: equal. What the device has summed.
static int sums_of(Cluster& cluster, const Call& call, const char* algorithm, SummingDevice& device,
                   int at = 0) {
  std::vector<Outcome> expected(static_cast<std::size_t>(cluster.size()));
  cluster.run([&](Node& node) {
    expected[static_cast<std::size_t>(node.rank())] =
        perform(node, call, algorithm, nullptr, nullptr);
  });
  // Once more for the trial, which sums, too.
  int before = 0;
  for (int round = 0; round < 2; ++round) {
    before = device.sums;
    cluster.run([&](Node& node) {
      TestDevice* const here = node.rank() == at ? &device : nullptr;
      const Outcome outcome = perform(node, call, algorithm, here, here);
      const Outcome& wanted = expected[static_cast<std::size_t>(node.rank())];
      ASSERT_TRUE(outcome.status.ok()) << algorithm << ": " << outcome.status.text();
      ASSERT_EQ(outcome.input, wanted.input) << algorithm << " rank " << node.rank();
      ASSERT_EQ(outcome.output, wanted.output) << algorithm << " rank " << node.rank();
    });
  }
  return device.sums - before;
}

class SumsOver : public testing::TestWithParam<const char*> {};

TEST_P(SumsOver, EveryReductionGivesWhatItGivesOnTheHost) {
  SummingDevice device("alpha");
  for (const int ranks : {2, 3, 4}) {
    Cluster cluster(GetParam(), ranks, sums_on(Sums::Device));
    for (const algorithm::Algorithm& each : algorithm::algorithms()) {
      if (std::string_view(each.name) == "two_level") continue;  // wants hosts
      const Collective all[] = {Collective::AllReduce, Collective::Reduce,
                                Collective::ReduceScatter};
      if (std::ranges::find(all, each.collective) == std::end(all)) continue;
      for (const bool in_place : {false, true}) {
        for (const std::uint64_t count : {7ull, 20'001ull}) {
          const Call call = call_of(each.collective, count, in_place, 1);
          plan::Group group;
          group.size = ranks;
          if (each.refuses != nullptr && each.refuses(call, group) != nullptr) continue;
          SCOPED_TRACE(std::string(each.name) + " among " + std::to_string(ranks));
          sums_of(cluster, call, each.name, device, 1);
        }
      }
    }
  }
}

TEST_P(SumsOver, WhatStaysOnTheDeviceIsSummedThere) {
  SummingDevice device("alpha");
  Cluster two(GetParam(), 2, sums_on(Sums::Device)), four(GetParam(), 4, sums_on(Sums::Device));
  for (const bool in_place : {false, true}) {
    EXPECT_GT(sums_of(two, call_of(Collective::Reduce, 9000, in_place), "direct", device), 0);
    EXPECT_GT(sums_of(two, call_of(Collective::Reduce, 9000, in_place), "binomial", device), 0);
    for (Cluster* each : {&two, &four}) {
      EXPECT_GT(sums_of(*each, call_of(Collective::ReduceScatter, 9000, in_place), "ring", device),
                0);
    }
  }
}

TEST_P(SumsOver, WhatGoesOnOverTheWireIsSummedOnTheHost) {
  SummingDevice device("alpha");
  Cluster cluster(GetParam(), 2, sums_on(Sums::Device));

  EXPECT_EQ(sums_of(cluster, call_of(Collective::AllReduce, 9000, true), "ring", device), 0);
  EXPECT_EQ(sums_of(cluster, call_of(Collective::Reduce, 9000, true, 1), "direct", device), 0);
}

TEST_P(SumsOver, AFullPoolLeavesThemToTheHost) {
  SummingDevice device("alpha");
  Cluster cluster(GetParam(), 2, sums_on(Sums::Device, 1 << 20));

  EXPECT_EQ(sums_of(cluster, call_of(Collective::Reduce, 400'000, true), "direct", device), 0);
}

TEST_P(SumsOver, ALostDeviceFailsAllRanks) {
  SummingDevice device("alpha");
  Cluster cluster(GetParam(), 2, sums_on(Sums::Device));
  const Call call = call_of(Collective::ReduceScatter, 50'000, false);
  sums_of(cluster, call, "ring", device);

  device.copies_left = 20;

  cluster.run([&](Node& node) {
    TestDevice* const here = node.rank() == 0 ? &device : nullptr;
    Status status;
    for (int k = 0; k < 20 && status.ok(); ++k) {
      status = perform(node, call, "ring", here, here).status;
    }
    EXPECT_EQ(status.code(), Code::System) << status.text();
    EXPECT_NE(status.text().find("alpha"), std::string::npos) << status.text();
  });
}

INSTANTIATE_TEST_SUITE_P(Transports, SumsOver, testing::Values("inproc", "shm", "tcp"));

// ---- which way is taken -----------------------------------------------------------------------

static std::string told(Cluster& cluster) {
  const auto reports = cluster[0].engine().devices();
  return reports.empty() ? std::string() : reports[0].text;
}

TEST(WhereSumsAreMade, OnTheHostWhereTheDeviceIsSlower) {
  SummingDevice slow("alpha", 20e-3);
  Cluster cluster("inproc", 2, sums_on(Sums::Auto));

  EXPECT_EQ(sums_of(cluster, call_of(Collective::Reduce, 9000, true), "direct", slow), 0);
  EXPECT_NE(told(cluster).find("sums on the host, quicker in a trial"), std::string::npos)
      << told(cluster);
}

TEST(WhereSumsAreMade, OnTheDeviceWhereThatIsQuicker) {
  SummingDevice quick("alpha", 0, 20e-3);  // the host's way takes two copies
  Cluster cluster("inproc", 2, sums_on(Sums::Auto));

  EXPECT_GT(sums_of(cluster, call_of(Collective::Reduce, 9000, true), "direct", quick), 0);
  EXPECT_NE(told(cluster).find("sums that end on it made there"), std::string::npos)
      << told(cluster);
}

TEST(WhereSumsAreMade, OnTheHostWhereTheDevicesBitsDiffer) {
  SummingDevice wrong("alpha", 0, 0, false);
  Cluster cluster("inproc", 2, sums_on(Sums::Device));

  EXPECT_EQ(sums_of(cluster, call_of(Collective::Reduce, 9000, true), "direct", wrong), 0);
  EXPECT_NE(told(cluster).find("differ in bits"), std::string::npos) << told(cluster);
}

TEST(WhereSumsAreMade, OnTheHostWhereASettingSaysSo) {
  SummingDevice device("alpha");
  Cluster cluster("inproc", 2, sums_on(Sums::Host));

  EXPECT_EQ(sums_of(cluster, call_of(Collective::Reduce, 9000, true), "direct", device), 0);
  EXPECT_EQ(device.sums, 0);
  EXPECT_NE(told(cluster).find("HCCOMM_STAGING_SUMS=host"), std::string::npos) << told(cluster);
}

TEST(WhereSumsAreMade, OnTheHostWhereTheDeviceHasNotTheOperation) {
  SummingDevice device("alpha");
  Cluster cluster("inproc", 2, sums_on(Sums::Device));
  Call call = call_of(Collective::Reduce, 9000, true);
  call.op = dtype::RedOp::Max;

  EXPECT_EQ(sums_of(cluster, call, "direct", device), 0);
  EXPECT_NE(told(cluster).find("it adds i64 alone"), std::string::npos) << told(cluster);
}

TEST(WhereSumsAreMade, OnTheHostWhereTheAdapterHasNone) {
  TestDevice device("alpha");
  Cluster cluster("inproc", 2, sums_on(Sums::Device));

  cluster.run([&](Node& node) {
    TestDevice* const here = node.rank() == 0 ? &device : nullptr;
    EXPECT_TRUE(
        perform(node, call_of(Collective::Reduce, 9000, true), "direct", here, here).status.ok());
  });

  EXPECT_NE(told(cluster).find("this adapter has no reduction"), std::string::npos)
      << told(cluster);
}

TEST(SumTrial, InterpolatesBetweenTheSizesThatItHasSeen) {
  engine::SumTrial trial;
  trial.host[0] = 20e-6, trial.host[1] = 400e-6;
  trial.device[0] = 60e-6, trial.device[1] = 200e-6;

  EXPECT_FALSE(trial.quicker(4096));
  EXPECT_FALSE(trial.quicker(64 << 10));
  EXPECT_TRUE(trial.quicker(1 << 20));
  EXPECT_TRUE(trial.quicker(16 << 20));
}

}  // namespace hccomm::test
