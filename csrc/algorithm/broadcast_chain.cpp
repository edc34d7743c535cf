// SPDX-License-Identifier: Apache-2.0
//
// Chain broadcast: each rank hands every segment to the next as it arrives. Each link carries the
// data once, so with many segments it takes hardly longer than one transfer: for large data.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan chain(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone_from(group, call.root);
  for (std::uint64_t index = 0; index < segments(all.count, tuning); ++index) {
    const plan::Slice piece = segment(all, index, tuning);
    if (team.me > 0) steps.recv(team.at(team.me - 1), piece);
    if (team.me < team.size - 1) steps.send(team.at(team.me + 1), piece);
  }
  return steps.take("chain");
}

Algorithm broadcast_chain() {
  return {plan::Collective::Broadcast, "chain", "from rank to rank, pipelined", chain};
}

}  // namespace hccomm::algorithm
