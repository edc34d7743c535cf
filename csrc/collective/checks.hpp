// SPDX-License-Identifier: Apache-2.0
//
// The checks and formulas that several collectives share. Each check throws
// Error(InvalidArgument).
#pragma once

#include <vector>

#include "base/error.hpp"
#include "collective/collective.hpp"

namespace hccomm::collective {

void check_root(const plan::Call& call, const plan::Group& group);
void check_op(const plan::Call& call);
// `parts`: how many times `count` the large buffer holds.
void check_count(const plan::Call& call, int parts);
void check_no_parts(const plan::Call& call);  // there is no v-form

enum class Overlap : bool { Refused, Allowed };
// counts and offsets, or recv_counts and recv_offsets where `received`.
void check_parts(const plan::Call& call, const plan::Group& group, bool received, Overlap overlap);
// A collective of one small and one large buffer, uniform or with parts.
void check_uniform_or_parts(const plan::Call& call, const plan::Group& group, Overlap overlap);

inline double bus_all(int) { return 1; }
inline double bus_parts(int size) { return (size - 1.0) / size; }
inline double bus_twice(int size) { return 2 * (size - 1.0) / size; }

// Every element is the reduction of the same element of all ranks.
std::vector<plan::Piece> everyone_reduced(std::span<const plan::Call> calls, std::uint64_t offset,
                                          std::uint64_t count);

}  // namespace hccomm::collective
