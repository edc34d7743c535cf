// SPDX-License-Identifier: Apache-2.0
//
// Whatever a device does, operations end, all ranks learn whose it was, and nothing leaks.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <mutex>

#include "support/staged.hpp"

namespace hccomm::test {

class StagingFailures : public testing::TestWithParam<const char*> {};

TEST_P(StagingFailures, ALostDeviceFailsTheGroupAndIsNamed) {
  const auto fails_at = [](Collective collective, const char* algorithm, int copies) {
    TestDevice a("alpha", 10e-6, 4e9), b("beta");
    Cluster cluster(GetParam(), 3, small_pool(8 << 20));
    b.copies_left = copies;

    cluster.run([&](Node& node) {
      const Call call = call_of(collective, 40'000, collective == Collective::AllReduce);
      TestDevice* const device = of_rank(node.rank(), 0, a, b);
      const Outcome outcome = perform(node, call, algorithm, device, device);

      EXPECT_EQ(outcome.status.code(), Code::System) << outcome.status.text();
      EXPECT_EQ(outcome.status.rank(), 2);
      EXPECT_NE(outcome.status.text().find("beta:0"), std::string::npos) << outcome.status.text();
    });
  };
  for (const int copies : {0, 1, 3, 9}) {
    fails_at(Collective::AllReduce, "ring", copies);
    fails_at(Collective::AllToAll, "direct", copies);
  }
}

TEST_P(StagingFailures, ADeviceThatCannotBeOpenedFailsTheGroupAndIsNamed) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 3, small_pool(8 << 20));
  b.pins_left = 0;

  cluster.run([&](Node& node) {
    const Call call = call_of(Collective::AllReduce, 40'000, false);
    TestDevice* const device = of_rank(node.rank(), 0, a, b);
    const Outcome outcome = perform(node, call, "ring", device, device);

    EXPECT_EQ(outcome.status.code(), Code::System) << outcome.status.text();
    EXPECT_NE(outcome.status.text().find("out of memory"), std::string::npos)
        << outcome.status.text();
  });
}

TEST_P(StagingFailures, ALostDeviceFailsAMessageOnBothSides) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20, 64 << 10));
  a.copies_left = 2;

  cluster.run([&](Node& node) {
    Array data(node.rank() == 0 ? &a : nullptr, numbers(200'000, 1));
    const Where where = data.where();
    Operation* op = node.rank() == 0
                        ? node.engine().start(node.context(), engine::OperationKind::Send,
                                              parcel(1, 3, data, where))
                        : node.engine().start(node.context(), engine::OperationKind::Recv,
                                              parcel(0, 3, data, where));
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
    EXPECT_EQ(status.code(), Code::System) << status.text();
    EXPECT_EQ(status.rank(), 0);
    node.engine().release(*op);
  });
}

// ---- HCCOMM_INTEGRITY: no copy that changes a bit becomes a wrong result ----------------------

static std::string words_for(bool in, const std::string& device) {
  return "copy from " + (in ? "the host to " + device : device + " to the host") + ", bytes ";
}

// What is read again may be what is wrong: odd ones of the copies from a device. Others may be done
// before a device has its last bytes.
TEST_P(StagingFailures, ACopyThatChangesABitFailsTheGroupAndIsNamed) {
  for (const std::size_t pool : {std::size_t{1} << 20, std::size_t{8} << 20}) {
    for (const bool in : {false, true}) {
      for (const int sound : {0, 1, 4, 7}) {
        TestDevice a("alpha", 10e-6, 4e9), b("beta");
        Cluster cluster(GetParam(), 3, checked(small_pool(pool)));
        (in ? b.sound_in : b.sound_out) = sound;

        cluster.run([&](Node& node) {
          const Call call = call_of(Collective::AllReduce, 100'000, true);
          TestDevice* const device = of_rank(node.rank(), 0, a, b);
          const Outcome outcome = perform(node, call, "ring", device, device);

          if (in && node.rank() != 2 && outcome.status.ok()) return;
          EXPECT_EQ(outcome.status.code(), Code::Integrity) << outcome.status.text();
          EXPECT_EQ(outcome.status.rank(), 2);
          EXPECT_NE(outcome.status.text().find(words_for(in, "beta:0")), std::string::npos)
              << outcome.status.text();
        });
      }
    }
  }
}

// The sender's copies fail both sides; the receiver's come after the sender is done.
TEST_P(StagingFailures, ACopyThatChangesABitFailsAMessageAndIsNamed) {
  for (const bool in : {false, true}) {
    for (const int sound : {0, 3}) {
      TestDevice a("alpha"), b("beta");
      Cluster cluster(GetParam(), 2, checked(small_pool(8 << 20, 64 << 10)));
      (in ? b.sound_in : a.sound_out) = sound;

      cluster.run([&](Node& node) {
        const bool sends = node.rank() == 0;
        Array data(sends ? &a : &b, numbers(200'000, 1));
        const Where where = data.where();
        Operation* op = node.engine().start(
            node.context(), sends ? engine::OperationKind::Send : engine::OperationKind::Recv,
            parcel(1 - node.rank(), 3, data, where));
        const Status status = node.engine().wait(*op, Deadline::after(Seconds(20)));
        node.engine().release(*op);
        if (in && sends && status.ok()) return;
        EXPECT_EQ(status.code(), Code::Integrity) << status.text();
        EXPECT_EQ(status.rank(), in ? 1 : 0);
        EXPECT_NE(status.text().find(words_for(in, in ? "beta:0" : "alpha:0")), std::string::npos)
            << status.text();
      });
    }
  }
}

// Rank 0 begins an operation on a device that is stalled, and `meanwhile` runs on rank 1 once it
// has.
static Status stall(Cluster& cluster, TestDevice& device,
                    const std::function<void(Node&)>& meanwhile,
                    const std::function<void()>& afterwards) {
  Status outcome;
  std::atomic<bool> begun{false};
  device.stalled = true;
  cluster.run([&](Node& node) {
    const Call call = call_of(Collective::AllReduce, 40'000, true);
    const Deadline deadline = Deadline::after(Seconds(30));
    if (node.rank() == 1) {
      while (!begun && !deadline.passed()) std::this_thread::yield();
      meanwhile(node);
      return;
    }
    Array data(&device, numbers(call.count, 1));
    const Where where = data.where();
    const engine::Buffers buffers{{where, where}};
    engine::Job job{recipe_of(call, node, "ring", 512), nullptr, nullptr, 1.0, Seconds(20)};
    job.device = &buffers;
    Operation* op = node.engine().start(node.context(), job, Follow::Soon);
    EXPECT_GT(device.unfinished, 0);
    begun = true;
    outcome = node.engine().wait(*op, deadline);
    node.engine().release(*op);
    afterwards();
    while (device.unfinished > 0 && !deadline.passed()) std::this_thread::yield();
  });
  return outcome;
}

TEST_P(StagingFailures, ADeadlineEndsTheOperationOnceItsCopiesAreOver) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20));

  const Status status = stall(
      cluster, a,
      [&](Node& node) {
        const Call call = call_of(Collective::AllReduce, 40'000, true);
        const Outcome outcome = perform(node, call, "ring", nullptr, nullptr, 0.1);
        EXPECT_EQ(outcome.status.code(), Code::Timeout) << outcome.status.text();
        a.stalled = false;
      },
      [&] { EXPECT_EQ(a.unfinished, 0) << "the buffer was still in use"; });

  EXPECT_EQ(status.code(), Code::Timeout) << status.text();
}

TEST_P(StagingFailures, CopiesThatNeverEndHoldUpNothingForLong) {
  TestDevice a("alpha"), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20));

  const Status status = stall(
      cluster, a,
      [&](Node& node) {
        node.engine().poison(node.context(), Status(Code::Aborted, "enough"), true);
      },
      [&] { a.stalled = false; });

  EXPECT_EQ(status.code(), Code::Aborted) << status.text();
  EXPECT_NE(status.text().find("may still use"), std::string::npos) << status.text();
}

TEST_P(StagingFailures, AnAbortWithCopiesInFlightLeaksNothing) {
  TestDevice a("alpha", 2e-3), b("beta");
  Cluster cluster(GetParam(), 2, small_pool(8 << 20));

  cluster.run([&](Node& node) {
    TestDevice* const device = node.rank() == 0 ? &a : nullptr;
    Array data(device, numbers(100'000, 1));
    const Where where = data.where();
    const engine::Buffers buffers{{where, where}};
    const Call call = call_of(Collective::AllReduce, 100'000, true);
    engine::Job job{recipe_of(call, node, "ring", 4096), data.data(), data.data()};
    if (device != nullptr) job.device = &buffers;
    Operation* op = node.engine().start(node.context(), job, Follow::Soon);
    std::thread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      node.engine().poison(node.context(), Status(Code::Aborted, "enough"), true);
    });
    const Status status = node.engine().wait(*op, Deadline::after(Seconds(10)));
    late.join();
    EXPECT_EQ(status.code(), Code::Aborted) << status.text();
    node.engine().release(*op);
  });
}

// What leaves a device in pieces is offered while it grows (wire.md): a peer that says the same
// twice, or leaves half-way, ends the call on both sides, and nothing is copied from it any more.
TEST(StagingFailuresOverShm, AnOfferThatStopsGrowingIsAnError) {
  for (const Deed deed : {Deed::Repeat, Deed::Cut}) {
    TestDevice a("alpha", 50e-6, 1e9), b("beta");
    Cluster cluster("faulty-shm", 2, small_pool(64 << 20, 64 << 10));
    std::mutex mutex;
    std::array<Status, 2> status;
    const auto all_to_all = [&] {
      cluster.run([&](Node& node) {
        const Call call = call_of(Collective::AllToAll, 200'000, false);
        const bool sends = node.rank() == 0;
        const Outcome outcome =
            perform(node, call, "direct", sends ? &a : nullptr, sends ? nullptr : &b);
        const std::lock_guard lock(mutex);
        status[static_cast<std::size_t>(node.rank())] = outcome.status;
      });
    };
    for (int call = 0; call < 2; ++call) all_to_all();  // it has told what each can do
    ASSERT_TRUE(status[0].ok() && status[1].ok()) << status[0].text() << status[1].text();
    std::atomic<int> grown{0};
    cluster[0].mischief().on_send([&](const wire::Header& header) {
      const bool grows = header.type == wire::Type::Ready && (header.flags & wire::kGrowing) != 0;
      return grows && grown++ == 3 ? deed : Deed::Pass;
    });

    // A busy machine copies some calls whole before the first piece is told.
    for (int call = 0; call < 100 && status[0].ok(); ++call) all_to_all();

    ASSERT_GT(grown, 3);
    const Code expected = deed == Deed::Repeat ? Code::Integrity : Code::PeerLost;
    EXPECT_EQ(status[1].code(), expected) << status[1].text();
    EXPECT_EQ(status[1].rank(), 0);
    EXPECT_FALSE(status[0].ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, StagingFailures, testing::Values("inproc", "tcp", "shm"),
                         [](const auto& each) { return std::string(each.param); });

}  // namespace hccomm::test
