// SPDX-License-Identifier: Apache-2.0
//
// Bruck all-to-all: a part that has to go d ranks ahead is sent 2^k ahead in each round k whose bit
// is set in d, together with all other parts of that bit (Bruck, Ho, Kipnis, Upfal and Weathersby,
// "Efficient Algorithms for All-to-All Communications in Multiport Message-Passing Systems", 1997).
// log2(n) messages instead of n-1, for log2(n)/2 times the bytes: for small parts among many ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"
#include "plan/shape.hpp"

namespace hccomm::algorithm {

static plan::Plan bruck(const plan::Call& call, const plan::Group& group, const Tuning&) {
  plan::Builder steps(call, group);
  const Team team = everyone(group);
  const int n = team.size;
  std::vector<plan::Slice> parts;  // by distance yet to go when the call began
  for (int d = 0; d < n; ++d) parts.push_back(plan::part(call, team.at(team.me + d)));
  for (int bit = 1; bit < n; bit *= 2) {
    std::vector<std::size_t> moving;
    for (int d = bit; d < n; ++d) {
      if ((d & bit) != 0) moving.push_back(static_cast<std::size_t>(d));
    }
    const plan::Slice out = steps.scratch(moving.size() * call.count);
    const plan::Slice in = steps.scratch(moving.size() * call.count);
    for (std::size_t k = 0; k < moving.size(); ++k) {
      steps.copy(cut(out, k * call.count, call.count), parts[moving[k]]);
      parts[moving[k]] = cut(in, k * call.count, call.count);
    }
    steps.send(team.at(team.me + bit), out);
    steps.recv(team.at(team.me - bit), in);
  }
  for (int d = 0; d < n; ++d) {  // what has come d ranks ahead
    const plan::Slice arrived = parts[static_cast<std::size_t>(d)];
    steps.copy(plan::received_part(call, team.at(team.me - d)), arrived);
  }
  return steps.take("bruck");
}

static const char* refuses(const plan::Call& call, const plan::Group&) {
  return call.counts.empty() ? nullptr : "parts of unequal length";
}

Algorithm alltoall_bruck() {
  return {plan::Collective::AllToAll, "bruck", "log2(n) messages that carry many parts", bruck,
          refuses};
}

}  // namespace hccomm::algorithm
