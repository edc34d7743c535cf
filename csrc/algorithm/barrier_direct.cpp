// SPDX-License-Identifier: Apache-2.0
//
// Direct barrier: everyone signals everyone. One hop, for few ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  for (int distance = 1; distance < team.size; ++distance) {
    steps.signal(team.at(team.me + distance));
    steps.await(team.at(team.me - distance));
  }
  return steps.take("direct");
}

Algorithm barrier_direct() {
  return {plan::Collective::Barrier, "direct", "one hop: everyone signals everyone", direct};
}

}  // namespace hccomm::algorithm
