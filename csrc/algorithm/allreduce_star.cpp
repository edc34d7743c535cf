// SPDX-License-Identifier: Apache-2.0
//
// Star allreduce: everyone sends to the first rank, which reduces all at once in rank order and
// hands the sum back. Two hops and 2(n-1) messages in all, where one hop takes n(n-1): for little
// data among ranks that share processors, where what all of them do adds up. Half types are
// rounded once.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan star(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone(group);
  const bool hub = team.me == 0;
  const Slots slots(steps, hub ? team : Team{}, all, tuning);
  steps.premultiply(all);
  for (std::uint64_t index = 0; index < segments(all.count, tuning); ++index) {
    const plan::Slice piece = segment(all, index, tuning);
    if (!hub) {
      steps.send(team.at(0), piece);
      steps.recv(team.at(0), piece);
      continue;
    }
    collect(steps, team, piece, piece, slots, index);
    steps.average(piece);
    for (int number = 1; number < team.size; ++number) steps.send(team.at(number), piece);
  }
  return steps.take("star");
}

Algorithm allreduce_star() {
  return {plan::Collective::AllReduce, "star", "two hops: to one rank and back", star};
}

}  // namespace hccomm::algorithm
