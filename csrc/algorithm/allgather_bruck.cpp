// SPDX-License-Identifier: Apache-2.0
//
// Bruck allgather: in round k every rank takes 2^k more parts from the rank 2^k ahead, so that all
// have all after log2(n) rounds, for any n (Bruck, Ho, Kipnis, Upfal and Weathersby, "Efficient
// Algorithms for All-to-All Communications in Multiport Message-Passing Systems", 1997). The parts
// go straight to their places: where a run of them wraps round the end, it takes two messages, and
// nothing is rotated afterwards. For small parts among many ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan bruck(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const int n = team.size;
  // Parts first, first+1, ... counted round the ranks: up to the end, and from the beginning.
  const auto runs = [&](int first, int count) {
    const int head = std::min(count, n - first);
    const auto slice = [&](int from, int parts) -> plan::Slice {
      return {static_cast<std::uint64_t>(from) * call.count,
              static_cast<std::uint64_t>(parts) * call.count, plan::Space::Output};
    };
    return std::vector<plan::Slice>{slice(first, head), slice(0, count - head)};
  };
  steps.copy(runs(team.me, 1)[0], own_input(call.count));
  for (int have = 1; have < n; have *= 2) {
    const int more = std::min(have, n - have);
    const int ahead = (team.me + have) % n;
    for (const plan::Slice& run : runs(team.me, more)) steps.send(team.at(team.me - have), run);
    for (const plan::Slice& run : runs(ahead, more)) steps.recv(ahead, run);
  }
  return steps.take("bruck");
}

static const char* refuses(const plan::Call& call, const plan::Group&) {
  return call.counts.empty() ? nullptr : "parts of unequal length";
}

Algorithm allgather_bruck() {
  return {plan::Collective::AllGather, "bruck", "log2(n) rounds that double what each rank has",
          bruck, refuses};
}

}  // namespace hccomm::algorithm
