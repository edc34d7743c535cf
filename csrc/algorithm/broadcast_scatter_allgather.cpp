// SPDX-License-Identifier: Apache-2.0
//
// Scatter and allgather: the root scatters n chunks down a binomial tree, then a ring hands every
// rank the chunks it lacks (van de Geijn; see Thakur, Rabenseifner and Gropp, "Optimization of
// Collective Communication Operations in MPICH", 2005). Twice the bytes of one transfer, whatever
// n: for large data where a chain's first segment would take too long. A rank is not sent what it
// has from the scatter.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static plan::Plan scatter_allgather(const plan::Call& call, const plan::Group& group,
                                    const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const Team team = everyone_from(group, call.root);
  const int n = team.size;
  const auto chunks = [&](int first) {  // of the branch of this number
    const plan::Slice begin = chunk(all, first, n),
                      end = chunk(all, first + branch(first, n) - 1, n);
    return cut(all, begin.offset, end.offset + end.count - begin.offset);
  };
  if (team.me != 0) steps.recv(team.at(team.me & (team.me - 1)), chunks(team.me));
  const int reach = static_cast<int>(std::bit_ceil(static_cast<unsigned>(branch(team.me, n))));
  for (int bit = reach / 2; bit > 0; bit /= 2) {
    if (team.me + bit < n) steps.send(team.at(team.me + bit), chunks(team.me + bit));
  }

  const int next = (team.me + 1) % n;
  const auto lacks = [&](int number, int c) {
    return c < number || c >= number + branch(number, n);
  };
  const std::uint64_t last = segments(chunk(all, 0, n).count, tuning);
  for (int hop = 0; hop < n - 1; ++hop) {
    const int out = (team.me - hop + n) % n, in = (team.me - hop - 1 + n) % n;
    for (std::uint64_t index = 0; index < last; ++index) {
      if (lacks(next, out)) steps.send(team.at(next), segment(chunk(all, out, n), index, tuning));
      if (lacks(team.me, in)) {
        steps.recv(team.at(team.me - 1), segment(chunk(all, in, n), index, tuning));
      }
    }
  }
  return steps.take("scatter_allgather");
}

Algorithm broadcast_scatter_allgather() {
  return {plan::Collective::Broadcast, "scatter_allgather",
          "chunks down a tree, then round a ring: twice the bytes, for any n", scatter_allgather};
}

}  // namespace hccomm::algorithm
