// SPDX-License-Identifier: Apache-2.0
//
// Two-level allreduce for several hosts: what can be reduced inside a host is, so that only one
// copy of the data leaves it. Where all hosts have as many ranks, each rank owns a chunk: the hosts
// scatter and reduce chunks inside, the owners of the same chunk allreduce across, the hosts gather
// inside; every rank's way out of the host is used. Where they have not, a leader does it for its
// host. The ranks of a host may be any, in any order.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

namespace {

constexpr std::uint64_t kSmallElements = 8192;  // across: exchanges of everything up to here
constexpr int kFewRanks = 8;                    // inside: one hop up to here

// The ranks of every host, hosts in order of their first rank.
std::vector<std::vector<int>> ranks_by_host(const plan::Group& group) {
  std::vector<std::vector<int>> hosts(static_cast<std::size_t>(group.hosts));
  for (int rank = 0; rank < group.size; ++rank) {
    hosts[static_cast<std::size_t>(group.host_of[static_cast<std::size_t>(rank)])].push_back(rank);
  }
  return hosts;
}

Team team_of(std::vector<int> ranks, int rank) {
  const auto at = std::find(ranks.begin(), ranks.end(), rank);
  Team team{static_cast<int>(ranks.size()), static_cast<int>(at - ranks.begin()), {}, 0};
  team.ranks = std::move(ranks);
  return team;
}

// The ranks with this place in their hosts.
Team across(const std::vector<std::vector<int>>& hosts, int place, int rank) {
  std::vector<int> ranks;
  for (const auto& host : hosts) ranks.push_back(host[static_cast<std::size_t>(place)]);
  return team_of(std::move(ranks), rank);
}

void allreduce(plan::Builder& steps, const Team& team, plan::Slice data, const Tuning& tuning) {
  if (data.count <= kSmallElements) {
    recursive_doubling(steps, team, data);
  } else {
    ring(steps, team, data, tuning);
  }
}

void by_chunks(plan::Builder& steps, const Team& inside, const Team& outside, plan::Slice data,
               const Tuning& tuning) {
  const plan::Slice longest = chunk(data, 0, inside.size);
  const std::uint64_t last = segments(longest.count, tuning);
  const Slots slots(steps, inside, longest, tuning);
  for (std::uint64_t index = 0; index < last; ++index) {
    scatter_segment(steps, inside, data, slots, index, tuning);
  }
  allreduce(steps, outside, chunk(data, inside.me, inside.size), tuning);
  for (std::uint64_t index = 0; index < last; ++index) {
    gather_segment(steps, inside, data, index, tuning);
  }
}

void reduce_to_leader(plan::Builder& steps, const Team& inside, plan::Slice data,
                      const Tuning& tuning) {
  if (inside.size > kFewRanks) return binomial_reduce(steps, inside, data, tuning);
  const Slots slots(steps, inside.me == 0 ? inside : Team{}, data, tuning);
  for (std::uint64_t index = 0; index < segments(data.count, tuning); ++index) {
    const plan::Slice piece = segment(data, index, tuning);
    if (inside.me == 0) collect(steps, inside, piece, piece, slots, index);
    if (inside.me != 0) steps.send(inside.at(0), piece);
  }
}

void by_leaders(plan::Builder& steps, const Team& inside, const Team& leaders, plan::Slice data,
                const Tuning& tuning) {
  reduce_to_leader(steps, inside, data, tuning);
  if (inside.me == 0) allreduce(steps, leaders, data, tuning);
  binomial_broadcast(steps, inside, data, tuning);
}

}  // namespace

static plan::Plan two_level(const plan::Call& call, const plan::Group& group,
                            const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const auto hosts = ranks_by_host(group);
  const auto& mine =
      hosts[static_cast<std::size_t>(group.host_of[static_cast<std::size_t>(group.rank)])];
  const Team inside = team_of(mine, group.rank);
  const bool alike = std::all_of(hosts.begin(), hosts.end(),
                                 [&](const auto& host) { return host.size() == mine.size(); });
  steps.premultiply(all);
  if (alike) {
    by_chunks(steps, inside, across(hosts, inside.me, group.rank), all, tuning);
  } else {
    by_leaders(steps, inside, across(hosts, 0, group.rank), all, tuning);
  }
  return steps.take("two_level");
}

static const char* refuses(const plan::Call&, const plan::Group& group) {
  return group.hosts < 2 || group.host_of.empty() ? "all ranks are on one host" : nullptr;
}

Algorithm allreduce_two_level() {
  return {plan::Collective::AllReduce, "two_level",
          "inside each host first, then across: one copy of the data leaves a host", two_level,
          refuses};
}

}  // namespace hccomm::algorithm
