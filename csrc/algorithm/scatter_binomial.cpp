// SPDX-License-Identifier: Apache-2.0
//
// Binomial scatter: down the tree, each rank is given the parts of its whole branch and passes on
// those of its children. log2(n) messages at the root instead of n-1, for up to log2(n) times the
// bytes: for small parts among many ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan binomial(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone_from(group, call.root);
  const int below = branch(team.me, team.size);
  const auto length = [&](int parts) { return static_cast<std::uint64_t>(parts) * call.count; };
  const bool leaf = team.me != 0 && below == 1;
  const plan::Slice work = leaf           ? own_output(call.count)
                           : team.me == 0 ? own_input(length(team.size))
                                          : steps.scratch(length(below));
  const auto place = [&](Run run) {  // the root's parts lie by rank, the others' by number
    const int begin = team.me == 0 ? team.at(run.first) : run.first - team.me;
    return cut(work, length(begin), length(run.count));
  };
  if (team.me != 0) {
    const int parent = team.me & (team.me - 1);
    for (const Run run : runs(team, team.me, below)) steps.recv(team.at(parent), place(run));
  }
  for (int bit = static_cast<int>(std::bit_ceil(static_cast<unsigned>(below))) / 2; bit > 0;
       bit /= 2) {
    const int child = team.me + bit;
    if (child >= team.size) continue;
    for (const Run run : runs(team, child, branch(child, team.size))) {
      steps.send(team.at(child), place(run));
    }
  }
  if (!leaf) steps.copy(own_output(call.count), place({team.me, 1}));
  return steps.take("binomial");
}

static const char* refuses(const plan::Call& call, const plan::Group&) {
  return call.counts.empty() ? nullptr : "parts of unequal length";
}

Algorithm scatter_binomial() {
  return {plan::Collective::Scatter, "binomial", "parts down a binomial tree: few messages",
          binomial, refuses};
}

}  // namespace hccomm::algorithm
