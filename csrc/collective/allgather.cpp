// SPDX-License-Identifier: Apache-2.0
//
// Allgather: Output holds the Input of every rank, in the order of the ranks or at the offsets
// given. With counts (allgatherv), rank r contributes counts[r].
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_allgather(const plan::Call& call, const plan::Group& group) {
  check_uniform_or_parts(call, group, Overlap::Refused);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  std::vector<plan::Piece> pieces;
  for (int rank = 0; rank < group.size; ++rank) {
    const plan::Slice part = plan::part(call, rank);
    pieces.push_back({part.offset, part.count, {{rank, 0}}});
  }
  return pieces;
}

Descriptor allgather() {
  return {.id = plan::Collective::AllGather,
          .name = "allgather",
          .summary = "everyone gets the parts of all",
          .reduces = false,
          .rooted = false,
          .check = check_allgather,
          .bus_factor = bus_parts,
          .reference = reference};
}

}  // namespace hccomm::collective
