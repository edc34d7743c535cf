// SPDX-License-Identifier: Apache-2.0
//
// Direct broadcast: the root sends everything to everyone. One hop; where ranks read each other's
// memory all of them copy at once, and no rank waits for another than the root. The root's link
// carries the data n-1 times, so it is for ranks of one host.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone_from(group, call.root);
  if (team.me != 0) {
    steps.recv(call.root, whole(call));
  } else {
    for (int place = 1; place < team.size; ++place) steps.send(team.at(place), whole(call));
  }
  return steps.take("direct");
}

Algorithm broadcast_direct() {
  return {plan::Collective::Broadcast, "direct", "one hop: the root sends everything to everyone",
          direct};
}

}  // namespace hccomm::algorithm
