// SPDX-License-Identifier: Apache-2.0
//
// How algorithms cut slices: into the chunks that ranks own, and those into the segments that are
// pipelined. Every rank cuts alike, so both ends of a message agree on its length.
#pragma once

#include <algorithm>
#include <cstdint>

#include "algorithm/algorithm.hpp"

namespace hccomm::algorithm {

// count elements of `whole`, from its `offset` on.
inline plan::Slice cut(plan::Slice whole, std::uint64_t offset, std::uint64_t count) {
  return {whole.offset + offset, count, whole.space};
}

// Chunk `index` of `chunks` nearly equal ones. Large ones are multiples of 64 elements, so that
// they do not share cache lines.
inline plan::Slice chunk(plan::Slice whole, int index, int chunks) {
  const auto i = static_cast<std::uint64_t>(index), n = static_cast<std::uint64_t>(chunks);
  const std::uint64_t unit = whole.count >= n * 4096 ? 64 : 1;
  const std::uint64_t units = (whole.count + unit - 1) / unit;
  const auto begin_of = [&](std::uint64_t k) {
    return std::min(whole.count, (units / n * k + std::min(k, units % n)) * unit);
  };
  return cut(whole, begin_of(i), begin_of(i + 1) - begin_of(i));
}

// How many segments of `segment` elements there are in `count`; with 0, one.
inline std::uint64_t segments(std::uint64_t count, const Tuning& tuning) {
  if (tuning.segment == 0) return count == 0 ? 0 : 1;
  return (count + tuning.segment - 1) / tuning.segment;
}

// Segment `index` of a slice; empty behind its end.
inline plan::Slice segment(plan::Slice whole, std::uint64_t index, const Tuning& tuning) {
  if (tuning.segment == 0) return index == 0 ? whole : cut(whole, whole.count, 0);
  const std::uint64_t begin = std::min(whole.count, index * tuning.segment);
  return cut(whole, begin, std::min(tuning.segment, whole.count - begin));
}

// The slices of the call's own buffers that every algorithm starts from.
inline plan::Slice whole(const plan::Call& call) { return {0, call.count, plan::Space::Output}; }
inline plan::Slice own_input(std::uint64_t count) { return {0, count, plan::Space::Input}; }
inline plan::Slice own_output(std::uint64_t count) { return {0, count, plan::Space::Output}; }

}  // namespace hccomm::algorithm
