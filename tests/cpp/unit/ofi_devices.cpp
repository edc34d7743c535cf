// SPDX-License-Identifier: Apache-2.0
//
// Messages between cards and the memory of devices, without a copy in host memory: the engine and
// the ofi transport over fake cards (tests/fakes/cards_fabric.c) and fake vendor runtimes, whose
// memory faults where the host touches it. What a card has written there the device sees only after
// the card has read some of it back.
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <deque>

#include "support/card_array.hpp"
#include "support/cards_seen.hpp"
#include "support/fakes.hpp"
#include "support/staged.hpp"

namespace hccomm::test {
namespace {

using engine::OperationKind;
using engine::Settings;

constexpr const char* kTwo = "mlx5_0 0000:81:00.0 up+hmem, mlx5_1 0000:01:00.0 up+hmem";
constexpr std::size_t kLarge = 1'000'003;  // elements: several frames, and an odd end

// Registered memory of devices.
int registered() {
  int out = 0;
  for (const card_key& each : seen().keys) out += each.key != 0 && each.view != 0;
  return out;
}

Settings placing(std::size_t from = 4096) {
  Settings settings = small_pool(64 << 20, 0);
  settings.in_place_bytes = from;
  settings.silence = Seconds(0);  // of a busy machine is no failure here
  return settings;
}

class Devices : public testing::Test {
 protected:
  void SetUp() override {
    seen();
    for (const char* kind : {"cuda", "hip", "musa"}) {
      setenv(device::library_setting(kind).c_str(), fake_path(kind).c_str(), 1);
    }
    setenv("ZE_ENABLE_ALT_DRIVERS", fake_path("level_zero_driver").c_str(), 1);
    if (dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) {
      GTEST_SKIP() << "no libfabric here";
    }
    with_cards(kTwo);
    setenv("HCCOMM_OFI_RAILS", "2", 1);
    before_ = seen();
  }
  void TearDown() override {
    cluster_.reset();
    for (const char* name : {"FAKE_CARDS", "HCCOMM_OFI_RAILS"}) unsetenv(name);
    EXPECT_EQ(seen().refused, before_.refused) << seen().first;
    EXPECT_EQ(registered(), 0) << "device memory stays registered";
    for (const char* kind : {"cuda", "hip", "musa"}) {
      EXPECT_EQ(Fake(kind).count("device_blocks"), 0) << kind;
      EXPECT_EQ(Fake(kind).count("misuses"), 0) << kind;
    }
  }
  static void with_cards(const char* list) { setenv("FAKE_CARDS", list, 1); }
  // The links are up: before, nobody knows whether cards reach a rank.
  Cluster& meet(int ranks, const Settings& settings = placing()) {
    cluster_ = std::make_unique<Cluster>("ofi", ranks, settings);
    cluster_->run([](Node& node) {
      const Call call = call_of(Collective::AllToAll, 1, false);
      const Outcome outcome = perform(node, call, "direct", nullptr, nullptr);
      ASSERT_TRUE(outcome.status.ok()) << outcome.status.text();
    });
    return *cluster_;
  }
  std::uint64_t from_devices() const { return seen().device_bytes[0] - before_.device_bytes[0]; }
  std::uint64_t to_devices() const { return seen().device_bytes[1] - before_.device_bytes[1]; }
  std::uint64_t copies(const char* kind) const {
    return static_cast<std::uint64_t>(Fake(kind).count("copies"));
  }

  cards before_ = {};
  std::unique_ptr<Cluster> cluster_;
};

engine::Parcel parcel_of(int peer, std::uint64_t tag, CardArray& array, const Where& where) {
  return {peer, tag,         array.data(), array.bytes(),
          0,    Seconds(20), Follow::Soon, where.runtime != nullptr ? &where : nullptr};
}

// Rank 0 sends to rank 1.
void send_one(Cluster& cluster, const char* from, const char* to, std::size_t count,
              std::uint64_t tag = 3) {
  cluster.run([&](Node& node) {
    const bool sends = node.rank() == 0;
    CardArray data(sends ? from : to, numbers(count, sends ? 7 : -1));
    const Where where = data.where();
    const auto kind = sends ? OperationKind::Send : OperationKind::Recv;
    Operation* op =
        node.engine().start(node.context(), kind, parcel_of(1 - node.rank(), tag, data, where));
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
    ASSERT_TRUE(status.ok()) << status.text();
    node.engine().release(*op);
    ASSERT_EQ(data.values(), numbers(count, 7));
  });
}

TEST_F(Devices, OfTwoVendorsTalkWithoutACopyOnTheHost) {
  Cluster& cluster = meet(2);
  const std::uint64_t cuda = copies("cuda"), hip = copies("hip");

  send_one(cluster, "cuda", "hip", kLarge);

  EXPECT_EQ(from_devices(), kLarge * 8);
  EXPECT_EQ(to_devices(), kLarge * 8);
  EXPECT_EQ(copies("cuda"), cuda);
  EXPECT_EQ(copies("hip"), hip);
  EXPECT_GT(seen().reads, before_.reads) << "nobody has read back what was written";
}

TEST_F(Devices, MeetPeersOnTheHost) {
  Cluster& cluster = meet(2);

  for (const std::size_t count : {9'000ul, 70'000ul, kLarge}) {
    send_one(cluster, "cuda", nullptr, count);
    send_one(cluster, nullptr, "cuda", count);
  }

  EXPECT_GE(from_devices(), kLarge * 8);
  EXPECT_GE(to_devices(), kLarge * 8 - 8192) << "all but what fits a small slot";
}

// The others are told of by address: their runtimes refuse to give a dmabuf, or have no such call.
TEST_F(Devices, WhoseRuntimeGivesADmabufAreRegisteredByIt) {
  Cluster& cluster = meet(2);
  Fake("cuda").set("dmabuf=1");

  send_one(cluster, "cuda", "hip", kLarge);
  send_one(cluster, "hip", "cuda", kLarge);

  Fake("cuda").set("dmabuf=0");
  EXPECT_EQ(from_devices(), 2 * kLarge * 8);
  EXPECT_EQ(seen().device_keys - before_.device_keys, 8u) << "of two buffers twice, on two cards";
  EXPECT_EQ(seen().dmabufs - before_.dmabufs, 4u);
}

TEST_F(Devices, OfLevelZeroAreReadAndWrittenInPlace) {
  auto& registry = device::Registry::global();
  if (auto runtime = registry.runtime(device::Kind::LevelZero); !runtime.ok()) {
    GTEST_SKIP() << runtime.status().text();
  }
  Cluster& cluster = meet(2);
  const std::uint64_t copied = copies("level_zero");

  send_one(cluster, "level_zero", "cuda", kLarge);
  send_one(cluster, "cuda", "level_zero", kLarge);
  send_one(cluster, nullptr, "level_zero", kLarge);

  EXPECT_EQ(from_devices(), 2 * kLarge * 8);
  EXPECT_GE(to_devices(), 3 * kLarge * 8 - 8192);
  EXPECT_EQ(copies("level_zero"), copied);
  EXPECT_EQ(Fake("level_zero").count("misuses"), 0);
}

TEST_F(Devices, OfAVendorThatTheLibraryDoesNotKnowAreStaged) {
  Cluster& cluster = meet(2);

  send_one(cluster, "musa", "cuda", kLarge);
  send_one(cluster, "cuda", "musa", kLarge);

  EXPECT_EQ(from_devices(), kLarge * 8);
  EXPECT_EQ(to_devices(), kLarge * 8);
  EXPECT_GT(copies("musa"), 0u);
}

TEST_F(Devices, WhoseMemoryIsRefusedAreStagedAndSaySo) {
  with_cards("mlx5_0 0000:81:00.0 up+hmem, mlx5_1 0000:01:00.0 up+hmem+refuses");
  Cluster& cluster = meet(2);

  send_one(cluster, "cuda", "hip", kLarge);
  send_one(cluster, "cuda", "hip", kLarge);

  EXPECT_EQ(from_devices() + to_devices(), 0u);
  EXPECT_EQ(seen().device_refusals - before_.device_refusals, 2u) << "asked for again and again";
  const auto report = cluster[0].engine().devices();
  ASSERT_EQ(report.size(), 1u);
  EXPECT_NE(report[0].text.find("register 8000024 bytes of the memory of cuda:0 on mlx5_1"),
            std::string::npos)
      << report[0].text;
}

TEST_F(Devices, AreStagedWhereOneOfTheCardsDoesNotReachThem) {
  with_cards("mlx5_0 0000:81:00.0 up+hmem, mlx5_1 0000:01:00.0 up");
  Cluster& cluster = meet(2);

  send_one(cluster, "cuda", "hip", kLarge);

  EXPECT_EQ(seen().device_keys, before_.device_keys);
}

TEST_F(Devices, SmallBuffersAreStaged) {
  Cluster& cluster = meet(2, placing(kLarge * 8 + 1));

  send_one(cluster, "cuda", "hip", kLarge);

  EXPECT_EQ(seen().device_keys, before_.device_keys);
}

// More than a peer can be told places for: the others go through slots and late copies.
TEST_F(Devices, ManyMessagesAtOnceArriveWhateverWayTheyTake) {
  Cluster& cluster = meet(2);

  cluster.run([&](Node& node) {
    constexpr int kMessages = 60;
    std::deque<CardArray> arrays;
    std::deque<Where> wheres;
    std::vector<Operation*> ops;
    for (int k = 0; k < kMessages; ++k) {
      const bool sends = (k + node.rank()) % 2 == 0;
      const char* const kinds[] = {"cuda", "hip", nullptr};
      arrays.emplace_back(kinds[(k + node.rank()) % 3], numbers(20'001, sends ? k : -1));
      wheres.push_back(arrays.back().where());
      ops.push_back(node.engine().start(
          node.context(), sends ? OperationKind::Send : OperationKind::Recv,
          parcel_of(1 - node.rank(), static_cast<std::uint64_t>(k), arrays.back(), wheres.back())));
    }
    for (std::size_t k = 0; k < ops.size(); ++k) {
      const Status status = node.engine().wait(*ops[k], Deadline::after(Seconds(20)));
      ASSERT_TRUE(status.ok()) << status.text();
      node.engine().release(*ops[k]);
      ASSERT_EQ(arrays[k].values(), numbers(20'001, static_cast<int>(k))) << "message " << k;
    }
  });

  EXPECT_GT(from_devices(), 0u);
  EXPECT_GT(to_devices(), 0u);
}

// What a call gives, each rank's buffers on `kind`.
std::vector<std::vector<std::int64_t>> outputs(
    Cluster& cluster, const Call& call, const char* algorithm,
    const std::function<const char*(int rank)>& kind_of) {
  std::vector<std::vector<std::int64_t>> all(static_cast<std::size_t>(cluster.size()));
  cluster.run([&](Node& node) {
    plan::Group group;
    group.rank = node.rank();
    group.size = node.size();
    const std::uint64_t in = plan::input_count(call, group), out = plan::output_count(call, group);
    const char* const kind = kind_of(node.rank());
    const bool together = call.collective == Collective::Broadcast;
    const std::uint64_t held = std::max<std::uint64_t>(together ? std::max(in, out) : in, 1);
    CardArray input(kind, numbers(held, node.rank() * 1'000'000));
    CardArray other(kind, numbers(std::max<std::uint64_t>(together ? 0 : out, 1), -5));
    CardArray& output = together ? input : other;
    const engine::Buffers buffers{{output.where(), input.where()}};
    engine::Job job{recipe_of(call, node, algorithm, 256 << 10), input.data(), output.data(), 1.0,
                    Seconds(20)};
    if (kind != nullptr) job.device = &buffers;
    const Status status = node.engine().run(node.context(), job);
    EXPECT_TRUE(status.ok()) << algorithm << ": " << status.text();
    all[static_cast<std::size_t>(node.rank())] = output.values();
  });
  return all;
}

TEST_F(Devices, CollectivesThatMoveDataGiveWhatTheyGiveOnTheHost) {
  for (const int ranks : {2, 4}) {
    Cluster& cluster = meet(ranks);
    for (const algorithm::Algorithm& each : algorithm::algorithms()) {
      if (std::string_view(each.name) == "two_level") continue;  // wants hosts
      const Call call = call_of(each.collective, 60'000, false, ranks - 1);
      const auto host = [](int) { return static_cast<const char*>(nullptr); };
      const auto mixed = [](int rank) {
        const char* const kinds[] = {"cuda", "hip", nullptr, "cuda"};
        return kinds[rank % 4];
      };
      const auto expected = outputs(cluster, call, each.name, host);
      const std::uint64_t moved = from_devices() + to_devices();
      ASSERT_EQ(outputs(cluster, call, each.name, mixed), expected)
          << plan::name(each.collective) << " " << each.name << ", " << ranks;
      const bool reduces = each.collective == Collective::AllReduce ||
                           each.collective == Collective::Reduce ||
                           each.collective == Collective::ReduceScatter;
      const bool has_large = std::string_view(each.name).find("bruck") == std::string_view::npos;
      if (!reduces && each.collective != Collective::Barrier && has_large) {
        EXPECT_GT(from_devices() + to_devices(), moved)
            << plan::name(each.collective) << " " << each.name;
      }
    }
  }
}

// What the program has registered is not registered again by a call, nor by one of a part of it.
TEST_F(Devices, WhatIsRegisteredOnceServesAllCalls) {
  Cluster& cluster = meet(2);
  cluster.run([&](Node& node) {
    const bool sends = node.rank() == 0;
    CardArray data(sends ? "cuda" : "hip", numbers(kLarge, sends ? 7 : -1));
    const Where where = data.where();
    const transport::DeviceMemory kept = engine::for_cards(where, data.bytes()).take();
    const Status enrolled = node.enroll(kept);
    ASSERT_TRUE(enrolled.ok()) << enrolled.text();
    for (const std::uint64_t tag : {1u, 2u, 3u}) {
      engine::Parcel parcel = parcel_of(1 - node.rank(), tag, data, where);
      if (tag == 3) parcel.bytes /= 2;
      Operation* op = node.engine().start(
          node.context(), sends ? OperationKind::Send : OperationKind::Recv, parcel);
      const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
      EXPECT_TRUE(status.ok()) << status.text();
      node.engine().release(*op);
    }
    EXPECT_EQ(data.values(), numbers(kLarge, 7));
    node.expel(kept);
  });
  EXPECT_EQ(seen().device_keys - before_.device_keys, 4u) << "two ranks, two cards each";
  EXPECT_GT(to_devices(), 0u);
}

// Rank 0 sends what rank 1 does not take: `act` ends it, and says why on each rank.
void expect_failure(Cluster& cluster, const char* from, const char* to,
                    const std::function<void(Node&)>& act, Code code) {
  cluster.run([&](Node& node) {
    const bool sends = node.rank() == 0;
    constexpr int kMessages = 6;
    std::deque<CardArray> arrays;
    std::deque<Where> wheres;
    std::vector<Operation*> ops;
    for (int k = 0; k <= kMessages; ++k) {  // nobody answers the last
      const int tag = k < kMessages ? k : 100 + node.rank();
      arrays.emplace_back(sends ? from : to, numbers(kLarge, k));
      wheres.push_back(arrays.back().where());
      ops.push_back(node.engine().start(node.context(),
                                        sends ? OperationKind::Send : OperationKind::Recv,
                                        parcel_of(1 - node.rank(), static_cast<std::uint64_t>(tag),
                                                  arrays.back(), wheres.back())));
    }
    act(node);
    bool failed = false;
    for (Operation* op : ops) {
      const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
      failed = failed || !status.ok();
      EXPECT_TRUE(status.ok() || status.code() == code) << status.text();
      node.engine().release(*op);
    }
    EXPECT_TRUE(failed);
  });
}

TEST_F(Devices, AnAbortInTheMiddleOfMessagesLeavesNothingBehind) {
  for (const int who : {0, 1}) {
    Cluster& cluster = meet(2);
    expect_failure(
        cluster, "cuda", "hip",
        [who](Node& node) {
          if (node.rank() != who) return;
          std::this_thread::sleep_for(std::chrono::milliseconds(5));
          node.engine().poison(node.context(), Status(Code::Aborted, "enough"), true);
        },
        Code::Aborted);
    cluster_.reset();
    EXPECT_EQ(registered(), 0);
    EXPECT_EQ(Fake("cuda").count("pinned_blocks"), 0);
    EXPECT_EQ(Fake("hip").count("pinned_blocks"), 0);
  }
}

// The stream that leads to the message is the one to fail.
TEST_F(Devices, ALostDeviceFailsTheMessageOnBothSidesAndIsNamed) {
  Cluster& cluster = meet(2);

  cluster.run([&](Node& node) {
    const bool sends = node.rank() == 0;
    CardArray data(sends ? "cuda" : nullptr, numbers(kLarge, 7));
    void* stream = nullptr;
    device::Stream made;
    void* pinned = nullptr;
    if (sends) {
      made = data.runtime()->stream_create(0).take();
      stream = made.native;
      pinned = data.runtime()->host_allocate(0, 4096).take();
      Fake("cuda").set("lost=1");
      ASSERT_TRUE(data.runtime()->copy_in(made, data.where().place, pinned, 4096).ok());
    }
    const Where where = data.where(stream);
    const auto kind = sends ? OperationKind::Send : OperationKind::Recv;
    Operation* op =
        node.engine().start(node.context(), kind, parcel_of(1 - node.rank(), 3, data, where));
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
    EXPECT_EQ(status.code(), Code::System) << status.text();
    EXPECT_EQ(status.rank(), 0) << status.text();
    node.engine().release(*op);
    if (!sends) return;
    Fake("cuda").set("lost=0");
    const device::Event ended = data.runtime()->event_create(0).take();
    ASSERT_TRUE(data.runtime()->event_record(ended, made).ok());
    EXPECT_TRUE(comes(*data.runtime(), ended)) << "the copy that lost the device does not end";
    data.runtime()->event_destroy(ended);
    data.runtime()->host_free(0, pinned);
    data.runtime()->stream_destroy(made);
  });
}

// The caller's stream writes the message late, and reads where it shall lie until then.
TEST_F(Devices, TheCallersStreamIsWaitedFor) {
  Cluster& cluster = meet(2);

  cluster.run([&](Node& node) {
    const bool sends = node.rank() == 0;
    CardArray data(sends ? "cuda" : "hip", numbers(kLarge, -1));
    device::Runtime& runtime = *data.runtime();
    const device::Stream stream = runtime.stream_create(0).take();
    void* const pinned = runtime.host_allocate(0, data.bytes()).take();
    auto* const host = static_cast<std::int64_t*>(pinned);
    for (std::size_t k = 0; k < kLarge; ++k) host[k] = 7 + static_cast<std::int64_t>(k);
    Fake(sends ? "cuda" : "hip").set("latency_us=50000");
    const device::Place place = data.where().place;
    const Status copied = sends ? runtime.copy_in(stream, place, pinned, data.bytes())
                                : runtime.copy_out(stream, pinned, place, data.bytes());
    Fake(sends ? "cuda" : "hip").set("latency_us=5");
    ASSERT_TRUE(copied.ok()) << copied.text();
    const Where where = data.where(stream.native);
    Operation* op =
        node.engine().start(node.context(), sends ? OperationKind::Send : OperationKind::Recv,
                            parcel_of(1 - node.rank(), 3, data, where));
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
    EXPECT_TRUE(status.ok()) << status.text();
    node.engine().release(*op);
    EXPECT_EQ(data.values(), numbers(kLarge, 7));
    const auto last = static_cast<std::int64_t>(kLarge) + (sends ? 6 : -2);
    EXPECT_EQ(host[kLarge - 1], last) << "the place was written too early";
    runtime.host_free(0, pinned);
    runtime.stream_destroy(stream);
  });

  EXPECT_EQ(from_devices(), kLarge * 8);
}

}  // namespace
}  // namespace hccomm::test
