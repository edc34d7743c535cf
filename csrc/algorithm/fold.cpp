// SPDX-License-Identifier: Apache-2.0
//
// Makes a power of two of any number of ranks: of the first 2r, where r are too many, the even
// ones give their data to the next rank and wait for the result (Thakur, Rabenseifner and Gropp,
// "Optimization of Collective Communication Operations in MPICH", 2005).
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

static int surplus(const Team& team) {
  return team.size - static_cast<int>(std::bit_floor(static_cast<unsigned>(team.size)));
}

Team fold(plan::Builder& steps, const Team& team, plan::Slice data) {
  const int folded = surplus(team);
  if (folded == 0) return team;
  Team core{team.size - folded, team.me - folded, {}, 0};
  for (int number = 0; number < core.size; ++number) {
    core.ranks.push_back(team.at(number < folded ? 2 * number + 1 : number + folded));
  }
  if (team.me >= 2 * folded) return core;
  if (team.me % 2 == 0) {
    steps.send(team.at(team.me + 1), data);
    core.me = -1;
  } else {
    steps.recv_reduce(team.at(team.me - 1), data);
    core.me = team.me / 2;
  }
  return core;
}

void unfold(plan::Builder& steps, const Team& team, plan::Slice data) {
  if (team.me >= 2 * surplus(team)) return;
  if (team.me % 2 == 0) {
    steps.recv(team.at(team.me + 1), data);
  } else {
    steps.send(team.at(team.me - 1), data);
  }
}

}  // namespace hccomm::algorithm
