// SPDX-License-Identifier: Apache-2.0
//
// Which send meets which receive, over the plans of all ranks of one call: the k-th message from a
// to b is the k-th that b takes from a. plan/check.cpp and plan/simulate.cpp run plans by this.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plan/plan.hpp"

namespace hccomm::plan {

// All messages from one rank to one other, in order.
struct Channel {
  int from = -1, to = -1;
  std::vector<std::uint32_t> sends;     // steps of `from`
  std::vector<std::uint32_t> receives;  // steps of `to`
};

// Requires: the indices, inlets and outlets of every plan are right (plan/check.cpp proves it).
class Channels {
 public:
  explicit Channels(std::span<const Plan> plans);

  std::vector<Channel>& all() noexcept { return channels_; }
  const std::vector<Channel>& all() const noexcept { return channels_; }
  // The channel of a message step.
  std::size_t of(int rank, const Step& step) const;

 private:
  std::span<const Plan> plans_;
  std::vector<std::size_t> first_;  // by rank: its first channel; one for each outlet follows
  std::vector<Channel> channels_;
};

}  // namespace hccomm::plan
