// SPDX-License-Identifier: Apache-2.0
//
// Allreduce: Output is the reduction of the Input of all ranks, the same on every rank.
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_allreduce(const plan::Call& call, const plan::Group&) {
  check_no_parts(call);
  check_op(call);
  check_count(call, 1);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  return everyone_reduced(calls, 0, calls[static_cast<std::size_t>(group.rank)].count);
}

Descriptor allreduce() {
  return {.id = plan::Collective::AllReduce,
          .name = "allreduce",
          .summary = "everyone gets the reduction of all",
          .reduces = true,
          .rooted = false,
          .check = check_allreduce,
          .bus_factor = bus_twice,
          .reference = reference};
}

}  // namespace hccomm::collective
