// SPDX-License-Identifier: Apache-2.0
//
// Binomial broadcast: who has the data hands it to the rank half the remaining distance away, so
// that the holders double each round. log2(n) hops: for small data. Segments are handed on as they
// arrive.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

void binomial_broadcast(plan::Builder& steps, const Team& team, plan::Slice data,
                        const Tuning& tuning) {
  const int parent = team.me & (team.me - 1);
  const int reach =
      static_cast<int>(std::bit_ceil(static_cast<unsigned>(branch(team.me, team.size))));
  for (std::uint64_t index = 0; index < segments(data.count, tuning); ++index) {
    const plan::Slice piece = segment(data, index, tuning);
    if (team.me != 0) steps.recv(team.at(parent), piece);
    for (int bit = reach / 2; bit > 0; bit /= 2) {
      if (team.me + bit < team.size) steps.send(team.at(team.me + bit), piece);
    }
  }
}

static plan::Plan binomial(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  binomial_broadcast(steps, everyone_from(group, call.root), whole(call), tuning);
  return steps.take("binomial");
}

Algorithm broadcast_binomial() {
  return {plan::Collective::Broadcast, "binomial", "the holders double each round", binomial};
}

}  // namespace hccomm::algorithm
