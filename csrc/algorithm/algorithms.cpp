// SPDX-License-Identifier: Apache-2.0
#include "algorithm/algorithms.hpp"

namespace hccomm::algorithm {

std::span<const Algorithm> algorithms() {
#define HCCOMM_ALGORITHM(name) name(),
  static const Algorithm kAll[] = {
#include "algorithm/builtins.inc"
  };
#undef HCCOMM_ALGORITHM
  return kAll;
}

const Algorithm* find(plan::Collective collective, std::string_view name) {
  for (const Algorithm& each : algorithms()) {
    if (each.collective == collective && each.name == name) return &each;
  }
  return nullptr;
}

}  // namespace hccomm::algorithm
