// SPDX-License-Identifier: Apache-2.0
//
// Direct gather: everyone sends its part to the root. One hop and no byte twice; the root takes
// n-1 messages. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const plan::Slice own = own_input(plan::part_count(call, group.rank));
  if (group.rank != call.root) {
    steps.send(call.root, own);
    return steps.take("direct");
  }
  for (int rank = 0; rank < group.size; ++rank) {
    if (rank != call.root) steps.recv(rank, plan::part(call, rank));
  }
  steps.copy(plan::part(call, call.root), own);
  return steps.take("direct");
}

Algorithm gather_direct() {
  return {plan::Collective::Gather, "direct", "one hop: everyone sends its part to the root",
          direct};
}

}  // namespace hccomm::algorithm
