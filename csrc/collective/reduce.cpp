// SPDX-License-Identifier: Apache-2.0
//
// Reduce: Output of the root is the reduction of the Input of all ranks; the others have none.
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_reduce(const plan::Call& call, const plan::Group& group) {
  check_no_parts(call);
  check_op(call);
  check_root(call, group);
  check_count(call, 1);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  if (group.rank != call.root) return {};
  return everyone_reduced(calls, 0, call.count);
}

Descriptor reduce() {
  return {.id = plan::Collective::Reduce,
          .name = "reduce",
          .summary = "the root gets the reduction of all",
          .reduces = true,
          .rooted = true,
          .check = check_reduce,
          .bus_factor = bus_all,
          .reference = reference};
}

}  // namespace hccomm::collective
