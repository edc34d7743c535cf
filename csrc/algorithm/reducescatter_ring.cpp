// SPDX-License-Identifier: Apache-2.0
//
// Ring reduce-scatter: the sum of each part travels once round the ring and ends at its owner
// (Patarasu and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations",
// 2009). n-1 hops and the least bytes on every link: for large parts on networks where a rank talks
// to its neighbours best. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

// Input stays as it is, so sums on their way live in two buffers: one arrives, one leaves.
static plan::Plan ring(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const int n = team.size;
  const plan::Slice input = steps.premultiplied(own_input(plan::input_count(call, group)));
  std::uint64_t longest = 0;
  for (int rank = 0; rank < n; ++rank) longest = std::max(longest, plan::part_count(call, rank));
  const plan::Slice buffers[] = {n > 2 ? steps.scratch(longest) : own_output(0),
                                 n > 3 ? steps.scratch(longest) : own_output(0)};
  const auto part = [&](int number) {
    const plan::Slice place = plan::part(call, team.at(number));
    return cut(input, place.offset, place.count);
  };
  plan::Slice out = part(team.me - 1);
  for (int hop = 0; hop < n - 1; ++hop) {
    const plan::Slice term = part(team.me - hop - 2);
    const plan::Slice sum =
        hop == n - 2 ? own_output(term.count) : cut(buffers[hop % 2], 0, term.count);
    const std::uint64_t last = segments(std::max(out.count, sum.count), tuning);
    for (std::uint64_t index = 0; index < last; ++index) {
      steps.send(team.at(team.me + 1), segment(out, index, tuning));
      steps.recv_reduce(team.at(team.me - 1), segment(sum, index, tuning),
                        segment(term, index, tuning));
    }
    out = sum;
  }
  if (n == 1) steps.copy(own_output(out.count), out);
  steps.average(own_output(out.count));
  return steps.take("ring");
}

Algorithm reducescatter_ring() {
  return {plan::Collective::ReduceScatter, "ring", "each part's sum goes once round, pipelined",
          ring};
}

}  // namespace hccomm::algorithm
