// SPDX-License-Identifier: Apache-2.0
//
// Recursive halving: partners at distance n/2, n/4, ... exchange the halves of what is left and
// reduce theirs, until each holds its own part (Thakur, Rabenseifner and Gropp, "Optimization of
// Collective Communication Operations in MPICH", 2005). log2(n) hops and the least bytes: for small
// and medium parts among a power of two of ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <bit>

#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan halving(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const int n = group.size, me = group.rank;
  const plan::Slice result = own_output(call.count);
  plan::Slice have = steps.premultiplied(own_input(plan::input_count(call, group)));
  if (n == 1) steps.copy(result, have);
  for (int width = n / 2; width >= 1; width /= 2) {  // parts that each partner keeps
    const std::uint64_t half = static_cast<std::uint64_t>(width) * call.count;
    const bool upper = (me & width) != 0;
    const plan::Slice keep = cut(have, upper ? half : 0, half);
    const plan::Slice give = cut(have, upper ? 0 : half, half);
    plan::Slice sum = keep;  // in its place, unless that is the caller's
    if (width == 1) {
      sum = result;
    } else if (have.space == plan::Space::Input) {
      sum = steps.scratch(half);
    }
    steps.send(me ^ width, give);
    steps.recv_reduce(me ^ width, sum, keep);
    have = sum;
  }
  steps.average(result);
  return steps.take("halving");
}

static const char* refuses(const plan::Call& call, const plan::Group& group) {
  if (!call.counts.empty()) return "parts of unequal length";
  if (!std::has_single_bit(static_cast<unsigned>(group.size))) {
    return "the number of ranks is no power of two";
  }
  return nullptr;
}

Algorithm reducescatter_halving() {
  return {plan::Collective::ReduceScatter, "halving", "log2(n) exchanges of halves", halving,
          refuses};
}

}  // namespace hccomm::algorithm
