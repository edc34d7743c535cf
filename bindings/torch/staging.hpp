// SPDX-License-Identifier: Apache-2.0
//
// Device tensors through host memory, for every accelerator torch knows, by torch's own streams and
// events: no vendor header. The input is copied to the host on a side stream behind the caller's
// work, the operation runs there, and the result is copied back; wait() makes the caller's stream
// wait for that copy, not the host for the data.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "group.hpp"
#include "operation.hpp"
#include "work.hpp"

namespace hccomm::glue {

// An operation on device tensors.
//
// Thread: any. Fails: wait() raises what the operation failed with.
class StagedWork final : public c10d::Work {
 public:
  StagedWork(const Ticket& ticket, std::vector<at::Tensor> results, c10::Device device);

  std::vector<at::Tensor> result() override { return results_; }
  int sourceRank() const override { return source_; }
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout) override;
  FuturePtr getFuture() override { return future_; }
  FuturePtr getFutureResult() override { return result_of(future_); }
  uint64_t getSequencenumber() const override { return ticket_.sequence; }

  // For the worker: the results are on their way on the current stream, or will never come.
  void succeed(const c10::Stream& stream, int source);
  void fail(const std::exception_ptr& why);
  double timeout() const { return ticket_.timeout; }

 private:
  const Ticket ticket_;
  const std::vector<at::Tensor> results_;
  const c10::Device device_;
  const FuturePtr future_;
  int source_ = -1;
  std::optional<c10::Event> copied_;  // guarded by mutex_ until completed_
};

// The one worker of a backend that has seen a device tensor.
//
// Owns:   a thread and one side stream per device; ends its jobs when it is destroyed.
// Thread: submit() and wait_until_started() from the thread that calls the collectives.
// Fails:  through the works.
class Staging {
 public:
  explicit Staging(Health health);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  WorkPtr submit(hccomm_comm* comm, Operation& operation, const Ticket& ticket);
  // Returns when every job so far has been handed to the core: operations of one communicator must
  // start in program order, also when host tensors follow device tensors.
  void wait_until_started();

 private:
  struct Job;
  using JobPtr = std::shared_ptr<Job>;

  void work();
  void start(Job& job);
  void finish(Job& job);
  c10::Stream side_stream(c10::Device device);
  static void on_done(void* context, int code);

  const Health health_;
  std::mutex mutex_;  // guards the queues, running_ and stopping_
  std::condition_variable changed_;
  std::deque<JobPtr> waiting_;   // not yet handed to the core, in program order
  std::vector<JobPtr> running_;  // in the core
  bool stopping_ = false;
  std::map<c10::Device, c10::Stream, bool (*)(const c10::Device&, const c10::Device&)> streams_;
  std::thread thread_;
};

}  // namespace hccomm::glue
