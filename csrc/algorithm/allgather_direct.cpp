// SPDX-License-Identifier: Apache-2.0
//
// Direct allgather: everyone sends its part to everyone, in one hop. The best choice wherever every
// pair of ranks has a link of its own, and for small parts among few ranks anywhere. Also for parts
// of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const plan::Slice own = own_input(plan::part_count(call, group.rank));
  for (int distance = 1; distance < team.size; ++distance) {
    const int from = team.at(team.me - distance);
    steps.send(team.at(team.me + distance), own);
    steps.recv(from, plan::part(call, from));
  }
  steps.copy(plan::part(call, group.rank), own);
  return steps.take("direct");
}

Algorithm allgather_direct() {
  return {plan::Collective::AllGather, "direct", "one hop: everyone sends its part to everyone",
          direct};
}

}  // namespace hccomm::algorithm
