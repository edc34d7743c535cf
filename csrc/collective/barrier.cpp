// SPDX-License-Identifier: Apache-2.0
//
// Barrier: no data; no rank leaves before all have entered.
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_barrier(const plan::Call& call, const plan::Group&) {
  check_no_parts(call);
  if (call.count == 0) return;
  throw Error(Code::InvalidArgument,
              text("barrier: count is ", call.count, ", but a barrier moves no data; give 0"));
}

static double bus_none(int) { return 0; }

static std::vector<plan::Piece> reference(std::span<const plan::Call>, const plan::Group&) {
  return {};
}

Descriptor barrier() {
  return {.id = plan::Collective::Barrier,
          .name = "barrier",
          .summary = "no rank leaves before all have entered",
          .reduces = false,
          .rooted = false,
          .check = check_barrier,
          .bus_factor = bus_none,
          .reference = reference};
}

}  // namespace hccomm::collective
