// SPDX-License-Identifier: Apache-2.0
//
// Torch as a device runtime: the table of hccomm_device.h over c10's guard, Stream and Event, and
// over Tensor::copy_ between a tensor in use and a page-locked tensor of ours.
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdio>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>

#include "device.hpp"
#include "resident.hpp"

namespace hccomm::glue {

namespace {

using c10::impl::VirtualGuardImpl;

constexpr std::size_t kPage = 4096;

thread_local std::string last_words;  // of the last call on this thread that failed

// One device type. Owns the host and device memory that the core has asked for.
struct Generic {
  Generic(c10::DeviceType of, std::string called)
      : type(of),
        name(std::move(called)),
        summary("torch's streams, events and copies for " + c10::DeviceTypeName(of, true)) {}

  c10::Device device(int32_t index) const { return {type, static_cast<c10::DeviceIndex>(index)}; }
  c10::Stream stream(const hccomm_device_stream& given) const {
    if (given.ours) return *static_cast<c10::Stream*>(given.native);
    // A caller's stream travels as its number; see place().
    return c10::Stream(c10::Stream::UNSAFE, device(given.index),
                       static_cast<c10::StreamId>(reinterpret_cast<intptr_t>(given.native)));
  }

  const c10::DeviceType type;
  const std::string name, summary;
  hccomm_device_plugin_v1 table{};
  std::mutex mutex;  // guards the rest
  std::map<const std::byte*, at::Tensor> host;
  std::map<const void*, std::pair<at::Tensor, Resident>> memory;
};

Generic& generic(void* context) { return *static_cast<Generic*>(context); }

// Runs the body outside autograd and torch's modes. 0, or 1 with last_words.
template <typename Body>
int guarded(const Body& body) noexcept {
  try {
    const at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard no_modes(
        c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
    body();
    return 0;
  } catch (const c10::Error& failure) {
    last_words = failure.what_without_backtrace();
  } catch (const std::exception& failure) {
    last_words = failure.what();
  } catch (...) {
    last_words = "an exception of unknown type";
  }
  return 1;
}

void put(char* out, size_t capacity, const std::string& words) {
  if (capacity > 0) std::snprintf(out, capacity, "%s", words.c_str());
}

int probe(void* context, char* reason, size_t capacity) {
  const Generic& own = generic(context);
  const int failed = guarded([&] {
    TORCH_CHECK(c10::impl::hasDeviceGuardImpl(own.type), "torch has no guard for ", own.name);
    TORCH_CHECK(VirtualGuardImpl(own.type).deviceCount() > 0, "torch sees no device of it");
  });
  if (failed) put(reason, capacity, last_words);
  return failed;
}

int count(void* context, int32_t* found) {
  return guarded([&] { *found = VirtualGuardImpl(generic(context).type).deviceCount(); });
}

int current(void* context, int32_t* index) {
  return guarded([&] { *index = VirtualGuardImpl(generic(context).type).getDevice().index(); });
}

int describe(void* context, int32_t index, char* out, size_t capacity) {
  const int failed =
      guarded([&] { put(out, capacity, generic(context).device(index).str() + " of torch"); });
  return failed;
}

void error_text(void* /*context*/, int /*code*/, char* out, size_t capacity) {
  put(out, capacity, last_words);
}

// ---- memory ------------------------------------------------------------------------------------

// Page-locked where the device can; else the copies are slower, and still right.
at::Tensor host_bytes(const Generic& own, int32_t index, size_t bytes) {
  const c10::DeviceGuard guard(own.device(index));
  const auto options = at::TensorOptions().dtype(at::kByte).device(at::kCPU);
  const auto size = static_cast<int64_t>(bytes + kPage);
  try {
    return at::empty({size}, options.pinned_memory(true));
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    return at::empty({size}, options);
  }
}

int host_allocate(void* context, int32_t index, size_t bytes, void** address) {
  return guarded([&] {
    Generic& own = generic(context);
    at::Tensor block = host_bytes(own, index, bytes);
    const auto begin = reinterpret_cast<uintptr_t>(block.mutable_data_ptr());
    *address = reinterpret_cast<void*>((begin + kPage - 1) / kPage * kPage);
    const std::lock_guard lock(own.mutex);
    own.host.emplace(static_cast<std::byte*>(*address), std::move(block));
  });
}

void host_free(void* context, int32_t /*index*/, void* address) {
  at::Tensor dropped;  // without the lock
  Generic& own = generic(context);
  const std::lock_guard lock(own.mutex);
  if (auto found = own.host.extract(static_cast<std::byte*>(address))) {
    dropped = std::move(found.mapped());
  }
}

// The bytes at an address of host_allocate() as a tensor.
at::Tensor host_view(Generic& own, const void* address, size_t bytes) {
  const auto* place = static_cast<const std::byte*>(address);
  const std::lock_guard lock(own.mutex);
  auto after = own.host.upper_bound(place);
  TORCH_CHECK(after != own.host.begin(), "this host memory is not page-locked by us");
  const at::Tensor& block = std::prev(after)->second;
  const int64_t offset = place - static_cast<const std::byte*>(block.const_data_ptr());
  return block.narrow(0, offset, static_cast<int64_t>(bytes));
}

int allocate(void* context, int32_t index, size_t bytes, hccomm_device_place* place) {
  return guarded([&] {
    Generic& own = generic(context);
    at::Tensor tensor = at::empty({static_cast<int64_t>(bytes)},
                                  at::TensorOptions().dtype(at::kByte).device(own.device(index)));
    *place = {tensor.mutable_data_ptr(), 0};
    Resident resident(tensor);
    const std::lock_guard lock(own.mutex);
    own.memory.emplace(place->handle, std::pair(std::move(tensor), std::move(resident)));
  });
}

void release(void* context, int32_t /*index*/, hccomm_device_place place) {
  std::optional<std::pair<at::Tensor, Resident>> dropped;  // without the lock
  Generic& own = generic(context);
  const std::lock_guard lock(own.mutex);
  if (auto found = own.memory.extract(place.handle)) dropped.emplace(std::move(found.mapped()));
}

// ---- streams and events ------------------------------------------------------------------------

int stream_create(void* context, int32_t index, void** native) {
  return guarded([&] {
    const Generic& own = generic(context);
    const VirtualGuardImpl guard(own.type);
    const c10::DeviceGuard on(own.device(index));
    try {
      *native = new c10::Stream(guard.getStreamFromGlobalPool(own.device(index), true));
    } catch (const c10::Error&) {  // a vendor without a pool
      *native = new c10::Stream(guard.getNewStream(own.device(index), 0));
    }
  });
}

void stream_destroy(void* /*context*/, int32_t /*index*/, void* native) {
  delete static_cast<c10::Stream*>(native);  // the stream itself is torch's
}

// Between device and host, in the order of the stream; returns at once.
void copy(Generic& own, const hccomm_device_stream& given, const hccomm_device_place& place,
          const void* host, size_t bytes, bool to_device) {
  const c10::Stream stream = own.stream(given);
  const at::Tensor device_side = resident_bytes(
      stream, static_cast<std::byte*>(place.handle) + place.offset, static_cast<int64_t>(bytes));
  const at::Tensor host_side = host_view(own, host, bytes);
  const c10::StreamGuard on(stream);
  if (to_device) {
    device_side.copy_(host_side, /*non_blocking=*/true);
  } else {
    host_side.copy_(device_side, /*non_blocking=*/true);
  }
}

int copy_in(void* context, hccomm_device_stream stream, hccomm_device_place dst, const void* host,
            size_t bytes) {
  return guarded([&] { copy(generic(context), stream, dst, host, bytes, true); });
}

int copy_out(void* context, hccomm_device_stream stream, void* host, hccomm_device_place src,
             size_t bytes) {
  return guarded([&] { copy(generic(context), stream, src, host, bytes, false); });
}

int event_create(void* context, int32_t /*index*/, void** event) {
  return guarded([&] { *event = new c10::Event(generic(context).type); });
}

void event_destroy(void* context, int32_t index, void* event) {
  guarded([&] {
    const c10::DeviceGuard on(generic(context).device(index));
    delete static_cast<c10::Event*>(event);
  });
}

int event_record(void* context, void* event, hccomm_device_stream stream) {
  return guarded([&] {
    const c10::DeviceGuard on(generic(context).device(stream.index));
    static_cast<c10::Event*>(event)->record(generic(context).stream(stream));
  });
}

int event_query(void* context, int32_t index, void* event, int32_t* done) {
  return guarded([&] {
    const c10::DeviceGuard on(generic(context).device(index));
    *done = static_cast<c10::Event*>(event)->query() ? 1 : 0;
  });
}

int stream_wait(void* context, hccomm_device_stream stream, void* event) {
  return guarded([&] {
    const c10::DeviceGuard on(generic(context).device(stream.index));
    static_cast<c10::Event*>(event)->block(generic(context).stream(stream));
  });
}

}  // namespace

const hccomm_device_plugin_v1* generic_device(c10::DeviceType type, const std::string& name) {
  auto* const own = new Generic(type, name);  // the core may use it until the process ends
  hccomm_device_plugin_v1& table = own->table;
  table.struct_size = sizeof(table);
  table.abi_version = HCCOMM_DEVICE_PLUGIN_ABI;
  table.name = own->name.c_str();
  table.summary = own->summary.c_str();
  table.context = own;
  table.probe = probe;
  table.count = count;
  table.current = current;
  table.describe = describe;
  table.error_text = error_text;
  table.host_allocate = host_allocate;
  table.host_free = host_free;
  table.allocate = allocate;
  table.release = release;
  table.stream_create = stream_create;
  table.stream_destroy = stream_destroy;
  table.copy_in = copy_in;
  table.copy_out = copy_out;
  table.event_create = event_create;
  table.event_destroy = event_destroy;
  table.event_record = event_record;
  table.event_query = event_query;
  table.stream_wait = stream_wait;
  return &table;
}

}  // namespace hccomm::glue
