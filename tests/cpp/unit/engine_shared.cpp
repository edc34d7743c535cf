// SPDX-License-Identifier: Apache-2.0
//
// Operations on buffers that peers can map: the same bits, whoever's buffers lie there, also where
// they are given back between two calls, or cannot be mapped.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "engine/engine.hpp"
#include "support/cluster.hpp"
#include "transport/shm/sharing.hpp"

namespace hccomm::test {

using engine::Follow;
using engine::Job;
using engine::Operation;

namespace {

// Integers, in memory that peers can map or in the process's own.
class Numbers {
 public:
  Numbers(std::size_t count, bool shared) : count_(count) {
    if (!shared) {
      own_.resize(count);
      return;
    }
    block_ = transport::shm::share(count * sizeof(std::int64_t)).take();
  }
  std::int64_t* data() {
    return block_ != nullptr ? reinterpret_cast<std::int64_t*>(block_->data()) : own_.data();
  }
  std::int64_t& operator[](std::size_t at) { return data()[at]; }
  void fill(std::int64_t first) { std::iota(data(), data() + count_, first); }

 private:
  std::size_t count_;
  std::vector<std::int64_t> own_;
  std::unique_ptr<transport::Shared> block_;
};

Job job_of(std::shared_ptr<const engine::Recipe> recipe, Numbers& in, Numbers& out) {
  return {std::move(recipe), reinterpret_cast<std::byte*>(in.data()),
          reinterpret_cast<std::byte*>(out.data()), 1.0, Seconds(30)};
}

plan::Call call_of(plan::Collective collective, std::uint64_t count, bool in_place = false) {
  plan::Call call;
  call.collective = collective;
  call.type = dtype::DType::I64;
  call.count = count;
  call.in_place = in_place;
  return call;
}

// Which of a rank's two buffers are shared, of even ranks and then of odd ones: bit 0 what it
// gives, bit 1 where it receives.
constexpr int kWays[] = {1, 2, 3, 6, 9, 12, 15};
bool shares_input(int way, int rank) { return ((way >> (rank % 2 * 2)) & 1) != 0; }
bool shares_output(int way, int rank) { return ((way >> (rank % 2 * 2)) & 2) != 0; }

class SharedBuffers : public testing::TestWithParam<const char*> {};

void reduce(Node& node, std::uint64_t count, const char* algorithm, Numbers& in, Numbers& out) {
  const auto call = call_of(plan::Collective::AllReduce, count, &in == &out);
  const auto recipe = recipe_of(call, node, algorithm, 1 << 20);
  in.fill(node.rank() * 1000);

  const Status status = node.engine().run(node.context(), job_of(recipe, in, out));

  ASSERT_TRUE(status.ok()) << status.text();
  const int ranks = node.size();
  const std::int64_t base = 1000ll * ranks * (ranks - 1) / 2;
  for (std::uint64_t i = 0; i < count; ++i) {
    ASSERT_EQ(out[i], base + static_cast<std::int64_t>(ranks * i)) << algorithm << " at " << i;
  }
}

}  // namespace

TEST_P(SharedBuffers, SumsAreRightWhoeverSharesWhat) {
  for (const int ranks : {2, 3}) {
    Cluster cluster(GetParam(), ranks);
    for (const int way : kWays) {
      for (const char* algorithm : {"direct", "scatter_gather", "ring"}) {
        cluster.run([&](Node& node) {
          for (const std::uint64_t count : {20'011ull, 400'003ull}) {
            Numbers in(count, shares_input(way, node.rank()));
            Numbers out(count, shares_output(way, node.rank()));
            reduce(node, count, algorithm, in, out);
            reduce(node, count, algorithm, out, out);
          }
        });
      }
    }
  }
}

TEST_P(SharedBuffers, MessagesComeWholeWhoeverSharesWhat) {
  Cluster cluster(GetParam(), 2);
  for (const int way : kWays) {
    for (const std::uint64_t count : {20'011ull, 400'003ull}) {
      cluster.run([&](Node& node) {
        Numbers in(count, shares_input(way, node.rank()));
        Numbers out(count, shares_output(way, node.rank()));
        in.fill(node.rank());
        const auto parcel = [&](Numbers& data) {
          return engine::Parcel{1 - node.rank(),
                                7,
                                reinterpret_cast<std::byte*>(data.data()),
                                count * sizeof(std::int64_t),
                                5,
                                Seconds(20),
                                Follow::Soon};
        };
        int source = -1;

        const Status status =
            node.engine().exchange(node.context(), parcel(in), parcel(out), source);

        ASSERT_TRUE(status.ok()) << status.text();
        for (std::uint64_t i = 0; i < count; ++i) {
          ASSERT_EQ(out[i], 1 - node.rank() + static_cast<std::int64_t>(i));
        }
      });
    }
  }
}

TEST_P(SharedBuffers, NewBuffersInThePlaceOfOldOnesAreSeenAsTheyAre) {
  Cluster cluster(GetParam(), 2);

  cluster.run([&](Node& node) {
    for (int round = 0; round < 40; ++round) {
      Numbers data(50'000, (round + node.rank()) % 3 != 0);
      Numbers out(50'000, round % 2 != 0);
      reduce(node, 50'000, "direct", data, out);
    }
  });
}

// A process that may open no file more cannot map what it is shown.
TEST_P(SharedBuffers, WhatCannotBeMappedComesAsItWouldWithout) {
  Cluster cluster(GetParam(), 2);
  const auto all = [&](bool shared) {
    std::vector<std::unique_ptr<Numbers>> data;
    for (int k = 0; k < 4; ++k) data.push_back(std::make_unique<Numbers>(100'000, shared));
    return data;
  };
  auto warm = all(false), data = all(true);
  const auto both = [&](std::vector<std::unique_ptr<Numbers>>& from) {
    cluster.run([&](Node& node) {
      const auto mine = static_cast<std::size_t>(node.rank()) * 2;
      reduce(node, 100'000, "direct", *from[mine], *from[mine + 1]);
      reduce(node, 100'000, "scatter_gather", *from[mine], *from[mine + 1]);
    });
  };
  both(warm);
  rlimit usual{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  const rlimit none{3, usual.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);

  both(data);

  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
}

TEST_P(SharedBuffers, BroadcastAndGatherFromSharedMemory) {
  constexpr std::uint64_t kCount = 300'000;
  Cluster cluster(GetParam(), 3);
  for (const int way : kWays) {
    cluster.run([&](Node& node) {
      Numbers data(kCount, shares_output(way, node.rank()));
      data.fill(node.rank() == 0 ? 5 : 0);
      const auto broadcast = recipe_of(call_of(plan::Collective::Broadcast, kCount, true), node,
                                       "direct", 1 << 20, 12);
      Numbers mine(kCount, shares_input(way, node.rank()));
      Numbers gathered(3 * kCount, shares_output(way, node.rank()));
      mine.fill(node.rank() * 7);
      const auto gather =
          recipe_of(call_of(plan::Collective::AllGather, kCount), node, "direct", 1 << 20, 13);

      const Status first = node.engine().run(node.context(), job_of(broadcast, data, data));
      const Status second = node.engine().run(node.context(), job_of(gather, mine, gathered));

      ASSERT_TRUE(first.ok()) << first.text();
      ASSERT_TRUE(second.ok()) << second.text();
      for (std::uint64_t i = 0; i < kCount; ++i) {
        const auto at = static_cast<std::int64_t>(i);
        ASSERT_EQ(data[i], at + 5);
        for (std::uint64_t from = 0; from < 3; ++from) {
          ASSERT_EQ(gathered[from * kCount + i], static_cast<std::int64_t>(from) * 7 + at);
        }
      }
    });
  }
}

// How often the memory at the address is mapped in this process, by whomever.
static std::ptrdiff_t mappings_of(const void* data) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  std::vector<std::string> inodes;
  std::string ours;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::string mode, offset, device, inode;
    words >> std::hex >> begin >> dash >> end >> mode >> offset >> device >> inode;
    if (at >= begin && at < end) ours = inode;
    inodes.push_back(inode);
  }
  return std::ranges::count(inodes, ours);
}

TEST(SharedBuffersOverShm, AreMappedByWhoTakesThem) {
  const std::uint64_t count = 400'003;
  Cluster cluster("shm", 2);
  Numbers shared(count, true), results[2] = {{count, false}, {count, false}}, own(count, false);
  ASSERT_EQ(mappings_of(shared.data()), 1);

  cluster.run([&](Node& node) {
    reduce(node, count, "direct", node.rank() == 0 ? shared : own, results[node.rank()]);
  });

  const std::string link = cluster[1].engine().describe(cluster[1].context(), 0);
  if (link.find("single copy") == std::string::npos) GTEST_SKIP() << "nothing is mapped: " << link;
  EXPECT_EQ(mappings_of(shared.data()), 2);
}

INSTANTIATE_TEST_SUITE_P(Links, SharedBuffers, testing::Values("shm", "framed-shm", "sealed-shm"),
                         [](const auto& about) {
                           std::string name = about.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace hccomm::test
