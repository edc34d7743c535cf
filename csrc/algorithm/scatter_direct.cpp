// SPDX-License-Identifier: Apache-2.0
//
// Direct scatter: the root sends everyone its part. One hop and no byte twice; the root sends n-1
// messages. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const plan::Slice own = own_output(plan::part_count(call, group.rank));
  if (group.rank != call.root) {
    steps.recv(call.root, own);
    return steps.take("direct");
  }
  for (int rank = 0; rank < group.size; ++rank) {
    if (rank != call.root) steps.send(rank, plan::part(call, rank));
  }
  steps.copy(own, plan::part(call, call.root));
  return steps.take("direct");
}

Algorithm scatter_direct() {
  return {plan::Collective::Scatter, "direct", "one hop: the root sends everyone its part", direct};
}

}  // namespace hccomm::algorithm
