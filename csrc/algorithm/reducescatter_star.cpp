// SPDX-License-Identifier: Apache-2.0
//
// Star reduce-scatter: everyone sends all it has to the first rank, which reduces all at once in
// rank order and hands each its part. Two hops and 2(n-1) messages in all, where one hop takes
// n(n-1): for small parts among ranks that share processors. Half types are rounded once. Also for
// parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan star(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const plan::Slice input = steps.premultiplied(own_input(plan::input_count(call, group)));
  const plan::Slice result = own_output(plan::part(call, group.rank).count);
  if (group.rank != 0) {
    steps.send(0, input);
    steps.recv(0, result);
    return steps.take("star");
  }
  const Slots slots(steps, team, input, {});
  const plan::Slice sum = steps.scratch(input.count);
  const auto part = [&](int rank) {
    const plan::Slice place = plan::part(call, rank);
    return cut(sum, place.offset, place.count);
  };
  collect(steps, team, sum, input, slots, 0);
  steps.average(sum);
  for (int rank = 1; rank < team.size; ++rank) steps.send(rank, part(rank));
  steps.copy(result, part(0));
  return steps.take("star");
}

Algorithm reducescatter_star() {
  return {plan::Collective::ReduceScatter, "star", "two hops: to one rank and back", star};
}

}  // namespace hccomm::algorithm
