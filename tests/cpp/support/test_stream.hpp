// SPDX-License-Identifier: Apache-2.0
//
// A stream of a device inside the test process (test_device.hpp): a thread that does one thing
// after another, each in its time.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "base/clock.hpp"

namespace hccomm::test {

struct Task {
  std::function<void()> work;
  double seconds;
};

// Does nothing while `stalled`, until it is destroyed.
class Worker {
 public:
  explicit Worker(const std::atomic<bool>& stalled)
      : stalled_(stalled), thread_([this] { run(); }) {}
  ~Worker() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    ready_.notify_one();
    thread_.join();
  }
  void add(Task task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    Clock::time_point free_at = Clock::now();
    while (true) {
      ready_.wait_for(lock, std::chrono::milliseconds(50),
                      [&] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty() && stopping_) return;
      if (tasks_.empty()) continue;
      if (stalled_ && !stopping_) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        lock.lock();
        continue;
      }
      Task task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (task.seconds > 0) {
        free_at = std::max(free_at, Clock::now()) +
                  std::chrono::duration_cast<Clock::duration>(Seconds(task.seconds));
        task.work();
        std::this_thread::sleep_until(free_at);
      } else {
        task.work();
      }
      lock.lock();
    }
  }
  const std::atomic<bool>& stalled_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Task> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace hccomm::test
