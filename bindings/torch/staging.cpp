// SPDX-License-Identifier: Apache-2.0
//
// The worker: it starts jobs in order as soon as their inputs have reached the host, and finishes
// them in any order as the core completes them.
#include "staging.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "errors.hpp"

namespace hccomm::glue {

using c10::impl::VirtualGuardImpl;

StagedWork::StagedWork(const Ticket& ticket, std::vector<at::Tensor> results, c10::Device device)
    : Work(ticket.rank, ticket.type, ticket.title),
      ticket_(ticket),
      results_(std::move(results)),
      device_(device),
      future_(c10::make_intrusive<Future>(c10::ListType::create(c10::TensorType::get()),
                                          std::vector<c10::Device>{device})) {}

bool StagedWork::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto ended = [&] { return completed_; };
  if (timeout.count() <= 0) {
    cv_.wait(lock, ended);  // the operation has a deadline of its own
  } else if (!cv_.wait_for(lock, timeout, ended)) {
    hccomm_error error{HCCOMM_TIMEOUT, -1, "wait: the operation is still running"};
    lock.unlock();
    raise(error, static_cast<double>(timeout.count()) / 1e3);
  }
  if (exception_) std::rethrow_exception(exception_);
  lock.unlock();
  synchronize();
  return true;
}

void StagedWork::synchronize() {
  const VirtualGuardImpl device(device_.type());
  const std::lock_guard lock(mutex_);
  if (copied_) copied_->block(device.getStream(device_));
}

void StagedWork::succeed(const c10::Stream& stream, int source) {
  {
    const std::lock_guard lock(mutex_);
    copied_.emplace(device_.type());
    copied_->record(stream);
    source_ = source;
  }
  finish();
  future_->markCompleted(at::IValue(results_));
}

void StagedWork::fail(const std::exception_ptr& why) {
  finish(why);
  future_->setError(why);
}

struct Staging::Job {
  Staging* owner;
  hccomm_comm* comm;
  Operation operation;  // its buffers point to the host copies
  at::Tensor output;    // on the device
  c10::intrusive_ptr<StagedWork> work;
  c10::Stream stream;
  c10::Event ready;  // the input is on the host
  hccomm_work* handle = nullptr;
  std::atomic<bool> done{false};

  Job(Staging* staging, hccomm_comm* communicator, Operation given, const Ticket& ticket,
      c10::Device device, c10::Stream side)
      : owner(staging),
        comm(communicator),
        operation(std::move(given)),
        output(operation.output),
        work(c10::make_intrusive<StagedWork>(ticket, operation.keep.results, device)),
        stream(side),
        ready(device.type()) {}
  ~Job() {
    if (handle) hccomm_release(handle);
  }
};

Staging::Staging(Health health)
    : health_(std::move(health)),
      streams_([](const c10::Device& a, const c10::Device& b) {
        return std::pair(a.type(), a.index()) < std::pair(b.type(), b.index());
      }),
      thread_([this] { work(); }) {}

Staging::~Staging() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

c10::Stream Staging::side_stream(c10::Device device) {
  auto found = streams_.find(device);
  if (found == streams_.end()) {
    const VirtualGuardImpl guard(device.type());
    found = streams_.emplace(device, guard.getStreamFromGlobalPool(device, true)).first;
  }
  return found->second;
}

// Page-locked where the device knows how, so that copies run beside the host.
static at::Tensor host_like(const at::Tensor& tensor) {
  const auto options = tensor.options().device(at::kCPU).memory_format(c10::nullopt);
  try {
    return at::empty(tensor.sizes(), options.pinned_memory(true));
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {  // this device has no page-locked memory
  }
  return at::empty(tensor.sizes(), options);
}

WorkPtr Staging::submit(hccomm_comm* comm, Operation& operation, const Ticket& ticket) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::Device device = operation.model().device();
  const VirtualGuardImpl guard(device.type());
  const c10::Stream side = side_stream(device);
  c10::Event produced(device.type());
  produced.record(guard.getStream(device));
  produced.block(side);

  auto job = std::make_shared<Job>(this, comm, std::move(operation), ticket, device, side);
  Operation& own = job->operation;
  const bool in_place = own.input.defined() && own.input.is_same(own.output);
  {
    const c10::StreamGuard on_side(side);
    for (const at::Tensor* used : {&own.input, &own.output}) {
      if (!used->defined()) continue;
      guard.recordDataPtrOnStream(used->storage().data_ptr(), side);
      own.keep.held.push_back(*used);
    }
    if (own.input.defined()) {
      at::Tensor host = host_like(own.input);
      if (own.reads) host.copy_(own.input, /*non_blocking=*/true);
      own.input = host;
    }
    if (own.output.defined()) own.output = in_place ? own.input : host_like(own.output);
    job->ready.record(side);
  }
  WorkPtr work = job->work;
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(job));
  }
  changed_.notify_all();
  return work;
}

void Staging::wait_until_started() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_.empty() || stopping_; });
}

void Staging::on_done(void* context, int /*code*/) {
  auto* job = static_cast<Job*>(context);
  Staging* const owner = job->owner;
  const std::lock_guard lock(owner->mutex_);
  job->done.store(true, std::memory_order_release);
  owner->changed_.notify_all();
}

void Staging::start(Job& job) {
  job.operation.point();
  job.operation.call.flags |= HCCOMM_BACKGROUND;
  hccomm_error error{};
  if (hccomm_start(job.comm, &job.operation.call, &job.handle, &error) != HCCOMM_OK) {
    job.work->fail(exception_of(error, job.work->timeout()));
    job.done.store(true, std::memory_order_release);
    return;
  }
  hccomm_on_done(job.handle, on_done, &job);
}

void Staging::finish(Job& job) {
  if (!job.handle) return;  // it never started and has failed already
  hccomm_error error{};
  const int code = hccomm_wait(job.handle, 0, &error);
  int healthy = HCCOMM_OK;
  if (code != HCCOMM_OK) {
    health_->compare_exchange_strong(healthy, code);
    job.work->fail(exception_of(error, job.work->timeout()));
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::StreamGuard on_side(job.stream);
  try {
    if (job.operation.writes && job.output.defined()) {
      job.output.copy_(job.operation.output, /*non_blocking=*/true);
    }
    copy_out(job.operation.keep);
    job.work->succeed(job.stream, hccomm_source(job.handle));
  } catch (...) {
    job.work->fail(std::current_exception());
  }
}

void Staging::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    for (auto it = running_.begin(); it != running_.end();) {
      if (!(*it)->done.load(std::memory_order_acquire)) {
        ++it;
        continue;
      }
      const JobPtr job = *it;
      it = running_.erase(it);
      lock.unlock();
      finish(*job);
      lock.lock();
      it = running_.begin();
    }
    if (!waiting_.empty()) {
      const JobPtr job = waiting_.front();
      const bool idle = running_.empty();
      lock.unlock();
      // With nothing else to look after, sleep in the device's own wait.
      if (idle) job->ready.synchronize();
      const bool started = idle || job->ready.query();
      if (started) start(*job);
      lock.lock();
      if (started) {
        waiting_.pop_front();
        running_.push_back(job);
        changed_.notify_all();
      } else {
        changed_.wait_for(lock, std::chrono::microseconds(50));
      }
      continue;
    }
    if (stopping_ && running_.empty()) return;
    const auto due = [&] {
      return !waiting_.empty() || (stopping_ && running_.empty()) ||
             std::any_of(running_.begin(), running_.end(),
                         [](const JobPtr& job) { return job->done.load(); });
    };
    changed_.wait(lock, due);
  }
}

}  // namespace hccomm::glue
