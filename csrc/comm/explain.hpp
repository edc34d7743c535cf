// SPDX-License-Identifier: Apache-2.0
//
// How a call would go over islands that one only thinks of: `hccomm explain --islands`. It asks
// what archipelago.hpp decides by; nothing is joined, nothing moves.
#pragma once

#include <string>

#include "base/json.hpp"
#include "plan/plan.hpp"

namespace hccomm::comm {

// `islands`: "cuda:0-2;musa:3,4", kinds of device with their ranks; others hold host memory. What a
// library can reduce is asked of the one that is found here. Throws InvalidArgument.
Json explain_islands(const plan::Call& call, int size, const std::string& islands);

}  // namespace hccomm::comm
