// SPDX-License-Identifier: Apache-2.0
//
// What a call costs in memory: a repeated call allocates nothing in the core. A counting operator
// new stands in for the whole program.
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "capi/hccomm.h"
#include "support/own_new.hpp"

static thread_local std::uint64_t allocations = 0;  // a rank is a thread, and drives its engine

bool hccomm::test::allowed() noexcept {
  ++allocations;
  return true;
}

namespace {

constexpr int kRanks = 2;

// Two ranks as threads of this process, which meet in a folder of their own.
class Pair : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ::setenv("HCCOMM_TRANSPORTS", GetParam(), 1);
    std::string folder = ::testing::TempDir() + "hccomm-allocations-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  void TearDown() override {
    ::unsetenv("HCCOMM_TRANSPORTS");
    std::filesystem::remove_all(folder_);
  }

  template <typename Body>
  void on_ranks(Body&& body) {
    const std::string url = "file://" + folder_ + "/meet";
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        hccomm_config config{};
        config.struct_size = sizeof config;
        config.rank = rank;
        config.size = kRanks;
        config.rendezvous = url.c_str();
        config.timeout = 60;
        config.flags = HCCOMM_THREAD_RANK;
        hccomm_comm* comm = nullptr;
        hccomm_error error{};
        ASSERT_EQ(hccomm_init(&config, &comm, &error), HCCOMM_OK) << error.text;
        body(comm, rank);
        EXPECT_EQ(hccomm_close(comm, 10, &error), HCCOMM_OK) << error.text;
      });
    }
    for (std::thread& each : threads) each.join();
  }

 private:
  std::string folder_;
};

hccomm_call call_of(int collective, std::vector<float>& in, std::vector<float>& out,
                    std::uint64_t count) {
  hccomm_call call{};
  call.struct_size = sizeof call;
  call.collective = collective;
  call.dtype = HCCOMM_F32;
  call.op = HCCOMM_SUM;
  call.count = count;
  call.input = {in.data(), in.size(), 0, HCCOMM_DEVICE_HOST, 0, nullptr};
  call.output = {out.data(), out.size(), 0, HCCOMM_DEVICE_HOST, 0, nullptr};
  if (collective == HCCOMM_BROADCAST) call.input = call.output;
  if (collective == HCCOMM_BARRIER) call.input = call.output = {};
  return call;
}

constexpr int kKinds[] = {HCCOMM_ALL_REDUCE, HCCOMM_ALL_GATHER, HCCOMM_REDUCE_SCATTER,
                          HCCOMM_BROADCAST,  HCCOMM_ALL_TO_ALL, HCCOMM_BARRIER};
constexpr std::uint64_t kCounts[] = {2, 2048, 100000};

// The fewest allocations of a window of many repetitions, once warm. A peer that runs further ahead
// than ever before makes us keep more than ever before, once; what each call allocated would show
// in every window.
template <typename Repeat>
std::uint64_t fewest(Repeat&& repeat) {
  repeat(40);
  std::uint64_t least = ~std::uint64_t{0};
  for (int window = 0; window < 8; ++window) {
    const std::uint64_t before = allocations;
    repeat(20);
    least = std::min(least, allocations - before);
  }
  return least;
}

TEST_P(Pair, a_repeated_collective_allocates_nothing) {
  on_ranks([&](hccomm_comm* comm, int rank) {
    std::vector<float> in(kRanks * 100000, 1.0f), out(kRanks * 100000);
    const hccomm_call together = call_of(HCCOMM_BARRIER, in, out, 0);
    hccomm_error error{};
    for (const int kind : kKinds) {
      for (const std::uint64_t count : kCounts) {
        const hccomm_call call =
            call_of(kind, in, out, kind == HCCOMM_BARRIER ? std::uint64_t{0} : count);
        const std::uint64_t least = fewest([&](int times) {
          for (int i = 0; i < times; ++i) {
            ASSERT_EQ(hccomm_run(comm, &call, &error), HCCOMM_OK) << error.text;
          }
          // A root gets no further ahead than while warming up.
          ASSERT_EQ(hccomm_run(comm, &together, &error), HCCOMM_OK) << error.text;
        });

        EXPECT_EQ(least, 0u) << "rank " << rank << ", collective " << kind << ", count " << count;
      }
    }
  });
}

TEST_P(Pair, collectives_in_turn_allocate_nothing) {
  on_ranks([&](hccomm_comm* comm, int rank) {
    std::vector<float> in(kRanks * 100000, 1.0f), out(kRanks * 100000);
    hccomm_error error{};
    const std::uint64_t least = fewest([&](int times) {
      for (int i = 0; i < times; ++i) {
        for (const int kind : kKinds) {
          const hccomm_call call =
              call_of(kind, in, out, kind == HCCOMM_BARRIER ? 0 : kCounts[i % 3]);
          ASSERT_EQ(hccomm_run(comm, &call, &error), HCCOMM_OK) << error.text;
        }
      }
    });

    EXPECT_EQ(least, 0u) << "rank " << rank;
  });
}

INSTANTIATE_TEST_SUITE_P(transports, Pair, ::testing::Values("shm", "tcp"),
                         [](const auto& each) { return std::string(each.param); });

}  // namespace
