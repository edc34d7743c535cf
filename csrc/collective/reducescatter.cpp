// SPDX-License-Identifier: Apache-2.0
//
// Reduce-scatter: Output is this rank's part of the reduction of the Input of all ranks. With
// counts (reducescatterv), rank r receives counts[r].
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_reducescatter(const plan::Call& call, const plan::Group& group) {
  check_op(call);
  check_uniform_or_parts(call, group, call.in_place ? Overlap::Refused : Overlap::Allowed);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  const plan::Slice part = plan::part(call, group.rank);
  std::vector<plan::Piece> pieces = everyone_reduced(calls, 0, part.count);
  for (plan::Origin& origin : pieces[0].origins) {  // offsets are each rank's own
    origin.offset = plan::part(calls[static_cast<std::size_t>(origin.rank)], group.rank).offset;
  }
  return pieces;
}

Descriptor reducescatter() {
  return {.id = plan::Collective::ReduceScatter,
          .name = "reducescatter",
          .summary = "each rank gets its part of the reduction",
          .reduces = true,
          .rooted = false,
          .check = check_reducescatter,
          .bus_factor = bus_parts,
          .reference = reference};
}

}  // namespace hccomm::collective
