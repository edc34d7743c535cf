// SPDX-License-Identifier: Apache-2.0
//
// Buffers that are cut from few large blocks: none overlaps another, and what is given back is used
// again, or goes back to the system.
#include "comm/shared_heap.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace hccomm::comm {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::atomic<int> blocks_alive{0};

struct Block final : transport::Shared {
  explicit Block(std::size_t bytes)
      : memory(static_cast<std::byte*>(
            std::aligned_alloc(2 * kMiB, (bytes + 2 * kMiB - 1) & ~(2 * kMiB - 1)))) {
    ++blocks_alive;
  }
  ~Block() override {
    --blocks_alive;
    std::free(memory);
  }
  std::byte* data() const noexcept override { return memory; }
  std::byte* memory;
};

Result<std::unique_ptr<transport::Shared>> block(std::size_t bytes) {
  return std::unique_ptr<transport::Shared>(std::make_unique<Block>(bytes));
}

TEST(SharedHeap, SmallBuffersShareABlockAndLargeOnesHaveTheirOwn) {
  SharedHeap heap(block);

  std::vector<std::byte*> small;
  for (int k = 0; k < 100; ++k) small.push_back(heap.take(10'000).take());
  EXPECT_EQ(blocks_alive, 1);
  std::byte* const large = heap.take(40 * kMiB).take();
  EXPECT_EQ(blocks_alive, 2);

  EXPECT_EQ(heap.usage().buffers, 101u);
  EXPECT_TRUE(heap.give_back(large));
  EXPECT_EQ(blocks_alive, 1) << "it goes back at once";
  for (std::byte* each : small) EXPECT_TRUE(heap.give_back(each));
  EXPECT_EQ(heap.usage().buffers, 0u);
  EXPECT_EQ(heap.usage().bytes, 0u);
}

TEST(SharedHeap, BuffersOfAHugePageBeginAtOne) {
  SharedHeap heap(block);

  for (const std::uint64_t bytes : {std::uint64_t{1}, 2 * kMiB, 3 * kMiB, 5 * kMiB, 20 * kMiB}) {
    const auto at = reinterpret_cast<std::uintptr_t>(heap.take(bytes).take());
    EXPECT_EQ(at % (bytes < 2 * kMiB ? 4096 : 2 * kMiB), 0u) << bytes;
  }
}

TEST(SharedHeap, WhatWasNotTakenIsNotGivenBackNorAnythingTwice) {
  SharedHeap heap(block);
  std::byte* const data = heap.take(100).take();

  EXPECT_FALSE(heap.give_back(data + 1));
  EXPECT_FALSE(heap.give_back(reinterpret_cast<std::byte*>(&heap)));
  EXPECT_TRUE(heap.give_back(data));
  EXPECT_FALSE(heap.give_back(data));
}

TEST(SharedHeap, NothingOverlapsWhateverTheOrder) {
  struct Taken {
    std::byte* data;
    std::uint64_t bytes;
    unsigned char value;
  };
  SharedHeap heap(block);
  std::minstd_rand random(5);
  std::vector<Taken> all;
  const auto give_back = [&](std::size_t which) {
    for (std::uint64_t k = 0; k < all[which].bytes; k += 997) {
      ASSERT_EQ(all[which].data[k], std::byte{all[which].value});
    }
    ASSERT_TRUE(heap.give_back(all[which].data));
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(which));
  };
  for (int step = 0; step < 2000; ++step) {
    if (all.size() < 30 || random() % 2 == 0) {
      const std::uint64_t bytes = random() % (std::uint64_t{1} << (random() % 22)) + 1;
      all.push_back({heap.take(bytes).take(), bytes, static_cast<unsigned char>(step)});
      std::memset(all.back().data, all.back().value, bytes);
    } else {
      give_back(random() % all.size());
    }
  }
  while (!all.empty()) give_back(all.size() - 1);

  EXPECT_LE(blocks_alive, 1) << "but for the smallest, which waits for the next buffer";
}

TEST(SharedHeap, ManyThreadsTakeAndGiveBack) {
  SharedHeap heap(block);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&heap, thread] {
      for (int k = 0; k < 300; ++k) {
        auto* const data = heap.take(static_cast<std::uint64_t>(k) * 5000).take();
        *data = static_cast<std::byte>(thread);
        ASSERT_TRUE(heap.give_back(data));
      }
    });
  }
  for (std::thread& each : threads) each.join();

  EXPECT_EQ(heap.usage().buffers, 0u);
}

TEST(SharedHeap, WhatTheMachineHasNotIsRefusedBeforeItIsTouched) {
  bool asked = false;
  SharedHeap heap([&](std::size_t bytes) {
    asked = true;
    return block(bytes);
  });

  const auto taken = heap.take(std::uint64_t{1} << 45);

  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.status().code(), Code::System);
  EXPECT_FALSE(asked);
}

TEST(SharedHeap, ARefusalIsToldAndRemembered) {
  SharedHeap heap([](std::size_t) -> Result<std::unique_ptr<transport::Shared>> {
    return Status(Code::Unavailable, "not on this machine");
  });

  EXPECT_EQ(heap.take(100).status().code(), Code::Unavailable);
  EXPECT_EQ(heap.take(~std::uint64_t{0}).status().code(), Code::System);
  EXPECT_EQ(heap.usage().refused, "not on this machine");
  EXPECT_EQ(heap.usage().buffers, 0u);
}

TEST(SharedHeap, AForkedChildTakesNothingAndLeavesTheParentsAlone) {
  SharedHeap& heap = SharedHeap::of_process();
  auto taken = heap.take(100'000);
  if (!taken.ok()) GTEST_SKIP() << taken.status().text();
  std::byte* const data = taken.value();
  *data = std::byte{1};

  const pid_t child = fork();
  if (child == 0) {
    const bool refused = !heap.take(100).ok();
    const bool ignored = heap.give_back(data) && *data == std::byte{1};
    *data = std::byte{2};
    _exit(refused && ignored ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);

  EXPECT_EQ(status, 0);
  EXPECT_EQ(*data, std::byte{2}) << "it is the same memory, not a copy";
  EXPECT_TRUE(heap.give_back(data));
}

}  // namespace
}  // namespace hccomm::comm
