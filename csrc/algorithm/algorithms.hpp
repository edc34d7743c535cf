// SPDX-License-Identifier: Apache-2.0
//
// All built-in algorithms: builtins.inc lists them, one line each; this makes a table of them.
#pragma once

#include <span>
#include <string_view>

#include "algorithm/algorithm.hpp"

namespace hccomm::algorithm {

std::span<const Algorithm> algorithms();

// The algorithm of that name, or nullptr.
const Algorithm* find(plan::Collective collective, std::string_view name);

// Each built-in, from the file of its name.
#define HCCOMM_ALGORITHM(name) Algorithm name();
#include "algorithm/builtins.inc"
#undef HCCOMM_ALGORITHM

}  // namespace hccomm::algorithm
