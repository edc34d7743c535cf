// SPDX-License-Identifier: Apache-2.0
//
// Direct all-to-all: all parts leave at once, each rank beginning with the next one, so that no
// rank is everybody's first target. One hop: the default. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  for (int distance = 1; distance < team.size; ++distance) {
    const int to = team.at(team.me + distance), from = team.at(team.me - distance);
    steps.send(to, plan::part(call, to));
    steps.recv(from, plan::received_part(call, from));
  }
  steps.copy(plan::received_part(call, group.rank), plan::part(call, group.rank));
  return steps.take("direct");
}

Algorithm alltoall_direct() {
  return {plan::Collective::AllToAll, "direct", "one hop, all parts at once", direct};
}

}  // namespace hccomm::algorithm
