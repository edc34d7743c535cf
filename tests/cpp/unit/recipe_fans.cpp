// SPDX-License-Identifier: Apache-2.0
//
// Which sends of a plan have the same bytes (Recipe::fans): never two between which the slice is
// written, whatever the algorithm; and those of a broadcast by its root.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "algorithm/algorithms.hpp"
#include "engine/operation.hpp"

namespace hccomm::engine {
namespace {

using plan::Kind;
using plan::Slice;
using plan::Step;

// A recipe without steps where the algorithm cannot serve the group.
Recipe recipe_of(const algorithm::Algorithm& each, int size, int rank, std::uint64_t segment) {
  plan::Call call;
  call.collective = each.collective;
  call.type = dtype::DType::F32;
  call.count = each.collective == plan::Collective::Barrier ? 0 : 40'000;
  plan::Group group;
  group.size = size;
  group.rank = rank;
  Recipe recipe;
  if (each.refuses != nullptr && each.refuses(call, group) != nullptr) return recipe;
  recipe.element_bytes = 4;
  recipe.plan = each.make(call, group, {segment});
  finish_recipe(recipe);
  return recipe;
}

// after[a][b]: b must not begin before a has completed.
std::vector<std::vector<bool>> orders(const plan::Plan& plan) {
  const std::size_t steps = plan.steps.size();
  std::vector after(steps, std::vector<bool>(steps));
  for (std::size_t a = steps; a-- > 0;) {  // edges lead to later steps
    const Step& step = plan.steps[a];
    for (std::uint32_t k = 0; k < step.dependents; ++k) {
      const std::uint32_t b = plan.edges[step.first_dependent + k];
      EXPECT_LT(a, b);
      after[a][b] = true;
      for (std::size_t c = 0; c < steps; ++c) after[a][c] = after[a][c] || after[b][c];
    }
  }
  return after;
}

bool overlap(const Slice& a, const Slice& b) {
  return a.space == b.space && a.offset < b.offset + b.count && b.offset < a.offset + a.count;
}

TEST(RecipeFans, NothingIsWrittenBetweenSendsOfTheSameBytes) {
  std::size_t fans = 0;
  for (const algorithm::Algorithm& each : algorithm::algorithms()) {
    for (const int size : {2, 3, 4, 5, 8, 9}) {
      for (const std::uint64_t segment : {0, 2'000}) {
        for (int rank = 0; rank < size; ++rank) {
          const Recipe recipe = recipe_of(each, size, rank, segment);
          if (recipe.fans.empty()) continue;
          const std::vector<Step>& steps = recipe.plan.steps;
          const auto after = orders(recipe.plan);
          for (std::size_t a = 0; a < steps.size(); ++a) {
            for (std::size_t b = a + 1; b < steps.size(); ++b) {
              if (recipe.fans[a] == 0 || recipe.fans[a] != recipe.fans[b]) continue;
              ++fans;
              ASSERT_EQ(steps[a].kind, Kind::Send);
              ASSERT_EQ(steps[a].src, steps[b].src);
              for (std::size_t w = 0; w < steps.size(); ++w) {
                if (steps[w].kind == Kind::Send || !overlap(steps[w].dst, steps[a].src)) continue;
                ASSERT_EQ(after[w][a], after[w][b]) << each.name << ", " << size << " ranks, step "
                                                    << w << " writes between " << a << " and " << b;
              }
            }
          }
        }
      }
    }
  }
  EXPECT_GT(fans, 100U);
}

TEST(RecipeFans, ARootSendsTheSameToAll) {
  const auto* direct = algorithm::find(plan::Collective::Broadcast, "direct");
  const Recipe root = recipe_of(*direct, 5, 0, 0);
  EXPECT_EQ(std::ranges::count(root.fans, 1U), 4);
  EXPECT_TRUE(recipe_of(*direct, 5, 1, 0).fans.empty());
  EXPECT_TRUE(recipe_of(*direct, 2, 0, 0).fans.empty());  // to one alone
  const auto* alltoall = algorithm::find(plan::Collective::AllToAll, "direct");
  EXPECT_TRUE(recipe_of(*alltoall, 5, 0, 0).fans.empty());
}

}  // namespace
}  // namespace hccomm::engine
