// SPDX-License-Identifier: Apache-2.0
#include "plan/channels.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace hccomm::plan {

Channels::Channels(std::span<const Plan> plans) : plans_(plans) {
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    first_.push_back(channels_.size());
    for (const std::int32_t peer : plans[rank].outlets) {
      channels_.push_back(
          {.from = static_cast<int>(rank), .to = peer, .sends = {}, .receives = {}});
    }
  }
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    const Plan& plan = plans[rank];
    for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
      const Step& step = plan.steps[id];
      if (step.kind != Kind::Send) continue;
      channels_[of(static_cast<int>(rank), step)].sends.push_back(id);
    }
    for (const Inlet& inlet : plan.inlets) {
      const auto first = plan.recv_steps.begin() + inlet.first;
      Channel& channel = channels_[of(static_cast<int>(rank), plan.steps[*first])];
      channel.receives.assign(first, first + inlet.count);
    }
  }
}

std::size_t Channels::of(int rank, const Step& step) const {
  const int from = step.kind == Kind::Send ? rank : step.peer;
  const int to = step.kind == Kind::Send ? step.peer : rank;
  const auto& outlets = plans_[static_cast<std::size_t>(from)].outlets;
  const auto at = std::lower_bound(outlets.begin(), outlets.end(), to);
  HCCOMM_CHECK(at != outlets.end() && *at == to, "every receive has a rank that sends to it");
  return first_[static_cast<std::size_t>(from)] + static_cast<std::size_t>(at - outlets.begin());
}

}  // namespace hccomm::plan
