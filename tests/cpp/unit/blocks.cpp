// SPDX-License-Identifier: Apache-2.0
//
// Memory for frames that came early: a block that was filled as its frame came is kept itself.
#include "engine/blocks.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

namespace hccomm::test {

using engine::Blocks;

TEST(Blocks, WhatIsInHandIsHandedOnAndNotCopied) {
  Blocks blocks;
  Blocks::Block frame = blocks.take(100'000), kept;
  std::memset(frame.get(), 7, 100'000);
  const std::byte* const where = frame.get();

  blocks.with(std::move(frame),
              [&](const std::byte* payload) { kept = blocks.copy(payload, 100'000); });

  EXPECT_EQ(kept.get(), where);
  EXPECT_EQ(kept[99'999], std::byte{7});
}

TEST(Blocks, WhatIsNotInHandIsCopied) {
  Blocks blocks;
  const Blocks::Block other = blocks.take(100);
  std::memset(other.get(), 5, 100);
  Blocks::Block kept;

  blocks.with(blocks.take(100), [&](const std::byte*) { kept = blocks.copy(other.get(), 100); });

  EXPECT_NE(kept.get(), other.get());
  EXPECT_EQ(kept[99], std::byte{5});
}

TEST(Blocks, WhatNobodyKeepsIsUsedAgain) {
  Blocks blocks;
  const std::byte* where = nullptr;

  blocks.with(blocks.take(100'000), [&](const std::byte* payload) { where = payload; });

  EXPECT_EQ(blocks.take(100'000).get(), where);
}

}  // namespace hccomm::test
