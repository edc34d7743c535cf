// SPDX-License-Identifier: Apache-2.0
//
// Every algorithm of every collective, proved by plan/check.hpp: any number of ranks, any root, any
// count, in place or not, in parts of unequal length where it takes them, cut into segments or not,
// on any hosts. A new algorithm or collective is covered by being listed.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "algorithm/algorithms.hpp"
#include "collective/collective.hpp"
#include "plan/check.hpp"

namespace hccomm {
namespace {

using algorithm::Algorithm;
using plan::Call;
using plan::Collective;
using plan::Group;

enum class Hosts { One, Blocks, Interleaved, Uneven, Alone };

// host_of for this layout; hosts are numbered by their first rank in all of them.
std::vector<int> host_of(Hosts layout, int size) {
  std::vector<int> hosts;
  for (int rank = 0; rank < size; ++rank) {
    switch (layout) {
      case Hosts::One: hosts.push_back(0); break;
      case Hosts::Blocks: hosts.push_back(rank / std::max(1, (size + 1) / 2)); break;
      case Hosts::Interleaved: hosts.push_back(rank % std::min(size, 2)); break;
      case Hosts::Uneven: hosts.push_back(rank == 0 ? 0 : rank < 3 ? 1 : 2); break;
      case Hosts::Alone: hosts.push_back(rank); break;
    }
  }
  return hosts;
}

std::vector<Group> groups_of(int size, Hosts layout) {
  std::vector<Group> groups;
  const std::vector<int> hosts = host_of(layout, size);
  const int count = *std::max_element(hosts.begin(), hosts.end()) + 1;
  for (int rank = 0; rank < size; ++rank) {
    groups.push_back({.rank = rank, .size = size, .host_of = hosts, .hosts = count});
  }
  return groups;
}

// The violations of the plans this algorithm makes; "refused" where it does not serve the call.
std::string violations(const Algorithm& each, const std::vector<Call>& calls,
                       const std::vector<Group>& groups, std::uint64_t segment) {
  std::vector<plan::Plan> plans;
  bool refused = false;
  for (std::size_t rank = 0; rank < calls.size(); ++rank) {
    collective::check(calls[rank], groups[rank]);
    const bool refuses =
        each.refuses != nullptr && each.refuses(calls[rank], groups[rank]) != nullptr;
    EXPECT_TRUE(rank == 0 || refuses == refused) << "all ranks refuse, or none";
    refused = refuses;
    if (!refused) plans.push_back(each.make(calls[rank], groups[rank], {segment}));
  }
  if (refused) return "refused";
  std::string all;
  for (const std::string& wrong :
       plan::check(calls, groups, plans, collective::find(each.collective).reference)) {
    all += wrong + "\n";
  }
  return all;
}

std::string title(const Algorithm& each, const Call& call, int size, std::uint64_t segment) {
  return std::string(each.name) + " " + collective::describe(call) +
         (call.in_place ? " in place" : "") + " on " + std::to_string(size) + " ranks, root " +
         std::to_string(call.root) + ", segment " + std::to_string(segment);
}

void prove(const Algorithm& each, const std::vector<Call>& calls, const std::vector<Group>& groups,
           std::uint64_t segment) {
  const std::string wrong = violations(each, calls, groups, segment);
  if (wrong == "refused") return;
  EXPECT_EQ(wrong, "") << title(each, calls[0], groups[0].size, segment);
}

std::vector<int> sizes(int most) {
  std::vector<int> all;
  for (int size = 1; size <= most; ++size) all.push_back(size);
  return all;
}

std::vector<std::uint64_t> counts_for(const Algorithm& each, int size) {
  if (each.collective == Collective::Barrier) return {0};
  const auto n = static_cast<std::uint64_t>(size);
  if (plan::same_shape(each.collective)) return {0, 1, n - 1, n, 97, 1000};
  return {0, 1, 7, 40};
}

std::vector<int> roots_for(const Algorithm& each, int size) {
  if (!collective::find(each.collective).rooted) return {0};
  std::vector<int> roots{0, 1, size / 2, size - 1};
  std::sort(roots.begin(), roots.end());
  roots.erase(std::unique(roots.begin(), roots.end()), roots.end());
  std::erase_if(roots, [&](int root) { return root >= size; });
  return roots;
}

bool has_place(Collective collective) {
  return collective != Collective::AllToAll && collective != Collective::Barrier;
}

class Algorithms : public testing::TestWithParam<Algorithm> {
 protected:
  static Call call_of(std::uint64_t count, int root, bool in_place) {
    Call call;
    call.collective = GetParam().collective;
    call.type = dtype::DType::F32;
    call.count = count;
    call.root = root;
    call.in_place = in_place;
    return call;
  }
  static bool may_be_in_place() { return has_place(GetParam().collective); }
};

TEST_P(Algorithms, AreRightForEverySizeRootAndCount) {
  for (const int size : sizes(33)) {
    const std::vector<Group> groups = groups_of(size, Hosts::One);
    for (const std::uint64_t count : counts_for(GetParam(), size)) {
      for (const int root : roots_for(GetParam(), size)) {
        for (const bool in_place : {false, true}) {
          if (in_place && !may_be_in_place()) continue;
          const std::vector<Call> calls(groups.size(), call_of(count, root, in_place));
          prove(GetParam(), calls, groups, count > 90 ? 50 : 0);
        }
      }
      if (HasFailure()) return;
    }
  }
}

TEST_P(Algorithms, AreRightHoweverTheyAreCut) {
  for (const int size : {1, 2, 3, 4, 6, 8, 9}) {
    const std::vector<Group> groups = groups_of(size, Hosts::One);
    for (const std::uint64_t segment : {1, 3, 8, 1000}) {
      for (const bool in_place : {false, true}) {
        if (in_place && !may_be_in_place()) continue;
        const std::uint64_t count = GetParam().collective == Collective::Barrier ? 0 : 64;
        const std::vector<Call> calls(groups.size(), call_of(count, size / 2, in_place));
        prove(GetParam(), calls, groups, segment);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Algorithms, AreRightOnAnyHosts) {
  for (const Hosts layout : {Hosts::Blocks, Hosts::Interleaved, Hosts::Uneven, Hosts::Alone}) {
    for (const int size : {1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 32, 33}) {
      const std::vector<Group> groups = groups_of(size, layout);
      for (const std::uint64_t count : {1, 100, 9000}) {
        if (count == 9000 && (size > 6 || !plan::same_shape(GetParam().collective))) continue;
        for (const bool in_place : {false, true}) {
          if (in_place && !may_be_in_place()) continue;
          const std::uint64_t elements =
              GetParam().collective == Collective::Barrier ? 0 : static_cast<std::uint64_t>(count);
          const std::vector<Call> calls(groups.size(), call_of(elements, 0, in_place));
          prove(GetParam(), calls, groups, count == 9000 ? 2000 : 16);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Whether a call is in place is each rank's own affair.
class AlgorithmsInPlace : public Algorithms {};

TEST_P(AlgorithmsInPlace, AreRightWhereSomeRanksAreAndOthersNot) {
  for (const int size : {2, 3, 4, 7, 8}) {
    for (const Hosts layout : {Hosts::One, Hosts::Uneven, Hosts::Interleaved}) {
      const std::vector<Group> groups = groups_of(size, layout);
      std::vector<Call> calls(groups.size(), call_of(50, size - 1, false));
      for (std::size_t rank = 0; rank < calls.size(); rank += 2) calls[rank].in_place = true;
      prove(GetParam(), calls, groups, 8);
    }
  }
}

class ReducingAlgorithms : public Algorithms {};

TEST_P(ReducingAlgorithms, ScaleAndAverageOnce) {
  for (const dtype::RedOp op : {dtype::RedOp::Avg, dtype::RedOp::PremulSum}) {
    for (const int size : {1, 2, 3, 4, 5, 8, 12}) {
      for (const Hosts layout : {Hosts::One, Hosts::Blocks, Hosts::Uneven}) {
        const std::vector<Group> groups = groups_of(size, layout);
        for (const bool in_place : {false, true}) {
          Call call = call_of(50, size - 1, in_place);
          call.op = op;
          if (GetParam().collective != Collective::Reduce) call.root = 0;
          prove(GetParam(), std::vector<Call>(groups.size(), call), groups, 16);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Parts of unequal length, some empty, with gaps between them and not in the order of the ranks.
std::vector<Call> uneven_calls(Call call, int size) {
  const auto n = static_cast<std::size_t>(size);
  const auto length = [](std::size_t from, std::size_t to) {
    return std::uint64_t{(from * 5 + to * 3) % 7};
  };
  std::vector<Call> calls(n, call);
  for (std::size_t rank = 0; rank < n; ++rank) {
    Call& each = calls[rank];
    each.count = 0;
    const bool all_to_all = call.collective == Collective::AllToAll;
    for (std::size_t peer = 0; peer < n; ++peer) {
      each.counts.push_back(length(all_to_all ? rank : 1, peer));
      each.offsets.push_back((n - 1 - peer) * 9 + 2);
      if (!all_to_all) continue;
      each.recv_counts.push_back(length(peer, rank));
      each.recv_offsets.push_back(((peer + 1) % n) * 8 + 1);
    }
  }
  return calls;
}

class AlgorithmsOfParts : public Algorithms {};

TEST_P(AlgorithmsOfParts, TakePartsOfUnequalLengthOrRefuseThem) {
  for (const int size : {1, 2, 3, 4, 5, 8, 9, 17}) {
    const std::vector<Group> groups = groups_of(size, Hosts::One);
    for (const int root : roots_for(GetParam(), size)) {
      for (const bool in_place : {false, true}) {
        if (in_place && !may_be_in_place()) continue;
        prove(GetParam(), uneven_calls(call_of(0, root, in_place), size), groups, 2);
        if (HasFailure()) return;
      }
    }
  }
}

std::vector<Algorithm> those(bool (*wanted)(Collective)) {
  std::vector<Algorithm> all;
  for (const Algorithm& each : algorithm::algorithms()) {
    if (wanted(each.collective)) all.push_back(each);
  }
  return all;
}

// Those whose plans stay short: hops or messages grow with the logarithm.
class ScalableAlgorithms : public Algorithms {};

TEST_P(ScalableAlgorithms, AreRightForAThousandRanks) {
  std::vector<Group> groups = groups_of(1024, Hosts::One);
  for (Group& group : groups) {
    group.hosts = 128;
    for (std::size_t rank = 0; rank < 1024; ++rank)
      group.host_of[rank] = static_cast<int>(rank / 8);
  }
  const std::uint64_t count = GetParam().collective == Collective::Barrier ? 0
                              : plan::same_shape(GetParam().collective)    ? 100
                                                                           : 2;
  prove(GetParam(), std::vector<Call>(groups.size(), call_of(count, 0, false)), groups, 0);
}

std::vector<Algorithm> scalable() {
  static constexpr std::string_view kShort[] = {"recursive_doubling",
                                                "halving_doubling",
                                                "tree",
                                                "two_level",
                                                "halving",
                                                "binomial",
                                                "bruck",
                                                "chain",
                                                "dissemination"};
  std::vector<Algorithm> all;
  for (const Algorithm& each : algorithm::algorithms()) {
    const bool wanted =
        std::find(std::begin(kShort), std::end(kShort), each.name) != std::end(kShort);
    // An all-to-all has a million parts, whatever the algorithm.
    if (wanted && each.collective != Collective::AllToAll) all.push_back(each);
  }
  return all;
}

bool any(Collective) { return true; }
bool reduces(Collective collective) { return collective::find(collective).reduces; }
bool has_parts(Collective collective) {
  return !plan::same_shape(collective) && collective != Collective::Barrier;
}

std::string name_of(const testing::TestParamInfo<Algorithm>& each) {
  return std::string(plan::name(each.param.collective)) + "_" + each.param.name;
}

INSTANTIATE_TEST_SUITE_P(All, Algorithms, testing::ValuesIn(those(any)), name_of);
INSTANTIATE_TEST_SUITE_P(All, AlgorithmsInPlace, testing::ValuesIn(those(has_place)), name_of);
INSTANTIATE_TEST_SUITE_P(All, ScalableAlgorithms, testing::ValuesIn(scalable()), name_of);
INSTANTIATE_TEST_SUITE_P(All, ReducingAlgorithms, testing::ValuesIn(those(reduces)), name_of);
INSTANTIATE_TEST_SUITE_P(All, AlgorithmsOfParts, testing::ValuesIn(those(has_parts)), name_of);

}  // namespace
}  // namespace hccomm
