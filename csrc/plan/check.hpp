// SPDX-License-Identifier: Apache-2.0
//
// Proves the plans of all ranks of one call, by running them on symbols instead of data:
//
//   form       edges lead forward, slices lie inside their buffers, messages are numbered right
//   messages   every send has its receive, of the same length, in the same order
//   hazards    steps of a rank that touch the same memory are ordered by edges, in any execution
//   progress   it ends even where a link holds nothing and keeps strictly to the order of messages
//   content    nothing reads what is not there; every output element is made of exactly the input
//              elements that the collective says, each once; allreduce: of the same operations in
//              the same order on every rank, so that all end with the same bits; no rank leaves a
//              barrier before all have entered
//
// Contributions are random 64-bit numbers that add up, so a wrong plan passes with probability
// 2^-64 an element. tests/ run it over every algorithm; `hccomm explain --check` on one call.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plan/plan.hpp"

namespace hccomm::plan {

// Element `offset` of the Input of `rank`.
struct Origin {
  int rank = 0;
  std::uint64_t offset = 0;
};

// What the collective promises: element i of this range of Output is the reduction of element i
// from each origin on.
struct Piece {
  std::uint64_t offset = 0, count = 0;
  std::vector<Origin> origins;
};

// All pieces of one rank's Output; what no piece covers may hold anything.
using Reference = std::vector<Piece> (*)(std::span<const Call> calls, const Group& group);

// The violations found, in words for people; empty when the plans are right. The entries of all
// three are by rank. A failed stage ends the proof: what follows would only repeat it.
std::vector<std::string> check(std::span<const Call> calls, std::span<const Group> groups,
                               std::span<const Plan> plans, Reference reference);

// Internals, apart so that each stays small. Each appends to `wrong`.
namespace proof {

using Violations = std::vector<std::string>;
inline constexpr std::size_t kMostViolations = 20;

void form(const Call& call, const Group& group, const Plan& plan, Violations& wrong);
void messages(std::span<const Plan> plans, Violations& wrong);
void hazards(const Call& call, const Group& group, const Plan& plan, Violations& wrong);
void content(std::span<const Call> calls, std::span<const Group> groups,
             std::span<const Plan> plans, Reference reference, Violations& wrong);

}  // namespace proof

}  // namespace hccomm::plan
