// SPDX-License-Identifier: Apache-2.0
#include "collective/checks.hpp"

#include <algorithm>
#include <numeric>

namespace hccomm::collective {

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 63;

template <typename... Parts>
[[noreturn]] void refuse(const plan::Call& call, const Parts&... parts) {
  throw Error(Code::InvalidArgument, text(plan::name(call.collective), ": ", parts...));
}

}  // namespace

void check_root(const plan::Call& call, const plan::Group& group) {
  if (call.root >= 0 && call.root < group.size) return;
  refuse(call, "root ", call.root, " is outside 0..", group.size - 1,
         "; give the rank of the root within the group");
}

void check_op(const plan::Call& call) {
  if (dtype::defined(call.type, call.op)) return;
  refuse(call, dtype::name(call.op), " has no meaning for ", dtype::name(call.type),
         "; convert the data or choose another operation");
}

void check_count(const plan::Call& call, int parts) {
  const std::uint64_t most =
      kMostBytes / dtype::size_of(call.type) / static_cast<std::uint64_t>(std::max(parts, 1));
  if (call.count <= most) return;
  refuse(call, "count ", call.count, " of ", dtype::name(call.type), " times ", parts,
         " ranks is more than 2^63 bytes; count is in elements of one part");
}

void check_no_parts(const plan::Call& call) {
  if (call.counts.empty() && call.offsets.empty() && call.recv_counts.empty() &&
      call.recv_offsets.empty()) {
    return;
  }
  refuse(call, "counts and offsets are given, but all ranks have the same count; leave them empty");
}

void check_parts(const plan::Call& call, const plan::Group& group, bool received, Overlap overlap) {
  const auto& counts = received ? call.recv_counts : call.counts;
  const auto& offsets = received ? call.recv_offsets : call.offsets;
  const char* prefix = received ? "recv_" : "";
  const auto size = static_cast<std::size_t>(group.size);
  if (counts.size() != size || offsets.size() != size) {
    refuse(call, prefix, "counts has ", counts.size(), " and ", prefix, "offsets ", offsets.size(),
           " entries for ", size, " ranks; give one of each for every rank");
  }
  const std::uint64_t most = kMostBytes / dtype::size_of(call.type);
  for (std::size_t r = 0; r < size; ++r) {
    if (counts[r] <= most && offsets[r] <= most - counts[r]) continue;
    refuse(call, prefix, "offsets[", r, "] ", offsets[r], " and ", prefix, "counts[", r, "] ",
           counts[r], " of ", dtype::name(call.type),
           " reach beyond 2^63 bytes; both are in elements");
  }
  if (overlap == Overlap::Allowed) return;
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::erase_if(order, [&](std::size_t r) { return counts[r] == 0; });
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return offsets[a] < offsets[b]; });
  for (std::size_t k = 1; k < order.size(); ++k) {
    const std::size_t a = order[k - 1], b = order[k];
    if (offsets[a] + counts[a] <= offsets[b]) continue;
    refuse(call, "the parts of ranks ", a, " [", offsets[a], "..", offsets[a] + counts[a], ") and ",
           b, " [", offsets[b], "..", offsets[b] + counts[b], ") overlap; change ", prefix,
           "offsets");
  }
}

void check_uniform_or_parts(const plan::Call& call, const plan::Group& group, Overlap overlap) {
  if (!call.recv_counts.empty() || !call.recv_offsets.empty()) {
    refuse(call,
           "recv_counts is given, but only alltoall receives parts of its own; leave it empty");
  }
  check_count(call, group.size);
  if (!call.counts.empty() || !call.offsets.empty()) check_parts(call, group, false, overlap);
}

std::vector<plan::Piece> everyone_reduced(std::span<const plan::Call> calls, std::uint64_t offset,
                                          std::uint64_t count) {
  plan::Piece piece{.offset = 0, .count = count, .origins = {}};
  for (std::size_t rank = 0; rank < calls.size(); ++rank) {
    piece.origins.push_back({static_cast<int>(rank), offset});
  }
  return {piece};
}

}  // namespace hccomm::collective
