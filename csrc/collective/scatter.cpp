// SPDX-License-Identifier: Apache-2.0
//
// Scatter: Output of every rank is its part of the Input of the root. With counts (scatterv), rank
// r receives counts[r].
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_scatter(const plan::Call& call, const plan::Group& group) {
  check_root(call, group);
  check_uniform_or_parts(call, group, call.in_place ? Overlap::Refused : Overlap::Allowed);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  const plan::Call& root = calls[static_cast<std::size_t>(call.root)];
  return {
      {0, plan::part_count(call, group.rank), {{call.root, plan::part(root, group.rank).offset}}}};
}

Descriptor scatter() {
  return {.id = plan::Collective::Scatter,
          .name = "scatter",
          .summary = "each rank gets its part from the root",
          .reduces = false,
          .rooted = true,
          .check = check_scatter,
          .bus_factor = bus_parts,
          .reference = reference};
}

}  // namespace hccomm::collective
