// SPDX-License-Identifier: Apache-2.0
//
// Direct reduce-scatter: everyone sends each rank its part, which reduces the n pieces at once in
// rank order. One hop and the least bytes: the best choice wherever every pair of ranks has a link
// of its own. Half types are rounded once. Also for parts of unequal length.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan direct(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const plan::Slice input = steps.premultiplied(own_input(plan::input_count(call, group)));
  const auto part = [&](int rank) {
    const plan::Slice place = plan::part(call, rank);
    return cut(input, place.offset, place.count);
  };
  const plan::Slice own = part(group.rank);
  const plan::Slice result = own_output(own.count);
  std::uint64_t last = 0;
  for (int rank = 0; rank < team.size; ++rank) {
    last = std::max(last, segments(part(rank).count, tuning));
  }
  const Slots slots(steps, team, own, tuning);
  for (std::uint64_t index = 0; index < last; ++index) {
    for (int distance = 1; distance < team.size; ++distance) {
      const int owner = team.at(team.me + distance);
      steps.send(owner, segment(part(owner), index, tuning));
    }
    const plan::Slice sum = segment(result, index, tuning);
    collect(steps, team, sum, segment(own, index, tuning), slots, index);
    steps.average(sum);
  }
  return steps.take("direct");
}

Algorithm reducescatter_direct() {
  return {plan::Collective::ReduceScatter, "direct", "one hop: everyone sends each rank its part",
          direct};
}

}  // namespace hccomm::algorithm
