// SPDX-License-Identifier: Apache-2.0
//
// All-to-all: part r of Output is part me of the Input of rank r. With counts (alltoallv), this
// rank sends counts[r] to rank r and receives recv_counts[r] from it. It needs two buffers: in
// place, what arrives would meet what has not left yet.
#include "collective/checks.hpp"

namespace hccomm::collective {

static void check_alltoall(const plan::Call& call, const plan::Group& group) {
  if (call.in_place) {
    throw Error(Code::InvalidArgument,
                "alltoall: input and output are the same buffer; give a separate output");
  }
  check_count(call, group.size);
  if (call.counts.empty() && call.offsets.empty()) return check_no_parts(call);
  check_parts(call, group, false, Overlap::Allowed);
  check_parts(call, group, true, Overlap::Refused);
  const auto me = static_cast<std::size_t>(group.rank);
  if (call.counts[me] == call.recv_counts[me]) return;
  throw Error(Code::InvalidArgument,
              text("alltoall: counts[", me, "] is ", call.counts[me], " but recv_counts[", me,
                   "] is ", call.recv_counts[me], ", and both are what rank ", me,
                   " sends to itself; make them equal"));
}

static std::vector<plan::Piece> reference(std::span<const plan::Call> calls,
                                          const plan::Group& group) {
  const plan::Call& call = calls[static_cast<std::size_t>(group.rank)];
  std::vector<plan::Piece> pieces;
  for (int rank = 0; rank < group.size; ++rank) {
    const plan::Slice part = plan::received_part(call, rank);
    const plan::Slice sent = plan::part(calls[static_cast<std::size_t>(rank)], group.rank);
    pieces.push_back({part.offset, part.count, {{rank, sent.offset}}});
  }
  return pieces;
}

Descriptor alltoall() {
  return {.id = plan::Collective::AllToAll,
          .name = "alltoall",
          .summary = "everyone exchanges parts with everyone",
          .reduces = false,
          .rooted = false,
          .check = check_alltoall,
          .bus_factor = bus_parts,
          .reference = reference};
}

}  // namespace hccomm::collective
