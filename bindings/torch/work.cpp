// SPDX-License-Identifier: Apache-2.0
//
// Works, their futures and their end.
#include "work.hpp"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "errands.hpp"
#include "errors.hpp"
#include "flight_recorder.hpp"

namespace hccomm::glue {

namespace {

std::optional<std::vector<at::Tensor>> shown_by(const Ticket& ticket) {
  if (!ticket.title || !ticket.shown) return std::nullopt;
  return *ticket.shown;
}

// Completes the future of a work that somebody may still hold.
class FutureErrand final : public Errand {
 public:
  explicit FutureErrand(c10::intrusive_ptr<OperationWork> work) : work_(std::move(work)) {}
  void run() noexcept override { work_->complete_future(); }

 private:
  c10::intrusive_ptr<OperationWork> work_;
};

// Ends an operation whose Work was dropped: its results still reach the tensors.
class OrphanErrand final : public Errand {
 public:
  OrphanErrand(Keep keep, Health health, hccomm_work* handle, uint64_t noted)
      : keep_(std::move(keep)), health_(std::move(health)), handle_(handle), noted_(noted) {}
  ~OrphanErrand() override { hccomm_release(handle_); }

  void run() noexcept override {
    hccomm_error error{};
    const int code = hccomm_wait(handle_, 0, &error);
    FlightRecorder::get().end(noted_, code == HCCOMM_OK, -1);
    if (code != HCCOMM_OK) {
      note_failure(health_, code);
      return;
    }
    try {
      copy_out(keep_);
    } catch (const std::exception& failure) {
      TORCH_WARN("hccomm: results of an operation that nobody waited for are lost: ",
                 failure.what());
    }
  }

 private:
  Keep keep_;
  Health health_;
  hccomm_work* handle_;
  uint64_t noted_;
};

}  // namespace

OperationWork::OperationWork(const Ticket& ticket, Keep keep, Health health, hccomm_work* handle)
    : Work(ticket.rank, ticket.type, ticket.title, shown_by(ticket)),
      ticket_(ticket),
      keep_(std::move(keep)),
      health_(std::move(health)),
      handle_(handle) {
  if (ticket.timed) started_ = std::chrono::steady_clock::now();
}

OperationWork::OperationWork(const Ticket& ticket, Keep keep)
    : Work(ticket.rank, ticket.type, ticket.title), ticket_(ticket), keep_(std::move(keep)) {
  finish_copies();
  FlightRecorder::get().end(ticket_.noted, true, -1);
  state_.store(kSucceeded, std::memory_order_relaxed);
}

OperationWork::~OperationWork() {
  if (!handle_) return;
  if (!isCompleted()) {
    try {
      hccomm_work* const handle = std::exchange(handle_, nullptr);
      errands::when_done(
          handle, new OrphanErrand(std::move(keep_), std::move(health_), handle, ticket_.noted));
    } catch (const std::exception& failure) {
      TORCH_WARN("hccomm: ", failure.what());
    }
    return;
  }
  hccomm_release(handle_);
}

void OperationWork::settle(int code, const hccomm_error& error) {
  const std::lock_guard lock(mutex_);
  if (state_.load(std::memory_order_relaxed) != kRunning) return;
  const bool from_any = opType_ == c10d::OpType::RECVANYSOURCE && handle_ != nullptr;
  FlightRecorder::get().end(ticket_.noted, code == HCCOMM_OK,
                            from_any ? hccomm_source(handle_) : -1);
  if (code == HCCOMM_OK) {
    try {
      finish_copies();
    } catch (...) {
      exception_ = std::current_exception();
    }
  } else {
    exception_ = exception_of(error, ticket_.timeout);
    note_failure(health_, code);
  }
  keep_.held.clear();
  keep_.residents.clear();
  if (ticket_.timed) ended_ = std::chrono::steady_clock::now();
  if (recordFunctionEndCallback_) recordFunctionEndCallback_();
  state_.store(exception_ ? kFailed : kSucceeded, std::memory_order_release);
}

bool OperationWork::isCompleted() {
  if (state_.load(std::memory_order_acquire) != kRunning) return true;
  int done = 0;
  hccomm_error error{};
  const int code = hccomm_test(handle_, &done, &error);
  if (done) settle(code, error);
  return done != 0;
}

bool OperationWork::isSuccess() const {
  return state_.load(std::memory_order_acquire) == kSucceeded;
}

std::exception_ptr OperationWork::exception() const {
  return state_.load(std::memory_order_acquire) == kFailed ? exception_ : nullptr;
}

int OperationWork::sourceRank() const {
  TORCH_CHECK(opType_ == c10d::OpType::RECV || opType_ == c10d::OpType::RECVANYSOURCE,
              "sourceRank() may only be called on work objects that correspond to a recv or "
              "recv-from-any call.");
  return hccomm_source(handle_);
}

std::vector<at::Tensor> OperationWork::result() {
  TORCH_CHECK(isCompleted(),
              "Work needs to be completed before calling result(). Should call wait() before "
              "result().");
  return keep_.results;
}

bool OperationWork::wait(std::chrono::milliseconds timeout) {
  if (state_.load(std::memory_order_acquire) == kRunning) {
    hccomm_error error{};
    const double limit = timeout.count() > 0 ? static_cast<double>(timeout.count()) / 1e3 : 0;
    const int code = hccomm_wait(handle_, limit, &error);
    // A timeout of this wait alone leaves the operation running.
    if (code == HCCOMM_TIMEOUT && limit > 0 && !isCompleted()) raise(error, limit);
    settle(code, error);
  }
  if (state_.load(std::memory_order_acquire) == kFailed) std::rethrow_exception(exception_);
  synchronize();
  return true;
}

void OperationWork::blockCurrentStream() {
  const bool has_kernel = c10::impl::hasDeviceGuardImpl(c10::kCUDA) &&
                          c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() > 0;
  if (has_kernel && !isCompleted()) {
    Work::blockCurrentStream();
  } else {
    wait(kNoTimeout);
  }
}

void OperationWork::finish_copies() {
  const bool on_device = !keep_.copies.empty() && !keep_.copies.front().first.is_cpu();
  const c10::Device device = on_device ? keep_.copies.front().first.device() : at::kCPU;
  copy_out(keep_);
  if (!on_device) return;
  copied_.emplace(device.type());
  copied_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

void OperationWork::synchronize() {
  if (state_.load(std::memory_order_acquire) != kSucceeded || !copied_) return;
  const c10::Device device(copied_->device_type(), copied_->device_index());
  copied_->block(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

// The devices that a future of these results must order its callbacks on.
static std::vector<c10::Device> devices_of(at::TensorList results) {
  if (results.empty() || results[0].is_cpu()) return {};
  return {results[0].device()};
}

void OperationWork::fill_future(Future& future) const {
  if (exception_) {
    future.setError(exception_);
  } else {
    future.markCompleted(at::IValue(keep_.results));
  }
}

// A future that another thread completes costs two switches of threads, about 100 us; a small
// operation is over sooner, if the other ranks are there. So it is driven for that long first: at
// worst both are paid, at best (DDP on a small model) neither thread is woken.
void OperationWork::hurry() {
  constexpr std::size_t kSmall = 256 << 10;
  constexpr auto kPatience = std::chrono::microseconds(100);
  std::size_t bytes = 0;
  for (const at::Tensor& each : keep_.results) {
    if (!each.is_cpu() || each.layout() != at::kStrided) return;
    bytes += each.nbytes();
  }
  if (bytes > kSmall) return;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!isCompleted() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

FuturePtr OperationWork::getFuture() {
  hurry();
  {
    const std::lock_guard lock(mutex_);
    if (future_) return future_;
    future_ = c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()),
                                          devices_of(keep_.results));
    if (state_.load(std::memory_order_relaxed) != kRunning) {
      fill_future(*future_);
      return future_;
    }
  }
  auto self = c10::intrusive_ptr<OperationWork>::unsafe_reclaim_from_nonowning(this);
  errands::when_done(handle_, new FutureErrand(std::move(self)));
  return future_;
}

void OperationWork::complete_future() {
  hccomm_error error{};
  const int code = hccomm_wait(handle_, 0, &error);
  settle(code, error);
  fill_future(*future_);
}

FuturePtr OperationWork::getFutureResult() { return result_of(getFuture()); }

float OperationWork::getDuration() const {
  TORCH_CHECK(ticket_.timed, "getDuration needs timing: call _enable_collectives_timing() first");
  TORCH_CHECK(state_.load(std::memory_order_acquire) != kRunning,
              "getDuration only works after the operation has completed");
  return std::chrono::duration<float, std::milli>(ended_ - started_).count();
}

FuturePtr result_of(const FuturePtr& future) {
  auto result = c10::make_intrusive<Future>(c10::IntType::get());
  future->addCallback([result](Future& ended) {
    const auto how = ended.hasError() ? c10d::WorkResult::COMM_ERROR : c10d::WorkResult::SUCCESS;
    result->markCompleted(at::IValue(static_cast<int64_t>(how)));
  });
  return result;
}

BatchWork::BatchWork(const Ticket& ticket, std::vector<WorkPtr> works)
    : Work(ticket.rank, ticket.type, ticket.title, shown_by(ticket)),
      ticket_(ticket),
      works_(std::move(works)) {}

// The profiler's event ends when somebody first learns that all parts have.
void BatchWork::end_record() {
  const std::lock_guard lock(mutex_);
  if (recordFunctionEndCallback_) std::exchange(recordFunctionEndCallback_, nullptr)();
}

bool BatchWork::isCompleted() {
  for (const WorkPtr& work : works_) {
    if (!work->isCompleted()) return false;
  }
  end_record();
  return true;
}

bool BatchWork::isSuccess() const {
  for (const WorkPtr& work : works_) {
    if (!work->isSuccess()) return false;
  }
  return true;
}

std::exception_ptr BatchWork::exception() const {
  for (const WorkPtr& work : works_) {
    if (auto failure = work->exception()) return failure;
  }
  return nullptr;
}

std::vector<at::Tensor> BatchWork::result() {
  std::vector<at::Tensor> all;
  for (const WorkPtr& work : works_) {
    for (at::Tensor& tensor : work->result()) all.push_back(std::move(tensor));
  }
  return all;
}

void BatchWork::synchronize() {
  for (const WorkPtr& work : works_) work->synchronize();
}

bool BatchWork::wait(std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  for (const WorkPtr& work : works_) {
    auto left = timeout;
    if (timeout.count() > 0) {
      left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      left = std::max(left, std::chrono::milliseconds(1));
    }
    work->wait(left);
  }
  end_record();
  return true;
}

void BatchWork::blockCurrentStream() {
  for (const WorkPtr& work : works_) work->blockCurrentStream();
}

float BatchWork::getDuration() const {
  float longest = 0;
  for (const WorkPtr& work : works_) longest = std::max(longest, work->getDuration());
  return longest;
}

FuturePtr BatchWork::getFuture() {
  const std::lock_guard lock(mutex_);
  if (future_) return future_;
  c10::List<FuturePtr> parts(
      c10::FutureType::create(c10::ListType::create(c10::TensorType::get())));
  std::vector<c10::Device> devices;
  for (const WorkPtr& work : works_) {
    parts.push_back(work->getFuture());
    const auto& more = parts.get(parts.size() - 1)->devices();
    devices.insert(devices.end(), more.begin(), more.end());
  }
  future_ = c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()), devices);
  // The children are captured, not this: the future must not keep itself alive.
  c10::collectAll(parts)->addCallback([future = future_, works = works_](Future& all) {
    std::vector<at::Tensor> results;
    for (const WorkPtr& work : works) {
      if (auto failure = work->exception()) return future->setError(failure);
      for (at::Tensor& tensor : work->result()) results.push_back(std::move(tensor));
    }
    if (all.hasError()) return future->setError(all.exception_ptr());
    future->markCompleted(at::IValue(std::move(results)));
  });
  return future_;
}

FuturePtr BatchWork::getFutureResult() { return result_of(getFuture()); }

}  // namespace hccomm::glue
