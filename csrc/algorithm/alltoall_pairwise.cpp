// SPDX-License-Identifier: Apache-2.0
//
// Pairwise all-to-all: in round k every rank sends to the one k ahead and receives from the one k
// behind, and begins the next round when both are done. At most one transfer each way per rank at a
// time: for large parts where too many at once would fight for the network. Also for parts of
// unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan pairwise(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  steps.copy(plan::received_part(call, group.rank), plan::part(call, group.rank));
  for (int distance = 1; distance < team.size; ++distance) {
    const int to = team.at(team.me + distance), from = team.at(team.me - distance);
    steps.send(to, plan::part(call, to));
    steps.recv(from, plan::received_part(call, from));
    steps.fence();
  }
  return steps.take("pairwise");
}

Algorithm alltoall_pairwise() {
  return {plan::Collective::AllToAll, "pairwise", "one partner each way at a time", pairwise};
}

}  // namespace hccomm::algorithm
