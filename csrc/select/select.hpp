// SPDX-License-Identifier: Apache-2.0
//
// Which algorithm serves a call: the user's rules first (HCCOMM_ALGO), else a table of thresholds.
// Depends only on what is equal on all ranks, so all choose alike.
#pragma once

#include <string>
#include <vector>

#include "algorithm/algorithm.hpp"
#include "plan/plan.hpp"

namespace hccomm::select {

// What the choice may depend on besides the call and the group; equal on all ranks.
struct Facts {
  int cores = 1;               // the fewest processors of any host
  int ranks_per_host = 1;      // the most ranks on any host
  bool shared_memory = true;   // ranks of one host reach each other through memory
  std::uint64_t segment_bytes = 0;  // HCCOMM_SEGMENT, or 0: choose
};

struct Choice {
  const algorithm::Algorithm* algorithm = nullptr;
  algorithm::Tuning tuning;
  std::string why;  // "64 KiB over 4 ranks on one host: bandwidth counts, one hop"
};

// Throws InvalidArgument when HCCOMM_ALGO names an algorithm that cannot serve the call.
Choice choose(const plan::Call& call, const plan::Group& group, const Facts& facts);
// All algorithms of the collective, with why they were not chosen.
struct Alternative {
  const algorithm::Algorithm* algorithm = nullptr;
  std::string why_not;  // "" for the chosen one
};
std::vector<Alternative> alternatives(const plan::Call& call, const plan::Group& group,
                                      const Facts& facts);

}  // namespace hccomm::select
