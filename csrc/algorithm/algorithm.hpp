// SPDX-License-Identifier: Apache-2.0
//
// An algorithm: a pure function from a call and a group to the plan of one rank. One file each;
// builtins.inc lists them; select/ chooses among them.
#pragma once

#include <cstdint>

#include "plan/builder.hpp"
#include "plan/plan.hpp"

namespace hccomm::algorithm {

// What select/ decided besides the algorithm: the same on every rank.
struct Tuning {
  std::uint64_t segment = 0;  // elements per pipelined segment; 0: do not cut
};

struct Algorithm {
  plan::Collective collective;
  const char* name;     // "ring"
  const char* summary;  // one line for `hccomm explain`
  plan::Plan (*make)(const plan::Call&, const plan::Group&, const Tuning&);
  // Why it cannot serve this call, or nullptr when it can. Must answer alike on every rank.
  const char* (*refuses)(const plan::Call&, const plan::Group&) = nullptr;
};

}  // namespace hccomm::algorithm
