// SPDX-License-Identifier: Apache-2.0
//
// Memory that peers map: what one process shares another sees, as long as it is shared and not a
// moment longer, and what it holds stays.
#include "transport/shm/sharing.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <vector>

#include "transport/shm/peer_memory.hpp"

namespace hccomm::transport::shm {
namespace {

constexpr std::size_t kBytes = 1 << 16;

std::uint64_t address_of(const Shared& block) {
  return reinterpret_cast<std::uintptr_t>(block.data());
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

// This process stands for the peer, too: it reads its own table as it would another's.
class ShmSharing : public testing::Test {
 protected:
  void SetUp() override {
    const Nonce nonce = fresh_nonce().take();
    Nonce here[2] = {nonce, {}};
    if (!probe_peer(getpid(), reinterpret_cast<std::uintptr_t>(here), nonce)) {
      GTEST_SKIP() << "process_vm_readv is refused here";
    }
  }
  Views views_{getpid(), exports_address()};
};

TEST_F(ShmSharing, WhatOneWritesTheOtherSees) {
  const auto block = share(kBytes).take();
  const auto view = views_.find(address_of(*block) + 100, 1000);
  ASSERT_NE(view, nullptr);
  std::memset(block->data() + 100, 7, 1000);

  EXPECT_NE(view->data, block->data());
  EXPECT_EQ(view->at(address_of(*block) + 100)[999], std::byte{7});
  EXPECT_EQ(views_.find(address_of(*block), kBytes), view) << "mapped twice";
}

TEST_F(ShmSharing, NothingElseIsSeen) {
  const auto block = share(kBytes).take();
  std::vector<std::byte> mine(kBytes);

  EXPECT_EQ(views_.find(reinterpret_cast<std::uintptr_t>(mine.data()), kBytes), nullptr);
  EXPECT_EQ(views_.find(address_of(*block) + 1, kBytes), nullptr) << "beyond its end";
  EXPECT_EQ(views_.find(address_of(*block), ~std::uint64_t{0}), nullptr);
  EXPECT_EQ(Views(getpid(), 0).find(address_of(*block), 1), nullptr);
}

TEST_F(ShmSharing, AProcessKnowsWhatItShares) {
  std::vector<std::byte> mine(kBytes);
  auto low = share(kBytes).take();
  auto high = share(kBytes).take();
  if (low->data() > high->data()) std::swap(low, high);

  EXPECT_TRUE(shares(low->data(), kBytes));
  EXPECT_TRUE(shares(high->data() + 5, kBytes - 5));
  EXPECT_FALSE(shares(low->data() + 1, kBytes)) << "beyond its end";
  EXPECT_FALSE(shares(low->data(), ~std::uint64_t{0}));
  EXPECT_FALSE(shares(mine.data(), 1));
  std::byte* const was = low->data();
  low.reset();
  EXPECT_FALSE(shares(was, 1));
  EXPECT_TRUE(shares(high->data(), 1));
}

TEST_F(ShmSharing, LargeMemoryBeginsWhereAHugePageCan) {
  constexpr std::size_t kHuge = 2 << 20;
  const auto block = share(2 * kHuge + 4096).take();
  const auto view = views_.find(address_of(*block), 1);
  ASSERT_NE(view, nullptr);

  EXPECT_EQ(address_of(*block) % kHuge, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view->data) % kHuge, 0u);
  block->data()[2 * kHuge + 4095] = std::byte{6};
  EXPECT_EQ(view->data[2 * kHuge + 4095], std::byte{6});
}

TEST_F(ShmSharing, WhatIsSharedNoLongerIsLetGoOf) {
  auto block = share(kBytes).take();
  const auto kept = share(kBytes).take();
  const std::weak_ptr<const View> gone = views_.find(address_of(*block), 1);
  const std::weak_ptr<const View> stays = views_.find(address_of(*kept), 1);
  block.reset();

  views_.tidy();

  EXPECT_TRUE(gone.expired());
  EXPECT_FALSE(stays.expired());
}

TEST_F(ShmSharing, WhatIsNoLongerSharedIsNotSeenButStaysForWhoHoldsIt) {
  auto block = share(kBytes).take();
  const std::uint64_t address = address_of(*block);
  block->data()[5] = std::byte{9};
  const auto view = views_.find(address, kBytes);
  ASSERT_NE(view, nullptr);

  block.reset();

  EXPECT_EQ(views_.find(address, kBytes), nullptr);
  EXPECT_EQ(view->data[5], std::byte{9});
}

TEST_F(ShmSharing, NewMemoryAtAnOldAddressIsNotTakenForTheOld) {
  auto block = share(kBytes).take();
  const std::uint64_t address = address_of(*block);
  ASSERT_NE(views_.find(address, kBytes), nullptr);
  block.reset();
  block = share(kBytes).take();  // the kernel gives the same place, as a rule
  block->data()[0] = std::byte{3};

  const auto view = views_.find(address_of(*block), kBytes);

  ASSERT_NE(view, nullptr);
  EXPECT_EQ(view->data[0], std::byte{3});
  if (address_of(*block) != address) GTEST_SKIP() << "the kernel gave another address";
}

TEST_F(ShmSharing, AFullTableIsAnErrorUntilThereIsRoom) {
  std::vector<std::unique_ptr<Shared>> blocks;
  for (std::size_t k = 0; k < kExports; ++k) blocks.push_back(share(4096).take());

  EXPECT_EQ(share(4096).status().code(), Code::System);
  EXPECT_NE(views_.find(address_of(*blocks.back()), 4096), nullptr);
  blocks.erase(blocks.begin());
  EXPECT_TRUE(share(4096).ok());
}

TEST_F(ShmSharing, NothingLeaks) {
  const auto once = [&] {
    const auto block = share(kBytes).take();
    ASSERT_NE(views_.find(address_of(*block), kBytes), nullptr);
  };
  once();
  const std::size_t before = open_descriptors();
  for (int k = 0; k < 200; ++k) once();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ShmSharing, AnotherProcessSeesItAndOutlivesIt) {
  int ready[2], go[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(go), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto made = share(kBytes);
    if (!made.ok()) _exit(1);
    std::memset(made.value()->data(), 4, kBytes);
    const std::uint64_t told[2] = {exports_address(), address_of(*made.value())};
    char byte = 0;
    if (write(ready[1], told, sizeof told) != sizeof told || read(go[0], &byte, 1) != 1) _exit(1);
    _exit(0);
  }
  std::uint64_t told[2] = {};
  ASSERT_EQ(read(ready[0], told, sizeof told), static_cast<ssize_t>(sizeof told));
  const auto view = Views(child, told[0]).find(told[1], kBytes);
  ASSERT_EQ(write(go[1], "x", 1), 1);
  int status = 0;
  waitpid(child, &status, 0);

  EXPECT_EQ(status, 0);
  ASSERT_NE(view, nullptr);
  EXPECT_EQ(view->data[kBytes - 1], std::byte{4});
  EXPECT_EQ(Views(child, told[0]).find(told[1], kBytes), nullptr) << "the process has ended";
  for (const int fd : {ready[0], ready[1], go[0], go[1]}) close(fd);
}

}  // namespace
}  // namespace hccomm::transport::shm
