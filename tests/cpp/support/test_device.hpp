// SPDX-License-Identifier: Apache-2.0
//
// A device inside the test process: its memory faults on host access, each of its streams has a
// worker with latency and rate, only pinned memory is copied, and it fails on demand. What engine
// tests stage through; tests/fakes has vendors' libraries for the adapters.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "device/device.hpp"
#include "support/pinned_set.hpp"
#include "support/test_stream.hpp"

namespace hccomm::test {

class TestDevice : public device::Runtime {
 public:
  explicit TestDevice(std::string name, double latency = 0, double rate = 0)
      : latency_(latency), rate_(rate), name_(std::move(name)) {}
  ~TestDevice() override {
    EXPECT_EQ(streams_ + events_, 0) << name_ << " leaks streams or events";
    EXPECT_TRUE(pinned_.empty()) << name_ << " leaks pinned memory";
    EXPECT_TRUE(memory_.empty()) << name_ << " leaks device memory";
  }

  // ---- what goes wrong, when asked ----
  std::atomic<int> pins_left{1 << 30};    // host_allocate and host_register fail after so many
  std::atomic<int> copies_left{1 << 30};  // the device is lost after so many copies
  std::atomic<int> sound_in{1 << 30}, sound_out{1 << 30};  // copies in, out: then one flips a bit
  std::atomic<bool> stalled{false};                        // no copy ends
  std::atomic<int> stalls_at{0};  // the copy whose event does not come, nor any later
  std::atomic<int> copies{0}, pins{0}, unfinished{0};  // so far; last: copies in flight
  const std::string& name() const { return name_; }

  std::string library() const override { return "test of " + name_; }
  Result<int> count() noexcept override { return 2; }
  Result<int> current() noexcept override { return 0; }
  std::string describe(int) noexcept override { return name_; }
  Status health(int) noexcept override { return lost_ ? gone("health") : Status(); }
  std::string lacks(device::Feature feature) const override {
    return feature == device::Feature::HostRegister ? "" : Runtime::lacks(feature);
  }
  Status host_register(int, void* address, std::size_t bytes) noexcept override {
    if (pins_left-- <= 0) return {Code::System, name_ + ": hostMalloc: out of memory"};
    EXPECT_TRUE(pinned_.add(address, bytes));
    ++pins;
    return {};
  }
  void host_unregister(int, void* address) noexcept override {
    EXPECT_TRUE(pinned_.remove(address));
  }
  Result<void*> host_allocate(int index, std::size_t bytes) noexcept override {
    void* made = ::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    const Status status = host_register(index, made, bytes);
    if (status.ok()) return made;
    ::free(made);
    return status;
  }
  void host_free(int index, void* address) noexcept override {
    host_unregister(index, address);
    ::free(address);
  }
  Result<device::Place> allocate(int, std::size_t bytes) noexcept override {
    const int fd = memfd_create("device", MFD_CLOEXEC);
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
    void* face = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, fd, 0);
    void* inside = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    const std::lock_guard lock(mutex_);
    memory_[static_cast<std::byte*>(face)] = {static_cast<std::byte*>(inside), bytes};
    return device::Place{face, 0};
  }
  void release(int, device::Place place) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto found = memory_.find(static_cast<std::byte*>(place.handle));
    munmap(found->first, found->second.size());
    munmap(found->second.data(), found->second.size());
    memory_.erase(found);
  }
  // What the device sees at an address of its own.
  std::byte* inside(const void* address, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto* const wanted = static_cast<std::byte*>(const_cast<void*>(address));
    const auto after = memory_.upper_bound(wanted);
    if (after == memory_.begin()) return nullptr;
    const auto at = std::prev(after);
    const auto offset = static_cast<std::size_t>(wanted - at->first);
    return offset + bytes <= at->second.size() ? at->second.data() + offset : nullptr;
  }

  Result<device::Stream> stream_create(int index) noexcept override {
    ++streams_;
    return device::Stream{index, 1, new Worker(stalled)};
  }
  void stream_destroy(device::Stream stream) noexcept override {
    --streams_;
    delete static_cast<Worker*>(stream.native);
  }
  Status copy_in(device::Stream stream, device::Place dst, const void* host,
                 std::size_t bytes) noexcept override {
    return copy(stream, address(dst), host, bytes, true);
  }
  Status copy_out(device::Stream stream, void* host, device::Place src,
                  std::size_t bytes) noexcept override {
    return copy(stream, address(src), host, bytes, false);
  }
  Result<device::Event> event_create(int index) noexcept override {
    ++events_;
    return device::Event{index, new Flag(std::make_shared<std::atomic<bool>>(true))};
  }
  void event_destroy(device::Event event) noexcept override {
    --events_;
    delete static_cast<Flag*>(event.native);
  }
  Status event_record(device::Event event, device::Stream stream) noexcept override {
    auto flag = std::make_shared<std::atomic<bool>>(stream.native == nullptr);
    *static_cast<Flag*>(event.native) = flag;
    if (stream.native != nullptr) worker(stream).add({[flag] { *flag = true; }, 0});
    return {};
  }
  Result<bool> event_query(device::Event event) noexcept override {
    if (lost_) return gone("eventQuery");
    return (*static_cast<Flag*>(event.native))->load();
  }
  Status stream_wait(device::Stream, device::Event) noexcept override { return {}; }
  // Work of the caller: done in the stream's order.
  void launch(device::Stream stream, std::function<void()> work, double seconds = 0) {
    worker(stream).add({std::move(work), seconds});
  }

 protected:
  using Flag = std::shared_ptr<std::atomic<bool>>;

  static Worker& worker(device::Stream stream) { return *static_cast<Worker*>(stream.native); }
  static std::byte* address(device::Place place) {
    return static_cast<std::byte*>(place.handle) + place.offset;
  }
  Status gone(const char* call) const {
    return {Code::System, name_ + ":0: " + call + ": the device is lost (code 46)"};
  }
  Status copy(device::Stream stream, std::byte* device, const void* host, std::size_t bytes,
              bool in) {
    if (is_lost()) return gone("memcpyAsync");
    std::byte* const mine = inside(device, bytes);
    auto* const theirs = static_cast<std::byte*>(const_cast<void*>(host));
    if (mine == nullptr || !is_pinned(theirs, bytes)) {
      ADD_FAILURE() << name_ << ": a copy outside of device or pinned memory";
      return {Code::System, "bad copy"};
    }
    const bool stalls = ++copies == stalls_at;
    ++unfinished;
    const bool flips = (in ? sound_in : sound_out)-- == 0;
    const double seconds = latency_ + (rate_ > 0 ? static_cast<double>(bytes) / rate_ : 0);
    worker(stream).add({[=, this] {
                          const std::shared_lock runs(running_);
                          if (!lost_) std::memcpy(in ? mine : theirs, in ? theirs : mine, bytes);
                          if (flips) (in ? mine : theirs)[bytes / 2] ^= std::byte{4};
                          if (stalls) stalled = true;
                          --unfinished;
                        },
                        seconds});
    return {};
  }
  // Counts down to the loss of the device.
  bool is_lost() {
    if (copies_left-- <= 0) {
      const std::unique_lock none_runs(running_);
      lost_ = true;
    }
    return lost_;
  }
  bool is_pinned(std::byte* address, std::size_t bytes) const {
    return pinned_.holds(address, bytes);
  }

  const double latency_, rate_;  // seconds per copy, bytes per second; 0: none, no limit
  const std::string name_;
  std::atomic<int> streams_{0}, events_{0};
  std::atomic<bool> lost_{false};
  std::shared_mutex running_;  // shared by copies; a lost device runs none
  PinnedSet pinned_;
  std::mutex mutex_;                                   // guards the rest
  std::map<std::byte*, std::span<std::byte>> memory_;  // as the device sees it
};

}  // namespace hccomm::test
