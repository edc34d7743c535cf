// SPDX-License-Identifier: Apache-2.0
#include "comm/two_level.hpp"

#include <algorithm>
#include <cstring>

#include "dtype/reduce.hpp"

namespace hccomm::comm {

static constexpr std::uint64_t kBlockBytes = 4 << 20;
static constexpr std::uint64_t kSmall = 64 << 10;  // bytes; below, one staged hop is quicker

bool TwoLevel::takes(const plan::Call& call) const {
  return call.collective == plan::Collective::AllReduce &&
         call.count * dtype::size_of(call.type) >= kSmall &&
         (reduces_[static_cast<int>(call.type)] >> static_cast<int>(call.op) & 1) != 0;
}

Message TwoLevel::over(const Job& job, int which) const {
  Message message;
  message.peer = parent_.rank();
  message.tag = job.tag + static_cast<std::uint64_t>(which);
  message.timeout = job.request.timeout;
  message.follow = job.request.follow;
  return message;
}

// The handle is a message to ourselves on the parent: when the call is over the worker sends it;
// when the parent is poisoned or the deadline passes, it fails as everything there does.
engine::Operation* TwoLevel::start(const Request& request) {
  Job job{request, nullptr, nullptr, 0, {}, {}};
  const Memory* both[] = {&request.input, &request.output};
  for (const Memory* memory : both) {
    if (memory->device.kind == mine_.kind && memory->device.index == mine_.index) continue;
    throw Error(Code::InvalidArgument,
                "all_reduce: the array is not on the device that use_islands was told; pass one "
                "that is, or make a group without islands");
  }
  const std::lock_guard lock(mutex_);
  for (int each = 0; each < 2 && where_.runtime != nullptr; ++each) {
    device::Event& gate = job.gates[each];
    if (spare_.empty()) {
      gate = where_.runtime->event_create(where_.index).take();
    } else {
      gate = spare_.back();
      spare_.pop_back();
    }
    const device::Stream callers{where_.index, 0, both[each]->device.stream};
    if (const Status status = where_.runtime->event_record(gate, callers); !status.ok()) {
      parent_.fail(status);
    }
    job.gated[each] = true;
  }
  job.tag = next_tag_;
  next_tag_ += 2;
  job.handle = parent_.recv(over(job, 0));
  job.watch = parent_.recv(over(job, 1));
  engine::Operation* handle = job.handle;
  jobs_.push_back(std::move(job));
  wanted_.notify_one();
  return handle;
}

void TwoLevel::work() {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      wanted_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    Status status;
    try {
      status = all_reduce(job);
    } catch (const Error& failure) {
      status = failure.status();
    }
    finish(job, status);
  }
}

void TwoLevel::finish(Job& job, const Status& status) {
  if (!status.ok()) {
    if (group_ != nullptr) group_->abort();
    for (Rail& rail : rails_) rail.comm->fail(status);
    all_->fail(status);
    parent_.fail(status);
  } else {
    for (const int which : {0, 1}) {
      parent_.engine().release(*parent_.send(over(job, which)));
    }
  }
  parent_.engine().release(*job.watch);
  const std::lock_guard lock(mutex_);
  for (int each = 0; each < 2; ++each) {
    if (job.gated[each]) spare_.push_back(job.gates[each]);
  }
}

device::Place TwoLevel::place(const Memory& memory, std::uint64_t bytes) const {
  return {memory.device.handle, memory.device.offset + bytes};
}

// Waits for the device, looking whether the call is still wanted.
Status TwoLevel::await(Job& job, device::Event event) {
  const Deadline deadline = Deadline::after(parent_.timeout_of(job.request.timeout));
  for (int look = 0; !deadline.passed(); ++look) {
    auto come = where_.runtime->event_query(event);
    if (!come.ok()) return come.status();
    if (come.value()) return group_ != nullptr ? group_->health() : Status();
    if (job.watch->done()) return {Code::Aborted, "all_reduce: the call ended before its work"};
    if (look < 50) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(30));
    }
  }
  return {Code::Timeout, text("all_reduce: ", library_,
                              " did not end in time inside the island; "
                              "look for the rank that is missing")};
}

// Waits for all rails, in slices, so that a parent that failed ends it.
Status TwoLevel::settle(Job& job,
                        std::vector<std::pair<Communicator*, engine::Operation*>>& started) {
  Status first;
  for (auto& [comm, operation] : started) {
    Status status;
    do {
      status = comm->engine().wait(*operation, Deadline::after(Seconds(0.1)));
      if (!operation->done() && (job.watch->done() || !first.ok())) {
        comm->fail(Status(Code::Aborted, "all_reduce: the call ended before its work"));
      }
    } while (!operation->done());
    if (first.ok()) first = comm->engine().wait(*operation, Deadline::never());
    comm->engine().release(*operation);
  }
  return first;
}

// Reduces my part of a block with the ranks of other islands that own the same units.
Status TwoLevel::exchange(Job& job, std::byte* mine, std::uint64_t count) {
  const plan::Call& call = job.request.call;
  const std::size_t element = dtype::size_of(call.type);
  const std::uint64_t island = islands_[static_cast<std::size_t>(island_)].size();
  const std::uint64_t per_unit = count * island / units_;
  const std::uint64_t first_unit = static_cast<std::uint64_t>(place_) * units_ / island;
  std::vector<std::pair<Communicator*, engine::Operation*>> started;
  for (Rail& rail : rails_) {
    Request request;
    request.call.collective = plan::Collective::AllReduce;
    request.call.type = call.type;
    request.call.op = call.op == dtype::RedOp::Avg ? dtype::RedOp::Sum : call.op;
    request.call.count = (rail.end - rail.begin) * per_unit;
    std::byte* at = mine + (rail.begin - first_unit) * per_unit * element;
    request.input = request.output = {at, request.call.count, {}};
    request.timeout = job.request.timeout;
    started.emplace_back(rail.comm.get(), rail.comm->start(request));
  }
  Status status = settle(job, started);
  if (status.ok() && call.op == dtype::RedOp::Avg) {
    dtype::divide(call.type)(mine, mine, count, parent_.size());
  }
  return status;
}

// Enqueues: the island's reduction of a block, and my part of it to the host.
Status TwoLevel::leave_device(Job& job, std::uint64_t at, std::uint64_t count, Slot& slot) {
  const plan::Call& call = job.request.call;
  const std::size_t element = dtype::size_of(call.type);
  const auto& island = islands_[static_cast<std::size_t>(island_)];
  const std::uint64_t part = count / island.size();
  const auto op = call.op == dtype::RedOp::Avg ? dtype::RedOp::Sum : call.op;
  device::Place from = place(job.request.input, at * element);
  if (group_ != nullptr) {
    const auto* in = static_cast<std::byte*>(from.handle) + from.offset;
    from = place(job.request.output, (at + part * static_cast<std::uint64_t>(place_)) * element);
    Status status = group_->reduce_scatter(in, static_cast<std::byte*>(from.handle) + from.offset,
                                           part, call.type, op, stream_.native);
    if (!status.ok()) return status;
  }
  Status status = where_.runtime->copy_out(stream_, slot.host, from, part * element);
  return status.ok() ? where_.runtime->event_record(slot.out, stream_) : status;
}

// Enqueues: my part of a block back, and the island's parts to all of it.
Status TwoLevel::enter_device(Job& job, std::uint64_t at, std::uint64_t count, Slot& slot) {
  const plan::Call& call = job.request.call;
  const std::size_t element = dtype::size_of(call.type);
  const std::uint64_t part = count / islands_[static_cast<std::size_t>(island_)].size();
  const device::Place whole = place(job.request.output, at * element);
  device::Place own = whole;
  own.offset += part * static_cast<std::uint64_t>(place_) * element;
  Status status = where_.runtime->copy_in(stream_, own, slot.host, part * element);
  if (!status.ok() || group_ == nullptr) return status;
  return group_->all_gather(static_cast<std::byte*>(own.handle) + own.offset,
                            static_cast<std::byte*>(whole.handle) + whole.offset, part, call.type,
                            stream_.native);
}

// The last elements, fewer than there are units: all ranks at once, through the host.
Status TwoLevel::tail(Job& job, std::uint64_t main) {
  Request request = job.request;
  const std::size_t element = dtype::size_of(request.call.type);
  request.call.count -= main;
  for (Memory* memory : {&request.input, &request.output}) {
    memory->data += main * element;
    memory->count -= main;
    memory->device.offset += main * element;
    memory->device.stream = stream_.native;  // behind what is enqueued there
  }
  std::vector<std::pair<Communicator*, engine::Operation*>> started;
  started.emplace_back(all_.get(), all_->start(request));
  return settle(job, started);
}

Status TwoLevel::all_reduce(Job& job) {
  const plan::Call& call = job.request.call;
  const std::size_t element = dtype::size_of(call.type);
  const std::uint64_t main = call.count / units_ * units_;
  const std::uint64_t block = std::max(kBlockBytes / element / units_, std::uint64_t{1}) * units_;
  const auto size_at = [&](std::uint64_t at) { return std::min(block, main - at); };
  Status status;
  if (where_.runtime == nullptr) {  // host memory is an island of its own
    if (job.request.input.data != job.request.output.data) {
      std::memcpy(job.request.output.data, job.request.input.data, main * element);
    }
    for (std::uint64_t at = 0; at < main && status.ok(); at += block) {
      status = exchange(job, job.request.output.data + at * element, size_at(at));
    }
    return status.ok() && main < call.count ? tail(job, main) : status;
  }
  for (int each = 0; each < 2 && status.ok(); ++each) {
    status = where_.runtime->stream_wait(stream_, job.gates[each]);
  }
  const std::uint64_t parts = islands_[static_cast<std::size_t>(island_)].size();
  if (status.ok()) status = leave_device(job, 0, size_at(0), slots_[0]);
  for (std::uint64_t at = 0, turn = 0; at < main && status.ok(); at += block, ++turn) {
    Slot& slot = slots_[turn % 2];
    const std::uint64_t next = at + block;  // leaves the device while this one crosses
    if (next < main) status = leave_device(job, next, size_at(next), slots_[(turn + 1) % 2]);
    if (status.ok()) status = await(job, slot.out);
    if (status.ok()) status = exchange(job, slot.host, size_at(at) / parts);
    if (status.ok()) status = enter_device(job, at, size_at(at), slot);
  }
  if (status.ok() && main < call.count) status = tail(job, main);
  if (status.ok()) status = where_.runtime->event_record(done_, stream_);
  return status.ok() ? await(job, done_) : status;
}

}  // namespace hccomm::comm
