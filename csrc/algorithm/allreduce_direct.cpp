// SPDX-License-Identifier: Apache-2.0
//
// Direct allreduce: everyone sends everything to everyone and reduces what arrives at once, in rank
// order. One hop, the least there is, for n-1 times the bytes: for small data among few ranks.
// Half types are rounded once; every rank computes the same expression, so the bits agree.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone(group);
  const Slots slots(steps, team, all, tuning);
  steps.premultiply(all);
  // Two ranks reduce what arrives on the way, which must not change what is still being sent.
  const bool sends_output = call.in_place || call.op == dtype::RedOp::PremulSum;
  const bool apart = team.size != 2 || !sends_output;
  for (std::uint64_t index = 0; index < segments(all.count, tuning); ++index) {
    const plan::Slice piece = segment(all, index, tuning);
    for (int distance = 1; distance < team.size; ++distance) {
      steps.send(team.at(team.me + distance), piece);
    }
    const plan::Slice sum = apart ? piece : steps.scratch(piece.count);
    collect(steps, team, sum, piece, slots, index);
    steps.copy(piece, sum);
    steps.average(piece);
  }
  return steps.take("direct");
}

Algorithm allreduce_direct() {
  return {plan::Collective::AllReduce, "direct", "one hop: everyone sends everything to everyone",
          direct};
}

}  // namespace hccomm::algorithm
