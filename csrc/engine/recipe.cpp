// SPDX-License-Identifier: Apache-2.0
//
// What follows from a plan once, and is used by every operation that runs it.
#include <algorithm>
#include <span>
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

static auto place_of(const Step& step) {
  return std::tuple(step.src.space, step.src.offset, step.src.count);
}

// The large sends of which others send the same slice, by slice.
static std::vector<std::uint32_t> fan_candidates(const Recipe& recipe) {
  const std::vector<Step>& steps = recipe.plan.steps;
  std::vector<std::uint32_t> sends;
  if (recipe.outlets.size() < 2) return sends;
  for (const std::uint32_t id : recipe.send_steps) {
    if (steps[id].src.count * recipe.element_bytes > kBriefBytes) sends.push_back(id);
  }
  std::ranges::sort(sends, {}, [&](std::uint32_t id) { return place_of(steps[id]); });
  std::vector<std::uint32_t> alike;
  for (std::size_t k = 0; k < sends.size(); ++k) {
    const auto same = [&](std::size_t other) {
      return other < sends.size() && steps[sends[other]].src == steps[sends[k]].src;
    };
    if (same(k + 1) || same(k - 1)) alike.push_back(sends[k]);
  }
  return alike;
}

// What the steps wait for: waits[first[k]..first[k + 1]) of the k-th of them, in order.
struct Waits {
  Waits(const plan::Plan& plan, const std::vector<std::uint32_t>& of) : first(of.size() + 1) {
    std::vector<std::uint32_t> number(plan.steps.size(), kNone), next;
    for (std::uint32_t k = 0; k < of.size(); ++k) {
      number[of[k]] = k;
      first[k + 1] = first[k] + plan.steps[of[k]].dependencies;
    }
    waits.resize(first.back());
    next = first;
    for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
      const Step& step = plan.steps[id];
      for (std::uint32_t k = 0; k < step.dependents; ++k) {
        const std::uint32_t one = number[plan.edges[step.first_dependent + k]];
        if (one != kNone) waits[next[one]++] = id;
      }
    }
  }
  std::span<const std::uint32_t> operator[](std::size_t k) const {
    return std::span(waits).subspan(first[k], first[k + 1] - first[k]);
  }

  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  std::vector<std::uint32_t> first, waits;
};

// Sends of one slice that wait for the same steps send the same bytes: a step between them that
// wrote there would be one that only the later of them waits for.
static std::vector<std::uint32_t> group_fans(const Recipe& recipe) {
  const std::vector<Step>& steps = recipe.plan.steps;
  const std::vector<std::uint32_t> sends = fan_candidates(recipe);
  if (sends.empty()) return {};
  const Waits waits(recipe.plan, sends);
  std::vector<std::uint32_t> fans(steps.size(), 0);
  std::uint32_t number = 0;
  for (std::size_t k = 0; k < sends.size(); ++k) {
    if (fans[sends[k]] != 0) continue;
    std::uint32_t found = 1;
    for (std::size_t other = k + 1;
         other < sends.size() && steps[sends[other]].src == steps[sends[k]].src; ++other) {
      if (!std::ranges::equal(waits[other], waits[k])) continue;
      if (found++ == 1) fans[sends[k]] = ++number;
      fans[sends[other]] = number;
    }
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
  recipe.fans = group_fans(recipe);
  std::uint64_t largest = 0;
  for (const std::uint64_t each : recipe.inlet_largest) largest = std::max(largest, each);
  for (const std::uint32_t id : recipe.send_steps) {
    recipe.sent_count += plan.steps[id].src.count;
    largest = std::max(largest, plan.steps[id].src.count * recipe.element_bytes);
  }
  recipe.brief = largest <= kBriefBytes;
}

}  // namespace hccomm::engine
