// SPDX-License-Identifier: Apache-2.0
//
// Star barrier: everyone signals the first rank, which answers all. Two hops and the fewest
// messages: for ranks that share processors.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan star(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  if (group.rank != 0) {
    steps.signal(0);
    steps.await(0);
    return steps.take("star");
  }
  for (int rank = 1; rank < group.size; ++rank) steps.await(rank);
  steps.fence();
  for (int rank = 1; rank < group.size; ++rank) steps.signal(rank);
  return steps.take("star");
}

Algorithm barrier_star() {
  return {plan::Collective::Barrier, "star", "two hops: to one rank and back", star};
}

}  // namespace hccomm::algorithm
