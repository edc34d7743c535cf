// SPDX-License-Identifier: Apache-2.0
//
// Vendors' collective libraries and islands: against strict fakes over the fake runtimes, ranks as
// threads, one device each.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <thread>

#include "native/ccl.hpp"
#include "native/handle.hpp"
#include "native/islands.hpp"
#include "native/shares.hpp"
#include "support/fakes.hpp"

namespace hccomm::native {

using device::Kind;

static constexpr int kRanks = 3;
static constexpr Reduction kSum{DType::F32, RedOp::Sum};

// One rank: a device, a stream, device memory for the call and host memory to look at it.
class Rank {
 public:
  Rank(device::Runtime& used, int rank, std::size_t most_bytes)
      : runtime(used), index(rank), bytes(most_bytes) {
    stream = std::move(runtime.stream_create(index)).take();
    event = std::move(runtime.event_create(index)).take();
    place = std::move(runtime.allocate(index, bytes)).take();
    host = std::move(runtime.host_allocate(index, bytes)).take();
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;
  ~Rank() {
    runtime.host_free(index, host);
    runtime.release(index, place);
    runtime.event_destroy(event);
    runtime.stream_destroy(stream);
  }
  bool finish() { return runtime.event_record(event, stream).ok() && test::comes(runtime, event); }
  void fill(const std::vector<float>& values) {
    std::memcpy(host, values.data(), values.size() * sizeof(float));
    ASSERT_TRUE(runtime.copy_in(stream, place, host, values.size() * sizeof(float)).ok());
  }
  std::vector<float> read(std::size_t count) {
    std::vector<float> values(count, -1);
    EXPECT_TRUE(runtime.copy_out(stream, host, place, count * sizeof(float)).ok());
    EXPECT_TRUE(finish());
    std::memcpy(values.data(), host, count * sizeof(float));
    return values;
  }
  float* at(std::size_t element) const { return static_cast<float*>(place.handle) + element; }

  device::Runtime& runtime;
  const int index;
  const std::size_t bytes;
  device::Stream stream;
  device::Event event;
  device::Place place;
  void* host = nullptr;
};

class Native : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    setenv("HCCOMM_TEST_FAKE", "devices=4", 1);
    test::use_fakes();
    for (const char* kind : {"cuda", "musa", "ascend"}) {
      const std::string name = std::string("ccl_") + kind;
      setenv(device::library_setting(name).c_str(), test::fake_path(name).c_str(), 1);
    }
    static device::Registry* const registry = new device::Registry(device::builtins());
    runtime = std::move(registry->runtime(GetParam())).take();
    ccl = std::move(library(GetParam())).take();
  }

  // Runs `body` as each rank of a group, on threads.
  void as_ranks(const std::function<void(Rank&, Group&, int)>& body, std::size_t bytes = 1 << 20) {
    const std::string id = std::move(ccl->make_id()).take();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([&, rank] {
        Rank own(*runtime, rank, bytes);
        auto group = ccl->join(id, rank, kRanks, *runtime, rank);
        ASSERT_TRUE(group.ok()) << group.status().text();
        body(own, *group.value(), rank);
      });
    }
    for (std::thread& each : threads) each.join();
  }

  device::Runtime* runtime = nullptr;
  Library* ccl = nullptr;
};

TEST_P(Native, TellsItsVersionAndWhatItCannotReduce) {
  EXPECT_EQ(ccl->version(), GetParam() == Kind::Ascend ? "unknown" : "2.21.5");
  EXPECT_EQ(ccl->refuses(DType::F32, RedOp::Sum), "");
  EXPECT_NE(ccl->refuses(DType::F32, RedOp::Bxor), "");
  EXPECT_NE(ccl->refuses(DType::C128, RedOp::Sum), "");
}

TEST_P(Native, ReducesGathersAndBroadcastsOnTheStream) {
  as_ranks([](Rank& own, Group& group, int rank) {
    const std::size_t part = 20000;
    std::vector<float> values(kRanks * part);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(i % 64) * static_cast<float>(rank + 1);
    }
    own.fill(values);

    ASSERT_TRUE(
        group.reduce_scatter(own.at(0), own.at(rank * part), part, kSum, own.stream.native).ok());
    ASSERT_TRUE(
        group.all_gather(own.at(rank * part), own.at(0), part * sizeof(float), own.stream.native)
            .ok());
    const std::vector<float> sums = own.read(values.size());
    ASSERT_TRUE(group.broadcast(own.at(0), own.at(0), 20, 2, own.stream.native).ok());
    ASSERT_TRUE(
        group.all_reduce(own.at(0), own.at(0), 5, {DType::F32, RedOp::Max}, own.stream.native)
            .ok());

    for (std::size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(sums[i], static_cast<float>(i % 64) * (1 + 2 + 3)) << i;
    }
    EXPECT_EQ(own.read(5), (std::vector<float>{0, 6, 12, 18, 24}));
    EXPECT_TRUE(group.health().ok());
  });
}

TEST_P(Native, FailsOnAllRanksThatCallDifferentThings) {
  as_ranks([](Rank& own, Group& group, int rank) {
    ASSERT_TRUE(
        group.all_reduce(own.at(0), own.at(0), rank == 1 ? 5 : 6, kSum, own.stream.native).ok());
    own.finish();

    const char* const says = GetParam() == Kind::Ascend ? "not supported" : "invalid usage";
    EXPECT_NE(group.health().text().find(says), std::string::npos) << group.health().text();
  });
}

TEST_P(Native, RefusesMemoryThatIsNotTheDevices) {
  as_ranks([](Rank& own, Group& group, int) {
    std::vector<float> host(4);

    const Status status = group.all_reduce(host.data(), host.data(), 4, kSum, own.stream.native);

    const char* const says =
        GetParam() == Kind::Ascend ? "AllReduce failed: parameter" : "AllReduce failed: invalid";
    EXPECT_NE(status.text().find(says), std::string::npos) << status.text();
  });
}

TEST_P(Native, EndsWhatWaitsWhenARankAborts) {
  as_ranks([](Rank& own, Group& group, int rank) {
    if (rank == 0) {
      group.abort();
      EXPECT_EQ(group.health().code(), Code::Aborted);
      return;
    }
    if (GetParam() == Kind::Ascend) return;  // its abort is destruction, and ends with its work
    const Status started = group.all_reduce(own.at(0), own.at(0), 4, kSum, own.stream.native);
    EXPECT_TRUE(own.finish());

    EXPECT_TRUE(started.ok());
    const Status echo = group.health();
    EXPECT_EQ(echo.code(), Code::Aborted) << "another rank has the reason";
    EXPECT_NE(echo.text().find("CommGetAsyncError failed"), std::string::npos) << echo.text();
  });
}

TEST_P(Native, ReducesToOneRankAndCarriesMessages) {
  as_ranks([&](Rank& own, Group& group, int rank) {
    own.fill({1, 2, 3, 4});
    ASSERT_TRUE(group.reduce(own.at(0), own.at(0), 4, kSum, 1, own.stream.native).ok());
    const float scale = rank == 1 ? kRanks : 1;
    EXPECT_EQ(own.read(4), (std::vector<float>{scale, 2 * scale, 3 * scale, 4 * scale}));
    if (!ccl->lacks_messages().empty()) return;
    const int right = (rank + 1) % kRanks, left = (rank + kRanks - 1) % kRanks;
    own.fill({static_cast<float>(rank), -1});

    ASSERT_TRUE(group.begin().ok());
    ASSERT_TRUE(group.send(own.at(0), sizeof(float), right, own.stream.native).ok());
    ASSERT_TRUE(group.recv(own.at(1), sizeof(float), left, own.stream.native).ok());
    ASSERT_TRUE(group.end().ok());

    EXPECT_EQ(own.read(2)[1], static_cast<float>(left));
  });
}

TEST_P(Native, AveragesAndScalesWhereTheLibraryCan) {
  as_ranks([&](Rank& own, Group& group, int rank) {
    for (const RedOp op : {RedOp::Avg, RedOp::PremulSum}) {
      if (!ccl->refuses(DType::F32, op).empty()) {
        EXPECT_EQ(GetParam(), Kind::Ascend);
        continue;
      }
      own.fill({static_cast<float>(rank), 4});
      const Reduction how{DType::F32, op, 2.0};
      ASSERT_TRUE(group.all_reduce(own.at(0), own.at(0), 2, how, own.stream.native).ok());
      EXPECT_EQ(own.read(2),
                op == RedOp::Avg ? (std::vector<float>{1, 4}) : (std::vector<float>{6, 24}));
    }
  });
}

TEST_P(Native, AnAbortAmidCallsThatStartTogetherLeavesTheThreadAsItWas) {
  as_ranks([&](Rank& own, Group& group, int) {
    ASSERT_TRUE(group.begin().ok());
    std::thread aborting([&] { group.abort(); });
    const Deadline deadline = Deadline::after(Seconds(5));
    while (group.health().ok() && !deadline.passed()) std::this_thread::yield();
    (void)group.end();
    aborting.join();

    auto alone = ccl->join(ccl->make_id().take(), 0, 1, *runtime, own.index);
    ASSERT_TRUE(alone.ok()) << alone.status().text();
    own.fill({1, 2, 3, 4, 0, 0, 0, 0});
    Group& other = *alone.value();
    ASSERT_TRUE(other.all_reduce(own.at(0), own.at(4), 4, kSum, own.stream.native).ok());
    EXPECT_EQ(own.read(8), (std::vector<float>{1, 2, 3, 4, 1, 2, 3, 4}));
  });
}

INSTANTIATE_TEST_SUITE_P(Fakes, Native, testing::Values(Kind::Cuda, Kind::Musa, Kind::Ascend));

TEST(NativeHandle, IsTakenOnce) {
  int comm = 0;
  Handle handle(&comm);
  const auto is_comm = [&](void* own) {
    return own == &comm ? Status() : Status(Code::Internal, "another");
  };

  EXPECT_TRUE(handle.use("nccl", is_comm).ok());
  EXPECT_EQ(handle.take(), &comm);
  EXPECT_EQ(handle.take(), nullptr);
  EXPECT_EQ(handle.use("nccl", is_comm).text(), "nccl: the group was aborted");
}

TEST(NativeLibrary, SaysWhyItIsNotHere) {
  unsetenv("HCCOMM_CCL_HIP_LIB");

  auto rccl = library(Kind::Hip);

  if (rccl.ok()) GTEST_SKIP() << "this machine has " << rccl.value()->path();
  EXPECT_EQ(rccl.status().code(), Code::Unavailable);
  EXPECT_NE(rccl.status().text().find("HCCOMM_CCL_HIP_LIB"), std::string::npos);
}

static Member nvidia(const std::string& host, int index) {
  return {"cuda", "cuda:" + std::to_string(index), "nccl 2.21.5", host, "", ""};
}
static Member moore(const std::string& host, int index) {
  return {"musa", "musa:" + std::to_string(index), "mccl 2.21.5", host, "", ""};
}

using Lists = std::vector<std::vector<int>>;

TEST(Islands, AreOneVendorOnOneHostInAnyRankOrder) {
  const std::vector<Member> members = {nvidia("a", 0), moore("a", 0),
                                       nvidia("b", 0), nvidia("a", 1),
                                       moore("a", 1),  {"host", "host", "", "a", "", ""}};

  EXPECT_EQ(find_islands(members), (Lists{{0, 3}, {1, 4}, {2}, {5}}));
}

TEST(Islands, SpanHostsOfOneFabric) {
  std::vector<Member> members = {nvidia("a", 0), nvidia("b", 0), nvidia("c", 0)};
  members[0].fabric = members[1].fabric = "nvlink-7";

  EXPECT_EQ(find_islands(members), (Lists{{0, 1}, {2}}));
}

TEST(Islands, KeepVersionsApartAndTwoRanksOfOneDevice) {
  std::vector<Member> members = {nvidia("a", 0), nvidia("a", 0), nvidia("a", 1)};
  EXPECT_EQ(find_islands(members), (Lists{{0, 2}, {1}}));
  EXPECT_NE(why_apart(members[0], members[1]).find("takes once"), std::string::npos);

  members[2].compatible = "nccl 2.18.1";

  EXPECT_EQ(find_islands(members), (Lists{{0}, {1}, {2}}));
  EXPECT_NE(why_apart(members[0], members[2]).find("do not mix"), std::string::npos);
}

TEST(Islands, FollowTheLabels) {
  std::vector<Member> members = {nvidia("a", 0), nvidia("a", 1), nvidia("a", 2), nvidia("a", 3)};
  members[1].label = members[3].label = "left";
  EXPECT_EQ(find_islands(members), (Lists{{0, 2}, {1, 3}}));

  members[0].label = "none";

  EXPECT_EQ(find_islands(members), (Lists{{0}, {1, 3}, {2}}));
}

TEST(Islands, ASettingNamesThem) {
  EXPECT_EQ(label_of("auto", 3), "");
  EXPECT_EQ(label_of("off", 3), "none");
  EXPECT_EQ(label_of("left", 3), "left");
  EXPECT_EQ(label_of("0-3; 4,6", 3), "list 0");
  EXPECT_EQ(label_of("0-3; 4,6", 6), "list 1");
  EXPECT_EQ(label_of("0-3; 4,6", 5), "none");
  EXPECT_EQ(label_of("rack-7.b", 0), "rack-7.b");
  for (const char* wrong : {"3-1", "1,", ";", "1--2", "99999999999", "0-3;3,4", "1,1", "on", "Off",
                            "TRUE", "left right", "-left", "0-3/4", "\xc3\xa9t\xc3\xa9"}) {
    try {
      label_of(wrong, 0);
      ADD_FAILURE() << wrong << " was taken";
    } catch (const Error& refusal) {
      const std::string says = refusal.status().text();
      EXPECT_EQ(refusal.status().code(), Code::InvalidArgument);
      EXPECT_EQ(says.find(std::string("HCCOMM_ISLAND=\"") + wrong + "\""), 0u) << says;
      EXPECT_NE(says.find("write \"auto\""), std::string::npos) << says;
    }
  }
}

TEST(Islands, OfOneLabelSpanHosts) {
  std::vector<Member> members = {nvidia("a", 0), nvidia("b", 0)};
  members[0].label = members[1].label = "all";

  EXPECT_EQ(find_islands(members), (Lists{{0, 1}}));
}

TEST(Shares, DivideABlockAsTheySay) {
  EXPECT_EQ(part_begins(12, {64, 64, 64}), (std::vector<std::uint64_t>{0, 4, 8, 12}));
  EXPECT_EQ(part_begins(10, {1, 3}), (std::vector<std::uint64_t>{0, 2, 10}));
  EXPECT_EQ(part_begins(10, only(3, 1)), (std::vector<std::uint64_t>{0, 0, 10, 10}));
  const std::uint64_t large = std::uint64_t{1} << 60;
  EXPECT_EQ(part_begins(large, {1, 1})[1], large / 2);
}

TEST(Shares, GiveRailsOfTheOwnersOfTheSameElements) {
  const std::vector<Rail> rails = rails_of(12, {{1, 1, 1}, {1, 1}, {1}});

  const std::vector<Rail> expected = {
      {0, 4, {0, 0, 0}}, {4, 6, {1, 0, 0}}, {6, 8, {1, 1, 0}}, {8, 12, {2, 1, 0}}};
  EXPECT_EQ(rails, expected);
  EXPECT_EQ(rails_of(3, {only(2, 1), {1, 1}}), (std::vector<Rail>{{0, 1, {1, 0}}, {1, 3, {1, 1}}}));
  EXPECT_TRUE(rails_of(0, {{1}, {1}}).empty());
}

TEST(Shares, FollowWhatWasMeasured) {
  EXPECT_EQ(reshare({64, 64}, {1e9, 1.1e9}), (Shares{64, 64})) << "noise";
  EXPECT_EQ(reshare({64, 64}, {1e9, 0}), (Shares{64, 64})) << "unknown";
  EXPECT_EQ(reshare({64, 64}, {1e9, 3e9}), (Shares{32, 96}));
  EXPECT_EQ(reshare({64, 64}, {1, 1e9})[0], 16u) << "not below a quarter";
  EXPECT_EQ(reshare({32, 96}, {1e9, 3e9}), (Shares{32, 96})) << "settled";
}

TEST(Shares, TakeARailToBeAsFastAsItsSlowerEnd) {
  std::vector<std::vector<double>> rates{{4, 2}, {7}, {3, 5}, {1, 2, 3}, {9, 1}};

  settle_ends(rates);

  EXPECT_EQ(rates, (std::vector<std::vector<double>>{{3, 1}, {7}, {3, 1}, {1, 2, 3}, {3, 1}}));
}

TEST(Shares, SpreadPiecesAsOftenAsTheySay) {
  std::vector<int> times(3, 0);
  for (std::size_t n = 0; n < 64; ++n)
    ++times[static_cast<std::size_t>(owner_of_piece(n, {16, 32, 16}))];
  EXPECT_EQ(times, (std::vector<int>{16, 32, 16}));
  EXPECT_NE(owner_of_piece(0, {1, 1}), owner_of_piece(1, {1, 1}));
}

}  // namespace hccomm::native
