// SPDX-License-Identifier: Apache-2.0
//
// What follows from a plan once, and is used by every operation that runs it.
#include <algorithm>
#include <map>
#include <tuple>

#include "engine/operation.hpp"

namespace hccomm::engine {

using plan::Kind;
using plan::Step;

static std::vector<plan::Inlet> group_sends(const plan::Plan& plan,
                                            std::vector<std::uint32_t>& order) {
  std::vector<plan::Inlet> outlets;
  for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
    if (plan.steps[id].kind == Kind::Send) order.push_back(id);
  }
  const auto key = [&](std::uint32_t id) {
    return std::pair(plan.steps[id].peer, plan.steps[id].index);
  };
  std::ranges::sort(order, {}, key);
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    const int peer = plan.steps[order[i]].peer;
    if (outlets.empty() || outlets.back().peer != peer) outlets.push_back({peer, i, 0});
    ++outlets.back().count;
  }
  return outlets;
}

// Sends of one slice that wait for the same steps send the same bytes: a step between them that
// wrote there would be one that only the later of them waits for.
static std::vector<std::uint32_t> group_fans(const plan::Plan& plan,
                                             const std::vector<std::uint32_t>& sends) {
  std::vector<std::vector<std::uint32_t>> before(plan.steps.size());
  for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
    const Step& step = plan.steps[id];
    for (std::uint32_t k = 0; k < step.dependents; ++k) {
      before[plan.edges[step.first_dependent + k]].push_back(id);
    }
  }
  using Bytes = std::tuple<plan::Space, std::uint64_t, std::uint64_t, std::vector<std::uint32_t>>;
  std::map<Bytes, std::vector<std::uint32_t>> alike;
  for (const std::uint32_t id : sends) {
    const plan::Slice& src = plan.steps[id].src;
    alike[{src.space, src.offset, src.count, before[id]}].push_back(id);
  }
  std::vector<std::uint32_t> fans(plan.steps.size(), 0);
  std::uint32_t number = 0;
  for (const auto& [bytes, ids] : alike) {
    if (ids.size() < 2) continue;
    ++number;
    for (const std::uint32_t id : ids) fans[id] = number;
  }
  if (number == 0) fans.clear();
  return fans;
}

void finish_recipe(Recipe& recipe) {
  const plan::Plan& plan = recipe.plan;
  recipe.initial.clear();
  for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
    const Step& step = plan.steps[id];
    StepState state;
    state.waiting = step.dependencies;
    recipe.initial.push_back(state);
    const bool receives = step.kind == Kind::Recv || step.kind == Kind::RecvReduce;
    if (step.dependencies == 0 && !receives) recipe.roots.push_back(id);
  }
  std::ranges::reverse(recipe.roots);
  for (const plan::Inlet& inlet : plan.inlets) {
    std::uint64_t largest = 0;
    for (std::uint32_t k = 0; k < inlet.count; ++k) {
      const Step& step = plan.steps[plan.recv_steps[inlet.first + k]];
      largest = std::max(largest, step.dst.count * recipe.element_bytes);
    }
    recipe.inlet_largest.push_back(largest);
  }
  const auto extend = [&](const plan::Slice& slice) {
    if (slice.space == plan::Space::Scratch || slice.count == 0) return;
    std::uint64_t& extent = recipe.extent[static_cast<int>(slice.space)];
    extent = std::max(extent, (slice.offset + slice.count) * recipe.element_bytes);
  };
  for (const Step& step : plan.steps) {
    extend(step.src);
    extend(step.dst);
  }
  for (const plan::Slice& term : plan.terms) extend(term);
  recipe.outlets = group_sends(plan, recipe.send_steps);
  recipe.fans = group_fans(plan, recipe.send_steps);
  std::uint64_t largest = 0;
  for (const std::uint64_t each : recipe.inlet_largest) largest = std::max(largest, each);
  for (const std::uint32_t id : recipe.send_steps) {
    recipe.sent_count += plan.steps[id].src.count;
    largest = std::max(largest, plan.steps[id].src.count * recipe.element_bytes);
  }
  recipe.brief = largest <= kBriefBytes;
}

}  // namespace hccomm::engine
