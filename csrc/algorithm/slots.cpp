// SPDX-License-Identifier: Apache-2.0
//
// Collecting one segment from every rank of a team and reducing them at once: the heart of all
// one-hop reductions.
#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

// For two, what arrives is reduced on the way: no scratch.
Slots::Slots(plan::Builder& steps, const Team& team, plan::Slice longest, const Tuning& tuning)
    : depth_(std::min(kDepth, segments(longest.count, tuning))),
      stride_(segment(longest, 0, tuning).count) {
  const auto terms = static_cast<std::uint64_t>(team.size);
  if (terms > 2) all_ = steps.scratch(depth_ * terms * stride_);
  depth_ = std::max<std::uint64_t>(depth_, 1);
  stride_ *= terms;
}

plan::Slice Slots::at(std::uint64_t index, int number, std::uint64_t count) const {
  const auto k = static_cast<std::uint64_t>(number);
  return cut(all_, index % depth_ * stride_ + k * count, count);
}

void collect(plan::Builder& steps, const Team& team, plan::Slice dst, plan::Slice own,
             const Slots& slots, std::uint64_t index) {
  if (own.count == 0) return;
  if (team.size == 1) return steps.copy(dst, own);
  if (team.size == 2) return steps.recv_reduce(team.at(team.me + 1), dst, own);
  std::vector<plan::Slice> terms(static_cast<std::size_t>(team.size), own);
  for (int distance = 1; distance < team.size; ++distance) {
    const int number = (team.me - distance + team.size) % team.size;
    const plan::Slice slot = slots.at(index, number, own.count);
    steps.recv(team.at(number), slot);
    terms[static_cast<std::size_t>(number)] = slot;
  }
  steps.reduce(dst, std::move(terms));
}

}  // namespace hccomm::algorithm
