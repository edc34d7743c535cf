// SPDX-License-Identifier: Apache-2.0
//
// Direct reduce: everyone sends to the root, which reduces all at once in rank order. One hop, but
// the root takes n-1 times the bytes: for small data, and for few ranks. Half types are rounded
// once.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone(group);
  const bool root = group.rank == call.root;
  const Slots slots(steps, root ? team : Team{}, all, tuning);
  steps.premultiply(all);
  for (std::uint64_t index = 0; index < segments(all.count, tuning); ++index) {
    const plan::Slice piece = segment(all, index, tuning);
    if (root) {
      collect(steps, team, piece, piece, slots, index);
      steps.average(piece);
    } else {
      steps.send(call.root, piece);
    }
  }
  return steps.take("direct");
}

Algorithm reduce_direct() {
  return {plan::Collective::Reduce, "direct", "one hop: everyone sends to the root", direct};
}

}  // namespace hccomm::algorithm
