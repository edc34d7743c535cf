// SPDX-License-Identifier: Apache-2.0
//
// Plans for people: one line a step, and what a plan sends to whom. For `hccomm explain`, for the
// messages of plan/check.hpp and for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.hpp"

namespace hccomm::plan {

// What one rank exchanges with one peer.
struct Traffic {
  int peer = -1;
  std::uint64_t sent_messages = 0, sent_elements = 0;
  std::uint64_t received_messages = 0, received_elements = 0;

  friend bool operator==(const Traffic&, const Traffic&) = default;
};

std::vector<Traffic> traffic(const Plan& plan);  // sorted by peer

// "send output[0..8) to rank 1 (message 0)"
std::string print(const Plan& plan, const Step& step);

// The whole plan: a heading, one line a step with the steps that wait for it, the traffic.
std::string print(const Plan& plan);

}  // namespace hccomm::plan
