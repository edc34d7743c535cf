// SPDX-License-Identifier: Apache-2.0
//
// The simulated vendor's own runtime beside torch's way to it: the functions of Moore Threads', as
// hccomm's adapter of that name calls them, over the very streams and the memory that torch's
// tensors have. It is found where the library was loaded under that runtime's file name
// (simdevice.start(native=True)).
//
// The fake collective libraries of tests/fakes work over it, by the three functions that they ask
// of a runtime.
//
// Strict: memory that is not page-locked, addresses that are not this device's, streams and events
// that do not exist or are another device's are errors, and so is everything on a lost device.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <type_traits>

#include "torch_device.hpp"

namespace simdevice {

namespace {

enum Code { kFine = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotReady = 600, kLost = 999 };
enum Direction { kToDevice = 1, kToHost = 2 };

struct Native {
  std::mutex mutex;  // guards the rest
  std::set<Stream*> streams;
  std::vector<Stream*> idle;  // destroyed ones: their threads serve the next
  std::set<EventPtr*> events;
  std::int64_t copies = 0;
};

Native& native() {
  static auto* const one = new Native;  // streams outlive static destructors
  return *one;
}

thread_local int last_code = kFine;

// Runs the body as a call of the runtime. Its code is also the last error; a lost device's stays.
template <typename Body>
int call(const Body& body) noexcept {
  int code = kFine;
  try {
    if (device(current_device()).lost()) {
      code = kLost;
    } else if constexpr (std::is_void_v<decltype(body())>) {
      body();
    } else {
      code = body();
    }
  } catch (const OutOfMemory&) {
    code = kOutOfMemory;
  } catch (const c10::OutOfMemoryError&) {
    code = kOutOfMemory;
  } catch (const std::exception&) {
    code = device(current_device()).lost() ? kLost : kInvalidValue;
  }
  if (code != kFine && code != kNotReady) last_code = code;
  return code;
}

void demand(bool kept, const char* rule) {
  if (!kept) throw DeviceError(rule);
}

// The stream behind a handle: one of torch's, one of ours, or the default one.
Stream& stream_at(void* handle) {
  Device& here = device(current_device());
  if (handle == nullptr) return here.stream(0);
  auto* const stream = static_cast<Stream*>(handle);
  bool known = false;
  for (int number = 0; number < Device::kStreams; ++number) {
    known = known || stream == &here.stream(number);
  }
  const std::lock_guard lock(native().mutex);
  demand(known || native().streams.contains(stream), "there is no such stream");
  demand(&stream->device() == &here, "this stream is of another device than the current one");
  return *stream;
}

EventPtr event_at(void* handle) {
  auto* const event = static_cast<EventPtr*>(handle);
  const std::lock_guard lock(native().mutex);
  demand(native().events.contains(event), "there is no such event");
  return *event;
}

void copy(void* to, const void* from, std::size_t bytes, int kind, void* handle) {
  Stream& stream = stream_at(handle);
  demand(kind == kToDevice || kind == kToHost, "only between host and device");
  demand(bytes > 0, "nothing to copy");
  const void* const host = kind == kToDevice ? from : to;
  const void* const there = kind == kToDevice ? to : from;
  demand(is_pinned(host) && is_pinned(static_cast<const std::byte*>(host) + bytes - 1),
         "this host memory is not page-locked");
  demand(stream.device().memory().holds(static_cast<const std::byte*>(there) + bytes - 1),
         "the copy goes beyond the device's memory");
  stream.device().copy(stream, to, from, bytes, kind == kToDevice, nullptr);
  const std::lock_guard lock(native().mutex);
  ++native().copies;
}

Stream* make_stream() {
  Device& here = device(current_device());
  const std::lock_guard lock(native().mutex);
  auto& idle = native().idle;
  const auto found = std::find_if(idle.begin(), idle.end(),
                                  [&](Stream* each) { return &each->device() == &here; });
  Stream* const stream = found != idle.end() ? *found : new Stream(here);
  if (found != idle.end()) idle.erase(found);
  native().streams.insert(stream);
  return stream;
}

void drop_stream(void* handle) {
  auto* const stream = static_cast<Stream*>(handle);
  demand(stream_at(handle).idle(), "the stream still works");
  const std::lock_guard lock(native().mutex);
  demand(native().streams.erase(stream) == 1, "this stream is not its caller's to destroy");
  native().idle.push_back(stream);
}

}  // namespace

int64_t native_copies() {
  const std::lock_guard lock(native().mutex);
  return native().copies;
}

int64_t native_streams() {
  const std::lock_guard lock(native().mutex);
  return static_cast<int64_t>(native().streams.size());
}

// ---- the vendor's functions --------------------------------------------------------------------

extern "C" {

int musaGetDeviceCount(int* count) {
  *count = settings().devices;
  return kFine;
}

int musaSetDevice(int index) {
  if (index < 0 || index >= settings().devices) return last_code = kInvalidValue;
  set_current_device(index);
  return kFine;
}

int musaGetDevice(int* index) {
  *index = current_device();
  return kFine;
}

int musaMalloc(void** address, std::size_t bytes) {
  return call([&] { *address = device(current_device()).allocate(bytes); });
}

int musaFree(void* address) {
  return call([&] {
    Device& here = device(current_device());
    here.synchronize();
    here.memory().reach(address);
    here.memory().release(address);
  });
}

int musaHostAlloc(void** address, std::size_t bytes, unsigned /*flags*/) {
  return call([&] {
    c10::DataPtr block = pinned_allocator().allocate(bytes);
    *address = block.release_context();
  });
}

int musaFreeHost(void* address) {
  return call([&] {
    demand(is_pinned(address), "this host memory is not page-locked");
    pinned_allocator().raw_deleter()(address);
  });
}

int musaMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, void* stream) {
  return call([&] { copy(to, from, bytes, kind, stream); });
}

int musaStreamCreateWithFlags(void** stream, unsigned /*flags*/) {
  return call([&] { *stream = make_stream(); });
}

int musaStreamDestroy(void* stream) {
  return call([&] { drop_stream(stream); });
}

int musaStreamQuery(void* stream) {
  return call([&] { return stream_at(stream).idle() ? kFine : kNotReady; });
}

int musaStreamWaitEvent(void* stream, void* event, unsigned /*flags*/) {
  return call([&] { stream_at(stream).block(event_at(event)); });
}

int musaEventCreateWithFlags(void** event, unsigned /*flags*/) {
  return call([&] {
    auto made = std::make_unique<EventPtr>(std::make_shared<Event>(device(current_device())));
    const std::lock_guard lock(native().mutex);
    native().events.insert(made.get());
    *event = made.release();
  });
}

int musaEventRecord(void* event, void* stream) {
  return call([&] { stream_at(stream).record(event_at(event)); });
}

int musaEventQuery(void* event) {
  return call([&]() -> int {
    const EventPtr asked = event_at(event);
    if (asked->device().lost()) return kLost;
    return asked->query() ? kFine : kNotReady;
  });
}

int musaEventDestroy(void* event) {
  return call([&] {
    event_at(event);
    auto* const dropped = static_cast<EventPtr*>(event);
    const std::lock_guard lock(native().mutex);
    native().events.erase(dropped);
    delete dropped;
  });
}

int musaGetLastError() {
  if (device(current_device()).lost()) return kLost;
  const int code = last_code;
  last_code = kFine;
  return code;
}

const char* musaGetErrorString(int code) {
  switch (code) {
    case kFine: return "no error";
    case kInvalidValue: return "invalid argument";
    case kOutOfMemory: return "out of memory";
    case kNotReady: return "device not ready";
    case kLost: return "the device is lost";
    default: return "unknown error";
  }
}

int musaDeviceGetPCIBusId(char* out, int capacity, int index) {
  std::snprintf(out, static_cast<std::size_t>(capacity), "0000:%02x:00.0", 0x40 + index);
  return kFine;
}

// ---- what tests/fakes/ccl.c asks of a runtime --------------------------------------------------

int fake_current_device() { return current_device(); }

// Calls in the stream's order, from its thread.
int fake_launch(void* stream, void (*function)(void*), void* argument) {
  return call([&] { stream_at(stream).enqueue([=] { function(argument); }); });
}

void* fake_host_view(const void* address, std::size_t bytes) {
  const Memory& memory = device(current_device()).memory();
  const auto* const last = static_cast<const std::byte*>(address) + (bytes > 0 ? bytes - 1 : 0);
  return memory.holds(address) && memory.holds(last) ? memory.reach(address) : nullptr;
}

}  // extern "C"

}  // namespace simdevice
