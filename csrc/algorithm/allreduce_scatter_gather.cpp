// SPDX-License-Identifier: Apache-2.0
//
// One-hop scatter and gather: each rank owns one chunk of n. Everyone sends each owner its chunk,
// the owner reduces the n pieces at once in rank order and sends the result to everyone. Two hops
// and the ring's bytes, 2(n-1)/n of the buffer: the best choice wherever every pair of ranks has a
// link of its own, as in shared memory or under a full switch. Cut into segments, of which one is
// gathered while the next is scattered.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

void scatter_segment(plan::Builder& steps, const Team& team, plan::Slice data, const Slots& slots,
                     std::uint64_t index, const Tuning& tuning) {
  for (int distance = 1; distance < team.size; ++distance) {
    const int owner = (team.me + distance) % team.size;
    steps.send(team.at(owner), segment(chunk(data, owner, team.size), index, tuning));
  }
  const plan::Slice own = segment(chunk(data, team.me, team.size), index, tuning);
  collect(steps, team, own, own, slots, index);
}

void gather_segment(plan::Builder& steps, const Team& team, plan::Slice data, std::uint64_t index,
                    const Tuning& tuning) {
  const plan::Slice own = segment(chunk(data, team.me, team.size), index, tuning);
  for (int distance = 1; distance < team.size; ++distance) {
    const int owner = (team.me - distance + team.size) % team.size;
    steps.send(team.at(team.me + distance), own);
    steps.recv(team.at(owner), segment(chunk(data, owner, team.size), index, tuning));
  }
}

static plan::Plan scatter_gather(const plan::Call& call, const plan::Group& group,
                                 const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone(group);
  const plan::Slice longest = chunk(all, 0, team.size);
  const Slots slots(steps, team, longest, tuning);
  steps.premultiply(all);
  const std::uint64_t last = segments(longest.count, tuning);
  for (std::uint64_t index = 0; index <= last; ++index) {
    if (index < last) {
      scatter_segment(steps, team, all, slots, index, tuning);
      steps.average(segment(chunk(all, team.me, team.size), index, tuning));
    }
    if (index > 0) gather_segment(steps, team, all, index - 1, tuning);
  }
  return steps.take("scatter_gather");
}

Algorithm allreduce_scatter_gather() {
  return {plan::Collective::AllReduce, "scatter_gather",
          "two hops: each rank reduces one chunk and hands it to everyone", scatter_gather};
}

}  // namespace hccomm::algorithm
