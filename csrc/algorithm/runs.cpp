// SPDX-License-Identifier: Apache-2.0
//
// Where a range of a team that starts at some root wraps round the end of the ranks: there a
// message of several parts has to be two, as the parts lie in the order of the ranks.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

std::vector<Run> runs(const Team& team, int first, int count) {
  const int wrap = team.size - team.first;  // the number of rank 0, if it is not the first
  if (first >= wrap || first + count <= wrap) return {{first, count}};
  return {{first, wrap - first}, {wrap, first + count - wrap}};
}

}  // namespace hccomm::algorithm
