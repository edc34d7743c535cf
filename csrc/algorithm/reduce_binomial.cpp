// SPDX-License-Identifier: Apache-2.0
//
// Binomial reduce: the broadcast's tree upwards; each rank adds what its children have and passes
// the sum on. log2(n) hops, and each rank sends the data once. Segments are passed on as they are
// complete.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

void binomial_reduce(plan::Builder& steps, const Team& team, plan::Slice data,
                     const Tuning& tuning) {
  const int parent = team.me & (team.me - 1);
  const int reach =
      static_cast<int>(std::bit_ceil(static_cast<unsigned>(branch(team.me, team.size))));
  for (std::uint64_t index = 0; index < segments(data.count, tuning); ++index) {
    const plan::Slice piece = segment(data, index, tuning);
    for (int bit = 1; bit < reach; bit *= 2) {
      if (team.me + bit < team.size) steps.recv_reduce(team.at(team.me + bit), piece);
    }
    if (team.me != 0) steps.send(team.at(parent), piece);
  }
}

static plan::Plan binomial(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  steps.premultiply(whole(call));
  binomial_reduce(steps, everyone_from(group, call.root), whole(call), tuning);
  if (group.rank == call.root) steps.average(whole(call));
  return steps.take("binomial");
}

Algorithm reduce_binomial() {
  return {plan::Collective::Reduce, "binomial", "sums up a binomial tree, pipelined", binomial};
}

}  // namespace hccomm::algorithm
