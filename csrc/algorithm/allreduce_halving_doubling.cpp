// SPDX-License-Identifier: Apache-2.0
//
// Recursive halving and doubling, after Rabenseifner (Thakur, Rabenseifner and Gropp,
// "Optimization of Collective Communication Operations in MPICH", 2005): partners at distance n/2,
// n/4, ... exchange halves of what is left and reduce theirs; then the way back, doubling. 2
// log2(n) hops and the ring's bytes: for medium data. Other sizes than powers of two are folded, at
// the price of the whole buffer twice for the folded ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

// Chunks first to last-1 of n.
static plan::Slice chunks(plan::Slice data, int first, int last, int n) {
  const std::uint64_t begin = chunk(data, first, n).offset - data.offset;
  const plan::Slice end = chunk(data, last - 1, n);
  return cut(data, begin, end.offset + end.count - data.offset - begin);
}

static void halve_and_double(plan::Builder& steps, const Team& core, plan::Slice data,
                             const Tuning& tuning) {
  const int n = core.size;
  const auto first_of = [](int number, int width) { return number / width * width; };
  for (int width = n / 2; width >= 1; width /= 2) {  // chunks that each partner keeps
    const int partner = core.me ^ width;
    const int mine = first_of(core.me, width), theirs = first_of(partner, width);
    const plan::Slice keep = chunks(data, mine, mine + width, n);
    const plan::Slice give = chunks(data, theirs, theirs + width, n);
    const std::uint64_t last = segments(std::max(keep.count, give.count), tuning);
    for (std::uint64_t index = 0; index < last; ++index) {
      steps.send(core.at(partner), segment(give, index, tuning));
      steps.recv_reduce(core.at(partner), segment(keep, index, tuning));
    }
  }
  steps.average(chunk(data, core.me, n));
  for (int width = 1; width < n; width *= 2) {
    const int partner = core.me ^ width;
    const int mine = first_of(core.me, width), theirs = first_of(partner, width);
    steps.send(core.at(partner), chunks(data, mine, mine + width, n));
    steps.recv(core.at(partner), chunks(data, theirs, theirs + width, n));
  }
}

static plan::Plan make(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone(group);
  steps.premultiply(all);
  const Team core = fold(steps, team, all);
  if (core.me >= 0) halve_and_double(steps, core, all, tuning);
  unfold(steps, team, all);
  return steps.take("halving_doubling");
}

Algorithm allreduce_halving_doubling() {
  return {plan::Collective::AllReduce, "halving_doubling",
          "exchanges of halves, there and back: log2(n) hops, the ring's bytes", make};
}

}  // namespace hccomm::algorithm
