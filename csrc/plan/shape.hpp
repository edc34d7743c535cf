// SPDX-License-Identifier: Apache-2.0
//
// The buffers of a call: how many elements each rank's Input and Output hold, which part belongs to
// which rank, and which slices are the same memory when the call is in place. The one place that
// knows; the builder, the checker, algorithm/ and collective/ ask here.
#pragma once

#include <cstdint>

#include "plan/plan.hpp"

namespace hccomm::plan {

// Elements of this rank's buffers; 0 where a rank has none (the Output of a reduce off its root).
std::uint64_t input_count(const Call& call, const Group& group) noexcept;
std::uint64_t output_count(const Call& call, const Group& group) noexcept;

// Elements of part `rank`: what that rank contributes or receives, and in alltoall what this rank
// sends to it.
std::uint64_t part_count(const Call& call, int rank) noexcept;

// Part `rank` of the large buffer: of Output in allgather and gather, else of Input.
Slice part(const Call& call, int rank) noexcept;
// alltoall: where this rank puts what it receives from `rank`.
Slice received_part(const Call& call, int rank) noexcept;

// Allreduce, reduce and broadcast: element i of Output belongs to element i of Input.
bool same_shape(Collective collective) noexcept;

// Whether this rank's Input and Output overlap: the call is in place and the rank has both.
bool aliased(const Call& call, const Group& group) noexcept;
// The same memory under its one name: of two slices that are aliased, the one in the large buffer.
Slice canonical(const Call& call, const Group& group, Slice slice) noexcept;

}  // namespace hccomm::plan
