// SPDX-License-Identifier: Apache-2.0
//
// Device memory between two processes of one vendor, over the strict fakes: a handle is of a whole
// allocation, is opened elsewhere than it was made, and each open is closed.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "support/fakes.hpp"

namespace hccomm::device {

using test::comes;
using test::Fake;

static constexpr std::size_t kBytes = 1 << 20, kOffset = 4096 + 16;

namespace {

Runtime* cuda() {
  test::use_fakes();
  return Registry::global().runtime(Kind::Cuda).take();
}

// Fills device memory with a value, or reads it.
void move(Runtime& runtime, Place place, std::vector<std::byte>& data, bool in) {
  void* const pinned = runtime.host_allocate(0, data.size()).take();
  const Stream stream = runtime.stream_create(0).take();
  const Event event = runtime.event_create(0).take();
  if (in) std::copy(data.begin(), data.end(), static_cast<std::byte*>(pinned));
  const Status status = in ? runtime.copy_in(stream, place, pinned, data.size())
                           : runtime.copy_out(stream, pinned, place, data.size());
  ASSERT_TRUE(status.ok()) << status.text();
  ASSERT_TRUE(runtime.event_record(event, stream).ok());
  ASSERT_TRUE(comes(runtime, event));
  const auto* const begin = static_cast<std::byte*>(pinned);
  if (!in) std::copy(begin, begin + data.size(), data.begin());
  runtime.event_destroy(event);
  runtime.stream_destroy(stream);
  runtime.host_free(0, pinned);
}

// Another process with two blocks of device memory, each of which it has exported; at a word it
// frees the first.
class Exporter {
 public:
  Exporter() {
    int told[2] = {}, orders[2] = {};
    if (pipe(told) != 0 || pipe(orders) != 0) return;
    cuda();
    pid_ = fork();
    if (pid_ == 0) {
      close(orders[1]);
      serve(told[1], orders[0]);
    }
    close(told[1]);
    close(orders[0]);
    orders_ = orders[1];
    for (Export& each : exports) each = read_one(told[0]);
    close(told[0]);
  }
  ~Exporter() {
    close(orders_);
    waitpid(pid_, &status, 0);
    EXPECT_EQ(status, 0);
  }
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;
  void free_first() const {
    ASSERT_EQ(write(orders_, "f", 1), 1);
    // Until its number is gone from the descriptor; 20 s at most.
    for (int look = 0; look < 20'000 && Fake("cuda").here(); ++look) {
      auto again = cuda()->ipc_open(0, exports[0].handle);
      if (!again.ok()) return;
      cuda()->ipc_close(0, again.value());
      usleep(1000);
    }
  }

  Export exports[2];
  int status = 0;

 private:
  static Export read_one(int from) {
    std::uint64_t head[3] = {};
    EXPECT_EQ(read(from, head, sizeof head), static_cast<ssize_t>(sizeof head));
    Export made{std::string(head[2], '\0'), head[0], head[1]};
    EXPECT_EQ(read(from, made.handle.data(), head[2]), static_cast<ssize_t>(head[2]));
    return made;
  }
  [[noreturn]] static void serve(int told, int orders) {
    Runtime& runtime = *cuda();
    Place blocks[2];
    for (int k = 0; k < 2; ++k) {
      blocks[k] = runtime.allocate(0, kBytes).take();
      std::vector<std::byte> values(kBytes, std::byte(k + 1));
      move(runtime, blocks[k], values, true);
      const Export made = runtime.ipc_export(0, {blocks[k].handle, kOffset}).take();
      const std::uint64_t head[3] = {made.offset, made.bytes, made.handle.size()};
      if (write(told, head, sizeof head) < 0) _exit(2);
      if (write(told, made.handle.data(), made.handle.size()) < 0) _exit(2);
    }
    char order = 0;
    while (read(orders, &order, 1) == 1) runtime.release(0, blocks[0]);
    _exit(Fake("cuda").count("misuses") == 0 ? 0 : 1);
  }

  pid_t pid_ = -1;
  int orders_ = -1;
};

}  // namespace

TEST(DeviceIpc, WhatAnotherProcessHasExportedIsCopiedFromDeviceToDevice) {
  const Exporter exporter;
  Runtime& runtime = *cuda();
  const Place mine = runtime.allocate(0, kBytes).take();
  const Stream stream = runtime.stream_create(0).take();
  const Event event = runtime.event_create(0).take();

  const Export& theirs = exporter.exports[1];
  const Place opened = runtime.ipc_open(0, theirs.handle).take();
  const Place from{opened.handle, opened.offset + theirs.offset};
  const Status status = runtime.copy_across(stream, mine, from, kBytes - kOffset);
  ASSERT_TRUE(runtime.event_record(event, stream).ok());
  ASSERT_TRUE(comes(runtime, event));

  EXPECT_TRUE(status.ok()) << status.text();
  EXPECT_EQ(theirs.offset, kOffset);
  EXPECT_EQ(theirs.bytes, kBytes);
  EXPECT_EQ(runtime.ipc_bytes(0, opened), kBytes);
  std::vector<std::byte> got(kBytes - kOffset);
  move(runtime, mine, got, false);
  EXPECT_EQ(std::ranges::count(got, std::byte(2)), static_cast<std::ptrdiff_t>(got.size()));
  runtime.ipc_close(0, opened);
  runtime.event_destroy(event);
  runtime.stream_destroy(stream);
  runtime.release(0, mine);
  EXPECT_EQ(Fake("cuda").count("opened"), 0);
  EXPECT_EQ(Fake("cuda").count("misuses"), 0);
}

TEST(DeviceIpc, NoTwoAllocationsHaveTheSameHandle) {
  Runtime& runtime = *cuda();
  const Place first = runtime.allocate(0, kBytes).take();
  const Export before = runtime.ipc_export(0, first).take();
  runtime.release(0, first);
  const Place second = runtime.allocate(0, kBytes).take();

  const Export after = runtime.ipc_export(0, second).take();

  EXPECT_NE(before.handle, after.handle);  // as often as not it lies at the same address
  runtime.release(0, second);
}

TEST(DeviceIpc, WhatIsFreedCannotBeOpenedAnyMore) {
  const Exporter exporter;

  exporter.free_first();

  EXPECT_FALSE(cuda()->ipc_open(0, exporter.exports[0].handle).ok());
  EXPECT_EQ(Fake("cuda").count("opened"), 0);
}

TEST(DeviceIpc, TheProcessThatExportedCannotOpen) {
  Runtime& runtime = *cuda();
  const Place mine = runtime.allocate(0, kBytes).take();
  const Export made = runtime.ipc_export(0, mine).take();

  const auto opened = runtime.ipc_open(0, made.handle);

  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), Code::Unavailable);
  EXPECT_NE(opened.status().text().find("invalid device context"), std::string::npos);
  runtime.release(0, mine);
}

TEST(DeviceIpc, MemoryOfAKindThatCannotBeExportedSaysSo) {
  Runtime& runtime = *cuda();
  Fake("cuda").set("vmm=1");
  const Place mine = runtime.allocate(0, kBytes).take();
  Fake("cuda").set("vmm=0");

  const auto made = runtime.ipc_export(0, mine);

  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), Code::Unavailable);
  EXPECT_NE(made.status().text().find("IpcGetMemHandle"), std::string::npos);
  runtime.release(0, mine);
  EXPECT_EQ(Fake("cuda").count("misuses"), 0);
}

TEST(DeviceIpc, ARuntimeWithoutItSaysWhatItLacks) {
  test::use_fakes();
  Runtime& hip = *Registry::global().runtime(Kind::Hip).take();  // the fake is an old one

  EXPECT_NE(hip.lacks(Feature::Ipc).find("hipIpcGetMemHandle"), std::string::npos);
  EXPECT_EQ(cuda()->lacks(Feature::Ipc), "");
  EXPECT_EQ(cuda()->ipc_version(), "12090");
  EXPECT_EQ(cuda()->bus_address(1), "0000:11:00.0");
  EXPECT_EQ(Registry::global().runtime(Kind::Cnrt).take()->lacks(Feature::Ipc),
            "this adapter shares no memory between processes");
}

}  // namespace hccomm::device
