// SPDX-License-Identifier: Apache-2.0
//
// Ring allgather: every part travels once round the ring, in segments that move on as soon as they
// have arrived. n-1 hops and the least bytes on every link: for large parts on networks where a
// rank talks to its neighbours best. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan ring(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const plan::Slice own = own_input(plan::part_count(call, group.rank));
  for (int hop = 0; hop < team.size - 1; ++hop) {
    const plan::Slice out = hop == 0 ? own : plan::part(call, team.at(team.me - hop));
    const plan::Slice in = plan::part(call, team.at(team.me - hop - 1));
    const std::uint64_t last = segments(std::max(out.count, in.count), tuning);
    for (std::uint64_t index = 0; index < last; ++index) {
      steps.send(team.at(team.me + 1), segment(out, index, tuning));
      steps.recv(team.at(team.me - 1), segment(in, index, tuning));
    }
  }
  steps.copy(plan::part(call, group.rank), own);
  return steps.take("ring");
}

Algorithm allgather_ring() {
  return {plan::Collective::AllGather, "ring", "every part goes once round, pipelined", ring};
}

}  // namespace hccomm::algorithm
