// SPDX-License-Identifier: Apache-2.0
//
// Binomial gather: up the tree, each rank passes on the parts of its whole branch. log2(n) messages
// at the root instead of n-1, for up to log2(n) times the bytes: for small parts among many ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan binomial(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone_from(group, call.root);
  const int below = branch(team.me, team.size);
  const auto length = [&](int parts) { return static_cast<std::uint64_t>(parts) * call.count; };
  const bool leaf = team.me != 0 && below == 1;
  const plan::Slice work = leaf           ? own_input(call.count)
                           : team.me == 0 ? own_output(length(team.size))
                                          : steps.scratch(length(below));
  const auto place = [&](Run run) {  // the root's parts lie by rank, the others' by number
    const int begin = team.me == 0 ? team.at(run.first) : run.first - team.me;
    return cut(work, length(begin), length(run.count));
  };
  if (!leaf) steps.copy(place({team.me, 1}), own_input(call.count));
  for (int bit = 1; bit < below; bit *= 2) {
    const int child = team.me + bit;
    for (const Run run : runs(team, child, branch(child, team.size))) {
      steps.recv(team.at(child), place(run));
    }
  }
  if (team.me != 0) {
    const int parent = team.me & (team.me - 1);
    for (const Run run : runs(team, team.me, below)) steps.send(team.at(parent), place(run));
  }
  return steps.take("binomial");
}

static const char* refuses(const plan::Call& call, const plan::Group&) {
  return call.counts.empty() ? nullptr : "parts of unequal length";
}

Algorithm gather_binomial() {
  return {plan::Collective::Gather, "binomial", "parts up a binomial tree: few messages", binomial,
          refuses};
}

}  // namespace hccomm::algorithm
