// SPDX-License-Identifier: Apache-2.0
//
// The C ABI: convert, call, catch. No logic lives here.
#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "base/text.hpp"
#include "capi/hccomm.h"
#include "comm/join.hpp"
#include "comm/shared_heap.hpp"
#include "rendezvous/store.hpp"

using hccomm::Code;
using hccomm::Error;
using hccomm::no_thread;
using hccomm::Seconds;
using hccomm::Status;
using hccomm::text;
using hccomm::comm::Communicator;
using hccomm::engine::Follow;
using hccomm::engine::Operation;

struct hccomm_comm {
  std::unique_ptr<Communicator> self;
};

static int report(const Status& status, hccomm_error* error) {
  if (error != nullptr) {
    error->code = static_cast<std::int32_t>(status.code());
    error->rank = status.rank();
    const std::size_t length = std::min(status.text().size(), sizeof error->text - 1);
    std::memcpy(error->text, status.text().data(), length);
    error->text[length] = '\0';
  }
  return static_cast<int>(status.code());
}

static int succeed(hccomm_error* error) {
  if (error != nullptr) {
    error->code = HCCOMM_OK;
    error->rank = -1;
    error->text[0] = '\0';
  }
  return HCCOMM_OK;
}

// Runs the body; what it throws becomes the code and the caller's error.
template <typename Body>
static int guarded(hccomm_error* error, Body&& body) noexcept {
  try {
    return body();
  } catch (const Error& failure) {
    return report(failure.status(), error);
  } catch (const std::bad_alloc&) {
    return report(Status(Code::System, "out of memory"), error);
  } catch (const std::system_error& refused) {
    return report(no_thread(refused), error);
  } catch (const std::exception& failure) {
    return report(Status(Code::Internal, failure.what()), error);
  }
}

static void require(bool condition, const char* what) {
  if (!condition) throw Error(Code::InvalidArgument, what);
}

static Operation* operation(hccomm_work* work) { return reinterpret_cast<Operation*>(work); }
static const Operation* operation(const hccomm_work* work) {
  return reinterpret_cast<const Operation*>(work);
}

uint32_t hccomm_abi_version(void) { return HCCOMM_ABI_VERSION; }
const char* hccomm_version(void) { return "0.1.0"; }

// ---- communicators -----------------------------------------------------------------------------

static std::unique_ptr<Communicator> meet(const hccomm_config* config) {
  require(config != nullptr && config->struct_size == sizeof *config,
          "init: config.struct_size is not sizeof(hccomm_config); set it");
  hccomm::comm::Meeting meeting;
  meeting.rank = config->rank;
  meeting.size = config->size;
  if (config->name != nullptr) meeting.name = config->name;
  if (config->rendezvous != nullptr) meeting.url = config->rendezvous;
  meeting.timeout = Seconds(config->timeout);
  meeting.own_endpoint = (config->flags & HCCOMM_THREAD_RANK) != 0;
  std::unique_ptr<hccomm::rendezvous::Store> store;
  if (config->store != nullptr) {
    require(config->store->set != nullptr && config->store->get != nullptr,
            "init: config.store has no set or no get");
    store = hccomm::rendezvous::callback_store(hccomm::rendezvous::Callbacks{
        config->store->context, config->store->set, config->store->get});
    meeting.store = store.get();
  }
  return hccomm::comm::join(meeting);
}

int hccomm_init(const hccomm_config* config, hccomm_comm** comm, hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr, "init: comm is null; pass where to store the communicator");
    *comm = nullptr;
    auto made = std::make_unique<hccomm_comm>();
    made->self = meet(config);
    *comm = made.release();
    return succeed(error);
  });
}

int hccomm_reconfigure(hccomm_comm* comm, const hccomm_config* config, hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr, "reconfigure: comm is null");
    comm->self->leave("reconfigure() was called");
    comm->self = meet(config);
    return succeed(error);
  });
}

int hccomm_group(hccomm_comm* parent, const int32_t* ranks, size_t ranks_count, const char* name,
                 double timeout, hccomm_comm** comm, hccomm_error* error) {
  return guarded(error, [&] {
    require(parent != nullptr && comm != nullptr, "group: parent or comm is null");
    require(ranks != nullptr && ranks_count > 0, "group: ranks is empty; list its members");
    *comm = nullptr;
    auto made = std::make_unique<hccomm_comm>();
    made->self = parent->self->group(std::vector<int>(ranks, ranks + ranks_count),
                                     name != nullptr ? name : "", Seconds(timeout));
    *comm = made.release();
    return succeed(error);
  });
}

int hccomm_split(hccomm_comm* parent, int32_t color, int32_t key, hccomm_comm** comm,
                 hccomm_error* error) {
  return guarded(error, [&] {
    require(parent != nullptr && comm != nullptr, "split: parent or comm is null");
    *comm = nullptr;
    auto made = std::make_unique<hccomm_comm>();
    made->self = parent->self->split(color, key);
    if (made->self != nullptr) *comm = made.release();
    return succeed(error);
  });
}

int hccomm_set(hccomm_comm* comm, const char* name, const char* value, hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr, "set: comm is null");
    require(name != nullptr && value != nullptr, "set: name or value is null");
    comm->self->set(name, value);
    return succeed(error);
  });
}

int hccomm_use_islands(hccomm_comm* comm, int32_t device_kind, int32_t device_index,
                       hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr, "use_islands: comm is null");
    hccomm::comm::DeviceBuffer mine;
    mine.kind = device_kind;
    mine.index = device_index;
    comm->self->use_islands(mine);
    return succeed(error);
  });
}

int hccomm_shrink(hccomm_comm* parent, double timeout, hccomm_comm** comm, hccomm_error* error) {
  return guarded(error, [&] {
    require(parent != nullptr && comm != nullptr, "shrink: parent or comm is null");
    *comm = nullptr;
    auto made = std::make_unique<hccomm_comm>();
    made->self = parent->self->shrink(Seconds(timeout));
    *comm = made.release();
    return succeed(error);
  });
}

int32_t hccomm_rank(const hccomm_comm* comm) { return comm->self->rank(); }
int32_t hccomm_size(const hccomm_comm* comm) { return comm->self->size(); }

int hccomm_set_timeout(hccomm_comm* comm, double timeout, hccomm_error* error) {
  return guarded(error, [&] {
    comm->self->set_timeout(Seconds(timeout));
    return succeed(error);
  });
}

int hccomm_abort(hccomm_comm* comm, const char* reason, hccomm_error* error) {
  return guarded(error, [&] {
    comm->self->abort(reason != nullptr ? reason : "no reason given");
    return succeed(error);
  });
}

void hccomm_abort_signal(void) {
  if (const auto endpoint = hccomm::comm::Endpoint::peek()) endpoint->engine().abort_from_signal();
}

int hccomm_close(hccomm_comm* comm, double timeout, hccomm_error* error) {
  return guarded(error, [&] {
    if (comm == nullptr) return succeed(error);
    const std::unique_ptr<hccomm_comm> owned(comm);
    const Status status = owned->self->close(Seconds(timeout));
    return status.ok() ? succeed(error) : report(status, error);
  });
}

// ---- memory ------------------------------------------------------------------------------------

int hccomm_alloc(uint64_t bytes, void** data, hccomm_error* error) {
  return guarded(error, [&] {
    require(data != nullptr, "alloc: data is null");
    *data = nullptr;
    auto taken = hccomm::comm::SharedHeap::of_process().take(bytes);
    if (!taken.ok()) {
      throw Error(taken.status().code(), "alloc: " + taken.status().text() + "; use malloc");
    }
    *data = taken.value();
    return succeed(error);
  });
}

int hccomm_free(void* data, hccomm_error* error) {
  return guarded(error, [&] {
    const bool ours = data == nullptr || hccomm::comm::SharedHeap::of_process().give_back(
                                             static_cast<std::byte*>(data));
    require(ours, "free: hccomm_alloc has not given this, or it was given back");
    return succeed(error);
  });
}

struct hccomm_registration {
  std::unique_ptr<hccomm::comm::Registration> self;
};

static hccomm::comm::DeviceBuffer device_of(const hccomm_buffer& buffer) {
  return {buffer.device_kind, buffer.device_index, buffer.data, buffer.offset, buffer.stream};
}

int hccomm_register(hccomm_comm* comm, void* data, uint64_t bytes,
                    hccomm_registration** registration, hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr && registration != nullptr, "register: comm or registration is null");
    *registration = nullptr;
    auto made = std::make_unique<hccomm_registration>();
    made->self = comm->self->enroll(static_cast<std::byte*>(data), bytes);
    *registration = made.release();
    return succeed(error);
  });
}

int hccomm_register_device(hccomm_comm* comm, const hccomm_buffer* buffer, uint64_t bytes,
                           hccomm_registration** registration, hccomm_error* error) {
  return guarded(error, [&] {
    require(comm != nullptr && buffer != nullptr && registration != nullptr,
            "register: comm, buffer or registration is null");
    require(buffer->device_kind != HCCOMM_DEVICE_HOST,
            "register: buffer is on the host; call hccomm_register");
    *registration = nullptr;
    auto made = std::make_unique<hccomm_registration>();
    made->self = comm->self->enroll(device_of(*buffer), bytes);
    if (made->self->reached()) *registration = made.release();
    return succeed(error);
  });
}

void hccomm_deregister(hccomm_registration* registration) { delete registration; }

// ---- operations --------------------------------------------------------------------------------

static void check_call(const hccomm_comm* comm, const hccomm_call* call) {
  require(comm != nullptr && call != nullptr, "start: comm or call is null");
  require(call->struct_size == sizeof *call,
          "start: call.struct_size is not sizeof(hccomm_call); set it");
  if (call->dtype < 0 || call->dtype >= hccomm::dtype::kDTypes) {
    throw Error(Code::InvalidArgument,
                text("start: dtype=", call->dtype, " is outside 0..", hccomm::dtype::kDTypes - 1));
  }
}

static Follow follow_of(const hccomm_call& call) {
  return (call.flags & HCCOMM_BACKGROUND) != 0 ? Follow::Background : Follow::Soon;
}

static hccomm::comm::Memory memory_of(const hccomm_buffer& buffer) {
  return {static_cast<std::byte*>(buffer.data) + buffer.offset, buffer.count, device_of(buffer)};
}

static hccomm::comm::Message message_of(const hccomm_call& call) {
  const hccomm_buffer& buffer = call.collective == HCCOMM_SEND ? call.input : call.output;
  const std::uint64_t element =
      hccomm::dtype::size_of(static_cast<hccomm::dtype::DType>(call.dtype));
  if (buffer.count < call.count) {
    throw Error(Code::InvalidArgument,
                text(call.collective == HCCOMM_SEND ? "send" : "recv", ": the buffer holds ",
                     buffer.count, " elements, but count is ", call.count));
  }
  return {call.root,
          call.tag,
          static_cast<std::byte*>(buffer.data) + buffer.offset,
          call.count * element,
          static_cast<std::uint8_t>(call.dtype + 1),
          Seconds(call.timeout),
          follow_of(call),
          device_of(buffer)};
}

// Parts without offsets lie back to back.
static void fill_parts(const std::uint64_t* counts, const std::uint64_t* offsets, int size,
                       std::vector<std::uint64_t>& to_counts,
                       std::vector<std::uint64_t>& to_offsets) {
  if (counts != nullptr) to_counts.assign(counts, counts + size);
  if (offsets != nullptr) {
    to_offsets.assign(offsets, offsets + size);
  } else if (counts != nullptr) {
    to_offsets.resize(to_counts.size());
    std::exclusive_scan(to_counts.begin(), to_counts.end(), to_offsets.begin(), std::uint64_t{0});
  }
}

static hccomm::comm::Request request_of(const hccomm_call& call, int size) {
  if (call.collective < HCCOMM_ALL_REDUCE || call.collective > HCCOMM_BARRIER) {
    throw Error(Code::InvalidArgument,
                text("start: collective=", call.collective, " is none; see hccomm.h"));
  }
  if (call.op < 0 || call.op >= hccomm::dtype::kRedOps) {
    throw Error(Code::InvalidArgument,
                text("start: op=", call.op, " is outside 0..", hccomm::dtype::kRedOps - 1));
  }
  hccomm::comm::Request request;
  request.call.collective = static_cast<hccomm::plan::Collective>(call.collective);
  request.call.type = static_cast<hccomm::dtype::DType>(call.dtype);
  request.call.op = static_cast<hccomm::dtype::RedOp>(call.op);
  request.call.root = call.root;
  request.call.count = call.count;
  fill_parts(call.counts, call.offsets, size, request.call.counts, request.call.offsets);
  fill_parts(call.recv_counts, call.recv_offsets, size, request.call.recv_counts,
             request.call.recv_offsets);
  request.input = memory_of(call.input);
  request.output = memory_of(call.output);
  if (call.input.device_kind != HCCOMM_DEVICE_HOST ||
      call.output.device_kind != HCCOMM_DEVICE_HOST) {
    hccomm::comm::make_comparable(request.input, request.output);
  }
  request.factor = call.factor;
  request.timeout = Seconds(call.timeout);
  request.follow = follow_of(call);
  return request;
}

// The call in the form that tells whether it is the last one again.
static hccomm::engine::Simple simple_of(const hccomm_call& call) {
  return {call.collective,
          call.dtype,
          call.op,
          call.root,
          call.count,
          static_cast<const std::byte*>(call.input.data) + call.input.offset,
          static_cast<const std::byte*>(call.output.data) + call.output.offset,
          call.input.count,
          call.output.count};
}

static bool is_simple(const hccomm_call& call) {
  return call.counts == nullptr && call.offsets == nullptr && call.recv_counts == nullptr &&
         call.recv_offsets == nullptr && call.input.device_kind == HCCOMM_DEVICE_HOST &&
         call.output.device_kind == HCCOMM_DEVICE_HOST;
}

static Operation* start(Communicator& comm, const hccomm_call& call) {
  if (call.collective == HCCOMM_SEND) return comm.send(message_of(call));
  if (call.collective == HCCOMM_RECV) return comm.recv(message_of(call));
  return comm.start(request_of(call, comm.size()));
}

int hccomm_start(hccomm_comm* comm, const hccomm_call* call, hccomm_work** work,
                 hccomm_error* error) {
  return guarded(error, [&] {
    check_call(comm, call);
    require(work != nullptr, "start: work is null; pass where to store the handle");
    *work = reinterpret_cast<hccomm_work*>(start(*comm->self, *call));
    return succeed(error);
  });
}

int hccomm_run(hccomm_comm* comm, const hccomm_call* call, hccomm_error* error) {
  return guarded(error, [&] {
    check_call(comm, call);
    if (call->collective != HCCOMM_SEND && call->collective != HCCOMM_RECV) {
      Status repeated;
      if (is_simple(*call) &&
          comm->self->repeat(simple_of(*call), call->factor, Seconds(call->timeout), repeated)) {
        return repeated.ok() ? succeed(error) : report(repeated, error);
      }
      const Status status = comm->self->run(request_of(*call, comm->self->size()));
      return status.ok() ? succeed(error) : report(status, error);
    }
    auto message = message_of(*call);
    message.follow = Follow::Wait;
    Operation* op =
        call->collective == HCCOMM_SEND ? comm->self->send(message) : comm->self->recv(message);
    const Status status = op->engine->wait(*op, hccomm::Deadline::never());
    op->engine->release(*op);
    return status.ok() ? succeed(error) : report(status, error);
  });
}

int hccomm_sendrecv(hccomm_comm* comm, const hccomm_call* send, const hccomm_call* recv,
                    int32_t* source, hccomm_error* error) {
  return guarded(error, [&] {
    check_call(comm, send);
    check_call(comm, recv);
    require(send->collective == HCCOMM_SEND && recv->collective == HCCOMM_RECV,
            "sendrecv: send and recv must be calls of HCCOMM_SEND and HCCOMM_RECV");
    int from = -1;
    const Status status = comm->self->exchange(message_of(*send), message_of(*recv), from);
    if (source != nullptr) *source = from;
    return status.ok() ? succeed(error) : report(status, error);
  });
}

int hccomm_wait(hccomm_work* work, double timeout, hccomm_error* error) {
  return guarded(error, [&] {
    require(work != nullptr, "wait: work is null");
    Operation& op = *operation(work);
    const auto deadline =
        timeout > 0 ? hccomm::Deadline::after(Seconds(timeout)) : hccomm::Deadline::never();
    const Status status = op.engine->wait(op, deadline);
    return status.ok() ? succeed(error) : report(status, error);
  });
}

int hccomm_test(hccomm_work* work, int* done, hccomm_error* error) {
  return guarded(error, [&] {
    require(work != nullptr && done != nullptr, "test: work or done is null");
    Operation& op = *operation(work);
    *done = op.engine->test(op) ? 1 : 0;
    return *done == 0 || op.status.ok() ? succeed(error) : report(op.status, error);
  });
}

int hccomm_on_done(hccomm_work* work, void (*function)(void*, int), void* context) {
  return guarded(nullptr, [&] {
    require(work != nullptr && function != nullptr, "on_done: work or function is null");
    Operation& op = *operation(work);
    op.engine->on_done(op, function, context);
    return static_cast<int>(HCCOMM_OK);
  });
}

int32_t hccomm_source(const hccomm_work* work) { return operation(work)->peer; }
uint64_t hccomm_sequence(const hccomm_work* work) { return operation(work)->sequence; }

void hccomm_release(hccomm_work* work) {
  if (work == nullptr || hccomm::comm::Endpoint::forked()) return;
  Operation& op = *operation(work);
  op.engine->release(op);
}

// ---- asking ------------------------------------------------------------------------------------

// The body's text, or minus the code.
template <typename Body>
static int64_t asked(char* out, size_t capacity, Body&& body) noexcept {
  std::string answer;
  const int code = guarded(nullptr, [&] {
    answer = body();
    return static_cast<int>(HCCOMM_OK);
  });
  if (code != HCCOMM_OK) return -code;
  if (out != nullptr && capacity > 0) {
    const std::size_t length = std::min(answer.size(), capacity - 1);
    std::memcpy(out, answer.data(), length);
    out[length] = '\0';
  }
  return static_cast<int64_t>(answer.size());
}

int64_t hccomm_describe(hccomm_comm* comm, char* out, size_t capacity) {
  return asked(out, capacity, [&] {
    require(comm != nullptr, "describe: comm is null");
    return comm->self->describe();
  });
}

int64_t hccomm_dump(hccomm_comm* comm, char* out, size_t capacity) {
  return asked(out, capacity, [&] {
    require(comm != nullptr, "dump: comm is null");
    return comm->self->dump();
  });
}
