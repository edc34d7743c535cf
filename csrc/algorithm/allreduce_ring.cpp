// SPDX-License-Identifier: Apache-2.0
//
// Ring allreduce: n chunks travel round the ring, reduced on the first lap and handed out on the
// second (Patarasu and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
// Workstations", 2009). Each link carries 2(n-1)/n of the buffer, the least possible, in 2(n-1)
// hops: for large data on networks where a rank talks to its neighbours best. Chunks are cut into
// segments, each of which moves on as soon as it has arrived.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

void ring(plan::Builder& steps, const Team& team, plan::Slice data, const Tuning& tuning) {
  const int n = team.size;
  const auto piece = [&](int number, std::uint64_t index) {
    return segment(chunk(data, (number + 2 * n) % n, n), index, tuning);
  };
  const std::uint64_t last = segments(chunk(data, 0, n).count, tuning);
  for (int hop = 0; hop < n - 1; ++hop) {  // chunk me+1 is complete here after the last
    for (std::uint64_t index = 0; index < last; ++index) {
      steps.send(team.at(team.me + 1), piece(team.me - hop, index));
      steps.recv_reduce(team.at(team.me - 1), piece(team.me - hop - 1, index));
    }
  }
  for (std::uint64_t index = 0; index < last; ++index) steps.average(piece(team.me + 1, index));
  for (int hop = 0; hop < n - 1; ++hop) {
    for (std::uint64_t index = 0; index < last; ++index) {
      steps.send(team.at(team.me + 1), piece(team.me + 1 - hop, index));
      steps.recv(team.at(team.me - 1), piece(team.me - hop, index));
    }
  }
}

static plan::Plan make(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  steps.premultiply(whole(call));
  ring(steps, everyone(group), whole(call), tuning);
  return steps.take("ring");
}

Algorithm allreduce_ring() {
  return {plan::Collective::AllReduce, "ring", "two laps of pipelined chunks: least bytes", make};
}

}  // namespace hccomm::algorithm
