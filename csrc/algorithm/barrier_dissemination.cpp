// SPDX-License-Identifier: Apache-2.0
//
// Dissemination barrier: in round k every rank signals the one 2^k ahead and awaits the one 2^k
// behind; after log2(n) rounds everyone has heard of everyone (Hensgen, Finkel and Manber, "Two
// Algorithms for Barrier Synchronization", 1988).
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan dissemination(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  for (int distance = 1; distance < team.size; distance *= 2) {
    steps.signal(team.at(team.me + distance));
    steps.await(team.at(team.me - distance));
    steps.fence();
  }
  return steps.take("dissemination");
}

Algorithm barrier_dissemination() {
  return {plan::Collective::Barrier, "dissemination", "log2(n) rounds of one signal each",
          dissemination};
}

}  // namespace hccomm::algorithm
