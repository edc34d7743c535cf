// SPDX-License-Identifier: Apache-2.0
//
// Broadcast: Output of every rank is the Input of the root.
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_broadcast(const plan::Call& call, const plan::Group& group) {
  check_no_parts(call);
  check_root(call, group);
  check_count(call, 1);
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  return {{0, call.count, {{call.root, 0}}}};
}

Descriptor broadcast() {
  return {.id = plan::Collective::Broadcast,
          .name = "broadcast",
          .summary = "everyone gets what the root has",
          .reduces = false,
          .rooted = true,
          .check = check_broadcast,
          .bus_factor = bus_all,
          .reference = reference};
}

}  // namespace hccomm::collective
