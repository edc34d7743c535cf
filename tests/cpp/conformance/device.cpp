// SPDX-License-Identifier: Apache-2.0
//
// What every device adapter must do, run over each that is here: a real runtime where the machine
// has one, else the vendor's fake. One that is absent is skipped with the reason it gives.
#include "device/device.hpp"

#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include "engine/sums.hpp"
#include "support/fakes.hpp"

namespace hccomm::device {

using test::comes;

static Registry& registry() {
  static Registry* const all = [] {
    test::use_fakes();
    setenv("HCCOMM_PLUGINS", HCCOMM_FAKES "/plugins/libexample_plugin.so", 0);
    return new Registry(builtins());
  }();
  return *all;
}

class Device : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto found = registry().runtime(registry().kind(GetParam()).value());
    if (!found.ok()) GTEST_SKIP() << found.status().text();
    runtime = found.value();
    last = std::move(runtime->count()).take() - 1;
    fake.emplace(GetParam());
    if (fake->here()) misuses = fake->count("misuses");
  }
  void TearDown() override {
    if (runtime == nullptr || !fake->here()) return;
    EXPECT_EQ(fake->count("misuses"), misuses);
    EXPECT_EQ(fake->count("pageable_copies"), 0);
    for (const char* each : {"device_blocks", "pinned_blocks", "streams", "events"}) {
      EXPECT_EQ(fake->count(each), 0) << each << " were not given back";
    }
  }

  Runtime* runtime = nullptr;
  int last = 0;  // the last device
  std::optional<test::Fake> fake;
  std::int64_t misuses = 0;
};

// Pinned and device memory, a stream and an event of one device, given back in the end.
struct Bench {
  Bench(Runtime& used, int device, std::size_t bytes) : runtime(used), index(device), size(bytes) {
    host = static_cast<std::byte*>(std::move(runtime.host_allocate(index, bytes)).take());
    back = static_cast<std::byte*>(std::move(runtime.host_allocate(index, bytes)).take());
    place = std::move(runtime.allocate(index, bytes)).take();
    stream = std::move(runtime.stream_create(index)).take();
    event = std::move(runtime.event_create(index)).take();
    for (std::size_t at = 0; at < bytes; ++at) host[at] = static_cast<std::byte>(at * 7 + index);
    std::memset(back, 0, bytes);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench() {
    runtime.event_destroy(event);
    runtime.stream_destroy(stream);
    runtime.release(index, place);
    runtime.host_free(index, host);
    runtime.host_free(index, back);
  }

  bool finish() { return runtime.event_record(event, stream).ok() && comes(runtime, event); }
  bool same() const { return std::memcmp(host, back, size) == 0; }

  Runtime& runtime;
  const int index;
  const std::size_t size;
  std::byte *host, *back;
  Place place;
  Stream stream;
  Event event;
};

TEST_P(Device, CountsAndDescribesItsDevices) {
  EXPECT_GE(last, 0);
  EXPECT_FALSE(runtime->library().empty());
  for (int index = 0; index <= last; ++index) {
    EXPECT_FALSE(runtime->describe(index).empty());
    EXPECT_TRUE(runtime->health(index).ok()) << runtime->health(index).text();
  }
}

TEST_P(Device, BringsBackWhatWasCopiedInOnEveryDevice) {
  for (int index = 0; index <= last; ++index) {
    for (const std::size_t bytes :
         {std::size_t{1}, std::size_t{4096}, std::size_t{1 << 20} + 192}) {
      Bench bench(*runtime, index, bytes);

      ASSERT_TRUE(runtime->copy_in(bench.stream, bench.place, bench.host, bytes).ok());
      ASSERT_TRUE(runtime->copy_out(bench.stream, bench.back, bench.place, bytes).ok());

      ASSERT_TRUE(bench.finish());
      EXPECT_TRUE(bench.same()) << bytes << " bytes on device " << index;
    }
  }
}

TEST_P(Device, GivesPinnedMemoryOnPageBoundaries) {
  Bench bench(*runtime, 0, 5000);

  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(bench.host) % 4096, 0u);
}

TEST_P(Device, CopiesPartsAtOddOffsets) {
  Bench bench(*runtime, 0, 10000);
  const std::size_t cut = 1237;
  ASSERT_TRUE(runtime->copy_in(bench.stream, bench.place, bench.host, cut).ok());

  Place rest = bench.place;
  rest.offset += cut;
  ASSERT_TRUE(runtime->copy_in(bench.stream, rest, bench.host + cut, 10000 - cut).ok());
  ASSERT_TRUE(runtime->copy_out(bench.stream, bench.back, bench.place, 3).ok());
  rest.offset = bench.place.offset + 3;
  ASSERT_TRUE(runtime->copy_out(bench.stream, bench.back + 3, rest, 10000 - 3).ok());

  ASSERT_TRUE(bench.finish());
  EXPECT_TRUE(bench.same());
}

TEST_P(Device, ReducesToTheBitsOfTheHostOrSaysWhyNot) {
  const std::string why = runtime->lacks(Feature::Reduce);
  if (!why.empty()) {
    Bench bench(*runtime, 0, 64);
    EXPECT_EQ(runtime->reduce_in(bench.stream, bench.place, bench.place, bench.host, 1, {}).code(),
              Code::Unavailable);
    GTEST_SKIP() << why;
  }
  for (const dtype::DType type : {dtype::DType::I32, dtype::DType::F32}) {
    const Reduction how{static_cast<std::int32_t>(type), 0};
    const engine::SumTrial trial =
        engine::try_sums(*runtime, last, how, dtype::reduce(type, dtype::RedOp::Sum), 4);
    EXPECT_EQ(trial.why_not, "") << dtype::name(type);
  }
  const engine::SumTrial none = engine::try_sums(
      *runtime, 0, {0, 5}, dtype::reduce(dtype::DType::Bool, dtype::RedOp::Band), 1);
  EXPECT_NE(none.why_not, "");
}

TEST_P(Device, AnswersTrueForAnEventNeverRecorded) {
  Bench bench(*runtime, 0, 64);

  auto done = runtime->event_query(bench.event);

  ASSERT_TRUE(done.ok()) << done.status().text();
  EXPECT_TRUE(done.value());
}

TEST_P(Device, RecordsOneEventManyTimes) {
  Bench bench(*runtime, 0, 4096);

  for (int round = 0; round < 50; ++round) {
    bench.host[0] = static_cast<std::byte>(round);
    ASSERT_TRUE(runtime->copy_in(bench.stream, bench.place, bench.host, 4096).ok());
    ASSERT_TRUE(runtime->copy_out(bench.stream, bench.back, bench.place, 4096).ok());
    ASSERT_TRUE(bench.finish());
    ASSERT_EQ(bench.back[0], static_cast<std::byte>(round));
  }
}

TEST_P(Device, MakesOneStreamWaitForAnother) {
  Bench producer(*runtime, last, 1 << 20);
  auto consumer = std::move(runtime->stream_create(last)).take();
  auto seen = std::move(runtime->event_create(last)).take();

  for (int round = 0; round < 8; ++round) {
    producer.host[0] = static_cast<std::byte>(round);
    ASSERT_TRUE(runtime->copy_in(producer.stream, producer.place, producer.host, 1 << 20).ok());
    ASSERT_TRUE(runtime->event_record(producer.event, producer.stream).ok());
    ASSERT_TRUE(runtime->stream_wait(consumer, producer.event).ok());
    ASSERT_TRUE(runtime->copy_out(consumer, producer.back, producer.place, 1 << 20).ok());
    ASSERT_TRUE(runtime->event_record(seen, consumer).ok());
    ASSERT_TRUE(comes(*runtime, seen));
    ASSERT_TRUE(producer.same()) << "round " << round;
  }

  runtime->event_destroy(seen);
  runtime->stream_destroy(consumer);
}

TEST_P(Device, OrdersItselfWithTheCallersDefaultStream) {
  Bench bench(*runtime, last, 4096);
  const Stream callers{last, 0, nullptr};

  ASSERT_TRUE(runtime->event_record(bench.event, callers).ok());
  ASSERT_TRUE(runtime->stream_wait(bench.stream, bench.event).ok());
  ASSERT_TRUE(runtime->copy_in(bench.stream, bench.place, bench.host, 4096).ok());
  ASSERT_TRUE(runtime->copy_out(bench.stream, bench.back, bench.place, 4096).ok());
  ASSERT_TRUE(runtime->event_record(bench.event, bench.stream).ok());
  ASSERT_TRUE(runtime->stream_wait(callers, bench.event).ok());

  ASSERT_TRUE(comes(*runtime, bench.event));
  EXPECT_TRUE(bench.same());
}

TEST_P(Device, PutsBackTheDeviceThatWasCurrent) {
  {
    const Bench first(*runtime, 0, 64);
  }  // a thread that has no device yet may be given one
  const int before = std::move(runtime->current()).take();

  {
    const Bench bench(*runtime, last, 4096);
  }

  EXPECT_EQ(std::move(runtime->current()).take(), before);
}

TEST_P(Device, ServesSeveralThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int each = 0; each < 4; ++each) {
    threads.emplace_back([&, each] {
      Bench bench(*runtime, each % (last + 1), 100000);
      bool good = true;
      for (int round = 0; round < 10; ++round) {
        good = good && runtime->copy_in(bench.stream, bench.place, bench.host, 100000).ok() &&
               runtime->copy_out(bench.stream, bench.back, bench.place, 100000).ok() &&
               bench.finish() && bench.same();
      }
      right += good ? 1 : 0;
    });
  }
  for (std::thread& each : threads) each.join();

  EXPECT_EQ(right, 4);
}

TEST_P(Device, RefusesADeviceThatIsNotThere) {
  const auto memory = runtime->host_allocate(last + 1, 4096);

  ASSERT_FALSE(memory.ok());
  EXPECT_NE(memory.status().text().find(GetParam()), std::string::npos) << memory.status().text();
}

TEST_P(Device, SaysWhatItLacksAndKeepsToIt) {
  std::vector<std::byte> storage(3 * 4096);
  auto* page = reinterpret_cast<std::byte*>(
      (reinterpret_cast<std::uintptr_t>(storage.data()) + 4095) / 4096 * 4096);

  const Status pinned = runtime->host_register(0, page, 4096);

  EXPECT_EQ(pinned.ok(), runtime->lacks(Feature::HostRegister).empty()) << pinned.text();
  if (pinned.ok()) runtime->host_unregister(0, page);
}

TEST_P(Device, KeepsTheHostOutOfItsMemory) {
  if (!fake->here()) GTEST_SKIP() << "asked of the fakes only: a real one may share memory";
  Bench bench(*runtime, 0, 4096);
  std::byte peeked[16];
  const iovec here{peeked, sizeof peeked}, there{bench.place.handle, sizeof peeked};

  const ssize_t read = process_vm_readv(getpid(), &here, 1, &there, 1, 0);

  EXPECT_EQ(read, -1);
}

static std::vector<const char*> names() {
  std::vector<const char*> all;
  for (const Builtin& each : builtins()) all.push_back(each.name);
  all.push_back("examplechip");  // examples/device_plugin.c
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, Device, testing::ValuesIn(names()),
                         [](const auto& which) { return std::string(which.param); });

}  // namespace hccomm::device
