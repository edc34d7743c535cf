// SPDX-License-Identifier: Apache-2.0
#include "plan/shape.hpp"

#include <algorithm>

namespace hccomm::plan {

namespace {

// What a rank holds of one buffer.
enum class Extent : std::uint8_t { None, Whole, Part, AllParts };

struct Buffers {
  Extent input, output;              // at the root, and everywhere where there is none
  Extent other_input, other_output;  // at the other ranks
};

Buffers buffers(Collective collective) noexcept {
  using enum Extent;
  switch (collective) {
    case Collective::AllReduce: return {Whole, Whole, Whole, Whole};
    case Collective::AllGather: return {Part, AllParts, Part, AllParts};
    case Collective::ReduceScatter: return {AllParts, Part, AllParts, Part};
    case Collective::Broadcast: return {Whole, Whole, None, Whole};
    case Collective::Reduce: return {Whole, Whole, Whole, None};
    case Collective::Gather: return {Part, AllParts, Part, None};
    case Collective::Scatter: return {AllParts, Part, None, Part};
    case Collective::AllToAll: return {AllParts, AllParts, AllParts, AllParts};
    case Collective::Barrier: break;
  }
  return {None, None, None, None};
}

std::uint64_t end_of(const std::vector<std::uint64_t>& counts,
                     const std::vector<std::uint64_t>& offsets) noexcept {
  std::uint64_t end = 0;
  for (std::size_t r = 0; r < counts.size(); ++r) {
    if (counts[r] != 0) end = std::max(end, offsets[r] + counts[r]);
  }
  return end;
}

std::uint64_t elements(Extent extent, const Call& call, const Group& group,
                       bool received) noexcept {
  switch (extent) {
    case Extent::None: return 0;
    case Extent::Whole: return call.count;
    case Extent::Part: return part_count(call, group.rank);
    case Extent::AllParts: break;
  }
  if (call.counts.empty()) return call.count * static_cast<std::uint64_t>(group.size);
  return received ? end_of(call.recv_counts, call.recv_offsets) : end_of(call.counts, call.offsets);
}

Space large_buffer(Collective collective) noexcept {
  const bool output = collective == Collective::AllGather || collective == Collective::Gather;
  return output ? Space::Output : Space::Input;
}

}  // namespace

std::uint64_t input_count(const Call& call, const Group& group) noexcept {
  const Buffers form = buffers(call.collective);
  const Extent extent = group.rank == call.root ? form.input : form.other_input;
  return elements(extent, call, group, false);
}

std::uint64_t output_count(const Call& call, const Group& group) noexcept {
  const Buffers form = buffers(call.collective);
  const Extent extent = group.rank == call.root ? form.output : form.other_output;
  return elements(extent, call, group, call.collective == Collective::AllToAll);
}

std::uint64_t part_count(const Call& call, int rank) noexcept {
  return call.counts.empty() ? call.count : call.counts[static_cast<std::size_t>(rank)];
}

Slice part(const Call& call, int rank) noexcept {
  const auto r = static_cast<std::size_t>(rank);
  const Space space = large_buffer(call.collective);
  if (call.counts.empty()) return {r * call.count, call.count, space};
  return {call.offsets[r], call.counts[r], space};
}

Slice received_part(const Call& call, int rank) noexcept {
  const auto r = static_cast<std::size_t>(rank);
  if (call.counts.empty()) return {r * call.count, call.count, Space::Output};
  return {call.recv_offsets[r], call.recv_counts[r], Space::Output};
}

bool same_shape(Collective collective) noexcept {
  return collective == Collective::AllReduce || collective == Collective::Reduce ||
         collective == Collective::Broadcast;
}

bool aliased(const Call& call, const Group& group) noexcept {
  if (!call.in_place) return false;
  const Buffers form = buffers(call.collective);
  const bool root = group.rank == call.root;
  return (root ? form.input : form.other_input) != Extent::None &&
         (root ? form.output : form.other_output) != Extent::None;
}

Slice canonical(const Call& call, const Group& group, Slice slice) noexcept {
  if (slice.space == Space::Scratch || !aliased(call, group)) return slice;
  if (same_shape(call.collective)) return {slice.offset, slice.count, Space::Output};
  const Slice place = part(call, group.rank);
  if (slice.space == place.space) return slice;
  return {place.offset + slice.offset, slice.count, place.space};
}

}  // namespace hccomm::plan
