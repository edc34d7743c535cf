// SPDX-License-Identifier: Apache-2.0
//
// The runtime of a simulated vendor: devices with asynchronous streams (a thread each), events, and
// two copy engines of a given latency and rate. It knows no torch. Failures can be ordered: a lost
// device, allocations that fail, slow copies.
//
// A lost device behaves as CUDA's sticky error: every later call on it throws, what was queued is
// dropped, and nobody who waits for its events hangs.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.hpp"

namespace simdevice {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string vendor = "sim";
  int devices = 2;
  std::size_t memory_bytes = std::size_t{512} << 20;  // per device
  double latency_seconds = 0;                         // of each copy between host and device
  double bytes_per_second = 0;                        // of these copies; 0: as memory is
};

class Device;

// A point in a stream. Thread: any. Fails: query() and wait() throw when its device is lost.
class Event {
 public:
  explicit Event(Device& device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  uint64_t record();
  void reach(uint64_t mark);
  bool query() const;
  void wait() const;
  // For streams: waits until `mark` is reached or the event's device is lost.
  void pass(uint64_t mark) const;
  uint64_t recorded() const;
  Device& device() const { return device_; }
  Clock::time_point when() const;

 private:
  Device& device_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  uint64_t recorded_ = 0, reached_ = 0;
  Clock::time_point when_{};
};
using EventPtr = std::shared_ptr<Event>;

// A queue of work and the thread that does it, which starts with the first work. Never destroyed.
//
// Thread: any. Fails: enqueue() and synchronize() throw when the device is lost.
class Stream {
 public:
  explicit Stream(Device& device) : device_(device) {}

  void enqueue(std::function<void()> work);
  // As enqueue(), also on a lost device; for what must happen in any case.
  void finally(std::function<void()> work);
  void record(const EventPtr& event);
  void block(const EventPtr& event);
  bool idle() const;
  void synchronize() const;
  Device& device() const { return device_; }

 private:
  struct Item {
    std::function<void()> work;
    bool always;
  };
  void push(Item item);
  void run();
  bool idle_locked() const { return queue_.empty() && !busy_; }

  Device& device_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::deque<Item> queue_;
  bool started_ = false, busy_ = false;
};

// What has been ordered to go wrong. Counters below 0 are off; 0 fails the next one.
struct Faults {
  std::atomic<int64_t> lose_after_copies{-1};
  std::atomic<int64_t> fail_allocation_after{-1};
  std::atomic<double> slowness{1.0};  // copies take so many times longer
};

class Device {
 public:
  static constexpr int kStreams = 5;  // number 0 is the default stream

  Device(const Settings& settings, int index);

  Stream& stream(int64_t number);
  // Moves bytes between host and device on the stream, at the pace of the copy engine. `keep` lives
  // until it is done.
  void copy(Stream& stream, void* to, const void* from, std::size_t bytes, bool to_device,
            std::shared_ptr<void> keep);
  void* allocate(std::size_t bytes);
  // Keeps the stream busy until open() or for a minute.
  void hold(Stream& stream);
  void open();
  // In the order of `home`, and after the work that `users` have now.
  void release(void* address, Stream& home, const std::vector<Stream*>& users);
  void synchronize() const;
  void lose();
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  // Throws when the device is lost.
  void check() const;

  const std::string& name() const { return name_; }
  Memory& memory() { return memory_; }
  Faults& faults() { return faults_; }

 private:
  // One direction of the bus: copies pass it one after the other.
  struct Engine {
    std::mutex mutex;
    Clock::time_point free_at{};
  };

  const Settings settings_;
  const std::string name_;
  Memory memory_;
  Faults faults_;
  std::atomic<bool> lost_{false};
  Engine in_, out_;
  std::atomic<int64_t> opened_{0};  // how often open() was called
  std::vector<std::unique_ptr<Stream>> streams_;
};

// Counts down a fault's counter; true when it is due.
bool due(std::atomic<int64_t>& counter);

// The process's one vendor. configure() before anything else; later calls throw.
void configure(const Settings& settings);
const Settings& settings();
Device& device(int index);
int64_t live_events();

}  // namespace simdevice
