// SPDX-License-Identifier: Apache-2.0
//
// A way between two ranks that takes both, and on which the other one let us down.
#pragma once

#include <algorithm>

namespace hccomm::engine {

// For how many calls it is not tried: each time for twice as many, since that may well come again,
// and costs more than not to try.
struct Rest {
  static constexpr int kLeast = 16, kMost = 1 << 20;
  int left = 0, next = kLeast, went_well = 0;

  bool over() {
    if (left == 0) return true;
    --left;
    return false;
  }
  void let_down() {
    if (left > 0) return;  // calls that were in flight together are one failure
    left = next;
    next = std::min(2 * next, kMost);
    went_well = 0;
  }
  void well() {
    if (went_well < kLeast && ++went_well == kLeast) next = kLeast;
  }
};

}  // namespace hccomm::engine
