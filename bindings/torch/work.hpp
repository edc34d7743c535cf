// SPDX-License-Identifier: Apache-2.0
//
// The Work that torch gets for an operation of the core. It has no thread: wait() drives the
// engine from the caller, is_completed() asks it, and only a future or a callback brings in the
// errand thread.
#pragma once

#include <c10/core/Event.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "capi/hccomm.h"
#include "group.hpp"
#include "tensor.hpp"

namespace hccomm::glue {

using Future = c10::ivalue::Future;
using FuturePtr = c10::intrusive_ptr<Future>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// What every Work of ours is told at its birth.
struct Ticket {
  int rank = -1;
  c10d::OpType type = c10d::OpType::UNKNOWN;
  const char* title = nullptr;  // for the profiler, read at birth; nullptr: it does not listen
  const std::vector<at::Tensor>* shown = nullptr;  // its inputs, likewise
  uint64_t sequence = 0;
  double timeout = 0;  // seconds, of the operation
  bool timed = false;  // whether getDuration() will be asked
  uint64_t noted = 0;  // its number in the flight recorder
};

// One operation.
//
// Owns:   the hccomm_work and all tensors in use; when it is dropped while the operation runs,
//         both go to the errand thread, which lets go of them at the end.
// Thread: any.
// Fails:  wait() raises what the operation failed with, or DistBackendError when only the time
//         given to wait() is over; the operation then goes on.
//
// Results on a device are there when the operation has ended; only what must then be copied from
// one device tensor to another is still to come, and wait() orders the current stream behind that.
class OperationWork final : public c10d::Work {
 public:
  // An operation in flight; with handle nullptr, one that its maker runs and settles.
  OperationWork(const Ticket& ticket, Keep keep, Health health, hccomm_work* handle);
  // One that has already succeeded.
  OperationWork(const Ticket& ticket, Keep keep);
  ~OperationWork() override;

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  int sourceRank() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout) override;
  // The host goes on at once where torch has a kernel that waits (CUDA); elsewhere it waits.
  void blockCurrentStream() override;
  FuturePtr getFuture() override;
  FuturePtr getFutureResult() override;
  float getDuration() const override;
  uint64_t getSequencenumber() const override { return ticket_.sequence; }

  // Records how the operation ended, once; later calls change nothing.
  void settle(int code, const hccomm_error& error);
  // For the errand thread: the operation has ended.
  void complete_future();

 private:
  enum State : int { kRunning, kSucceeded, kFailed };
  void hurry();
  void fill_future(Future& future) const;
  // The copies at the end; those between device tensors leave an event.
  void finish_copies();

  const Ticket ticket_;
  Keep keep_;
  Health health_;
  std::optional<c10::Event> copied_;  // set before state_
  hccomm_work* handle_ = nullptr;
  std::atomic<int> state_{kRunning};
  std::chrono::steady_clock::time_point started_{}, ended_{};
  FuturePtr future_;  // guarded by mutex_
};

// Several works as one: what coalescing gives.
class BatchWork final : public c10d::Work {
 public:
  BatchWork(const Ticket& ticket, std::vector<WorkPtr> works = {});
  // Requires: nobody else has this work yet.
  void take(std::vector<WorkPtr> works) { works_ = std::move(works); }

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout) override;
  void blockCurrentStream() override;
  FuturePtr getFuture() override;
  FuturePtr getFutureResult() override;
  float getDuration() const override;  // of the longest
  uint64_t getSequencenumber() const override { return ticket_.sequence; }

 private:
  void end_record();

  const Ticket ticket_;
  std::vector<WorkPtr> works_;  // constant once others have this work
  FuturePtr future_;            // guarded by mutex_
};

// A future that tells with a c10d::WorkResult how `future` ended.
FuturePtr result_of(const FuturePtr& future);

}  // namespace hccomm::glue
