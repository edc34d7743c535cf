// SPDX-License-Identifier: Apache-2.0
//
// Recursive doubling: in round k every rank exchanges everything with the one whose number differs
// in bit k; after log2(n) rounds all have the sum (Thakur, Rabenseifner and Gropp, "Optimization of
// Collective Communication Operations in MPICH", 2005). log2(n) hops, for log2(n) times the bytes:
// for small data among many ranks. Both partners of an exchange take the lower rank's operand as
// the left one, so the bits agree. Other sizes than powers of two are folded.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

// What a rank sends must stay as it is until the partner has it, and the partner's arrives at the
// same time: so each round writes its sum into the other of two buffers.
void recursive_doubling(plan::Builder& steps, const Team& team, plan::Slice data) {
  const Team core = fold(steps, team, data);
  if (core.me >= 0) {
    plan::Slice sum = data;
    plan::Slice spare = core.size > 1 ? steps.scratch(data.count) : data;
    for (int bit = 1; bit < core.size; bit *= 2) {
      steps.send(core.at(core.me ^ bit), sum);
      steps.recv_reduce(core.at(core.me ^ bit), spare, sum);
      std::swap(sum, spare);
    }
    steps.copy(data, sum);
    steps.average(data);
  }
  unfold(steps, team, data);
}

static plan::Plan make(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  steps.premultiply(whole(call));
  recursive_doubling(steps, everyone(group), whole(call));
  return steps.take("recursive_doubling");
}

Algorithm allreduce_recursive_doubling() {
  return {plan::Collective::AllReduce, "recursive_doubling",
          "log2(n) exchanges of everything: few hops for small data", make};
}

}  // namespace hccomm::algorithm
