// SPDX-License-Identifier: Apache-2.0
//
// The user's own choice of algorithms, as HCCOMM_ALGO gives it:
//
//   allreduce:0-8K tree,8K- ring;broadcast:chain
//
// per collective, separated by `;`, ranges of bytes from (inclusive) to (exclusive), each with the
// algorithm for it; no range means all sizes. The bytes are those of the large buffer, as
// nccl-tests count them. The first range that holds the size wins; where none does, the default
// table decides.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "algorithm/algorithms.hpp"

namespace hccomm::select {

inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

struct Rule {
  const algorithm::Algorithm* algorithm = nullptr;
  std::uint64_t from_bytes = 0, to_bytes = kNoLimit;
};

// Value. All ranks must have the same rules, as they must make the same choice.
class Rules {
 public:
  Rules() = default;
  // Throws Error(InvalidArgument) that names the place in the text, what is wrong and what may
  // stand there.
  static Rules parse(std::string_view text);

  // The rule for this size, or nullptr. kNoLimit stands for a size that not all ranks know: it
  // falls under rules for all sizes only.
  const Rule* find(plan::Collective collective, std::uint64_t bytes) const;
  bool empty() const noexcept { return rules_.empty(); }

 private:
  std::vector<Rule> rules_;
};

}  // namespace hccomm::select
