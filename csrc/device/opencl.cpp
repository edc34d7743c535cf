// SPDX-License-Identifier: Apache-2.0
//
// OpenCL devices of all installed platforms, through the loader libOpenCL. A buffer is a cl_mem of
// the caller's context, and only a queue of that context can copy it: so a stream of ours is one
// queue per context, made when a buffer of it first comes. Where a platform offers unified shared
// memory (Intel's extension), it says of any address whether it is such a pointer of a context, and
// the contexts are those of the queues that callers brought. No call says that of SVM: a caller
// makes a cl_mem over it (CL_MEM_USE_HOST_PTR), which is the same memory.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "device/library.hpp"
#include "device/opencl_sums.hpp"
#include "device/registry.hpp"

namespace hccomm::device {

namespace {

using ClEvent = void*;
using ClQueue = void*;
using ClContext = void*;
using ClMem = void*;

// OpenCL's functions, declared by us.
struct ClFunctions {
  int (*platforms)(std::uint32_t, void**, std::uint32_t*);
  int (*devices)(void* platform, std::uint64_t type, std::uint32_t, void**, std::uint32_t*);
  int (*device_info)(void*, std::uint32_t, std::size_t, void*, std::size_t*);
  ClContext (*context_create)(const std::intptr_t*, std::uint32_t, void* const*, void*, void*,
                              int*);
  ClQueue (*queue_create)(ClContext, void* device, std::uint64_t properties, int*);
  int (*queue_release)(ClQueue);
  ClMem (*buffer_create)(ClContext, std::uint64_t flags, std::size_t, void*, int*);
  int (*buffer_release)(ClMem);
  int (*buffer_info)(ClMem, std::uint32_t, std::size_t, void*, std::size_t*);
  int (*read)(ClQueue, ClMem, std::uint32_t blocking, std::size_t offset, std::size_t bytes, void*,
              std::uint32_t, const ClEvent*, ClEvent*);
  int (*write)(ClQueue, ClMem, std::uint32_t blocking, std::size_t offset, std::size_t bytes,
               const void*, std::uint32_t, const ClEvent*, ClEvent*);
  int (*marker)(ClQueue, std::uint32_t, const ClEvent*, ClEvent*);
  int (*barrier)(ClQueue, std::uint32_t, const ClEvent*, ClEvent*);
  int (*event_info)(ClEvent, std::uint32_t, std::size_t, void*, std::size_t*);
  int (*event_release)(ClEvent);
  int (*flush)(ClQueue);
  int (*finish)(ClQueue);
  int (*queue_info)(ClQueue, std::uint32_t, std::size_t, void*, std::size_t*);
  int (*context_retain)(ClContext);
  void* (*extension)(void* platform, const char* name);
};

// cl_intel_unified_shared_memory; null where a device has none.
struct UsmFunctions {
  int (*info)(ClContext, const void*, std::uint32_t, std::size_t, void*, std::size_t*);
  int (*copy)(ClQueue, std::uint32_t blocking, void* dst, const void* src, std::size_t bytes,
              std::uint32_t, const ClEvent*, ClEvent*);
};

static constexpr std::uint64_t kAllDevices = 0xFFFFFFFF;
static constexpr std::uint32_t kDeviceName = 0x102B, kDeviceVersion = 0x102F,
                               kDeviceAvailable = 0x1027, kDeviceExtensions = 0x1030;
static constexpr std::uint32_t kQueueContext = 0x1090, kUsmType = 0x419A, kUsmUnknown = 0x4196;
static constexpr std::uint32_t kMemContext = 0x1106, kEventStatus = 0x11D3, kEventContext = 0x11D4;
static constexpr std::uint64_t kReadWrite = 1;

// A stream of ours: what was enqueued last decides which queue an event stands behind.
struct ClStream {
  std::vector<std::pair<ClContext, ClQueue>> queues;
  ClQueue last = nullptr;
};

// What an Event's native points to; none: never recorded, or behind nothing.
struct ClRecord {
  ClEvent event = nullptr;
};

class OpenCl final : public Runtime {
 public:
  explicit OpenCl(DynamicLibrary library) : library_(std::move(library)) {}

  Status open();

  std::string library() const override { return library_.path(); }
  Result<int> count() noexcept override { return static_cast<int>(devices_.size()); }
  Result<int> current() noexcept override { return 0; }  // OpenCL has no such notion

  std::string describe(int index) noexcept override {
    if (!exists(index)) return text("opencl:", index);
    return info(index, kDeviceName) + ", " + info(index, kDeviceVersion);
  }

  Status health(int index) noexcept override {
    if (!exists(index)) return absent(index);
    std::uint32_t available = 1;
    const int code =
        call_.device_info(device(index), kDeviceAvailable, sizeof available, &available, nullptr);
    if (code != 0) return failed(code, "clGetDeviceInfo", index);
    return available != 0 ? Status() : failed(-2, "clGetDeviceInfo", index);
  }

  // OpenCL pins on its own while it copies; the block has an address that suits everyone.
  Result<void*> host_allocate(int index, std::size_t bytes) noexcept override {
    if (!exists(index)) return absent(index);
    void* address = nullptr;
    if (posix_memalign(&address, 4096, std::max<std::size_t>(bytes, 1)) != 0) {
      return Status(Code::System, text("opencl:", index, ": no memory for ", bytes, " bytes"));
    }
    return address;
  }
  void host_free(int, void* address) noexcept override { std::free(address); }
  // Any host memory serves.
  std::string lacks(Feature feature) const override {
    if (feature == Feature::Reduce) return sums_.absent();
    return feature == Feature::HostRegister ? std::string() : Runtime::lacks(feature);
  }
  Status host_register(int index, void*, std::size_t) noexcept override {
    return exists(index) ? Status() : absent(index);
  }

  Result<Place> allocate(int index, std::size_t bytes) noexcept override {
    auto context = own_context(index);
    if (!context.ok()) return context.status();
    int code = 0;
    ClMem made = call_.buffer_create(context.value(), kReadWrite, bytes, nullptr, &code);
    if (code != 0) return failed(code, "clCreateBuffer", index);
    return Place{made, 0};
  }
  void release(int, Place place) noexcept override { call_.buffer_release(place.handle); }

  Result<Stream> stream_create(int index) noexcept override {
    if (!exists(index)) return absent(index);
    return Stream{index, 1, new ClStream};
  }
  void stream_destroy(Stream stream) noexcept override {
    const std::unique_ptr<ClStream> gone(static_cast<ClStream*>(stream.native));
    for (const auto& [context, queue] : gone->queues) {
      sums_.forget(queue);
      call_.queue_release(queue);
    }
  }

  Status copy_in(Stream stream, Place dst, const void* host, std::size_t bytes) noexcept override {
    ClContext context = usm_context(stream.index, dst.handle);
    if (context != nullptr) return copy_usm(stream, context, address_of(dst), host, bytes);
    auto queue = queue_of_buffer(stream, dst.handle);
    if (!queue.ok()) return queue.status();
    if (bytes == 0) return {};
    const int code =
        call_.write(queue.value(), dst.handle, 0, dst.offset, bytes, host, 0, nullptr, nullptr);
    return flushed(queue.value(), code, "clEnqueueWriteBuffer", stream.index);
  }
  Status copy_out(Stream stream, void* host, Place src, std::size_t bytes) noexcept override {
    ClContext context = usm_context(stream.index, src.handle);
    if (context != nullptr) return copy_usm(stream, context, host, address_of(src), bytes);
    auto queue = queue_of_buffer(stream, src.handle);
    if (!queue.ok()) return queue.status();
    if (bytes == 0) return {};
    const int code =
        call_.read(queue.value(), src.handle, 0, src.offset, bytes, host, 0, nullptr, nullptr);
    return flushed(queue.value(), code, "clEnqueueReadBuffer", stream.index);
  }

  std::string lacks_reduction(int index, Place dst, Place src, Reduction how) noexcept override {
    if (!exists(index)) return absent(index).text();
    if (usm_context(index, dst.handle) != nullptr || usm_context(index, src.handle) != nullptr) {
      return "USM pointers are reduced on the host";
    }
    ClContext contexts[2] = {};
    for (const int k : {0, 1}) {
      const int code = call_.buffer_info(k == 0 ? dst.handle : src.handle, kMemContext,
                                         sizeof contexts[k], &contexts[k], nullptr);
      if (code != 0) return failed(code, "clGetMemObjectInfo", index).text();
    }
    if (contexts[0] != contexts[1]) return "the buffers are of two contexts";
    return sums_.lacks(contexts[0], device(index), dst.offset | src.offset, how);
  }
  Status reduce_in(Stream stream, Place dst, Place src, const void* host, std::uint64_t count,
                   Reduction how) noexcept override {
    auto queue = queue_of_buffer(stream, dst.handle);
    if (!queue.ok()) return queue.status();
    auto& own = *static_cast<ClStream*>(stream.native);
    const auto at =
        std::ranges::find(own.queues, queue.value(), &std::pair<ClContext, ClQueue>::second);
    const Status status =
        sums_.enqueue(queue.value(), at->first, device(stream.index), dst, src, host, count, how);
    return status.ok() ? flushed(queue.value(), 0, "a sum", stream.index) : status;
  }

  Result<Event> event_create(int index) noexcept override {
    if (!exists(index)) return absent(index);
    return Event{index, new ClRecord};
  }
  void event_destroy(Event event) noexcept override {
    const std::unique_ptr<ClRecord> gone(static_cast<ClRecord*>(event.native));
    if (gone->event != nullptr) call_.event_release(gone->event);
  }

  // A caller without a queue has finished what it did: there is nothing to stand behind.
  Status event_record(Event event, Stream stream) noexcept override {
    auto& record = *static_cast<ClRecord*>(event.native);
    ClQueue queue = stream.ours != 0 ? static_cast<ClStream*>(stream.native)->last : stream.native;
    if (record.event != nullptr) call_.event_release(std::exchange(record.event, nullptr));
    if (queue == nullptr) return {};
    if (stream.ours == 0) meet(stream.index, queue);
    const int code = call_.marker(queue, 0, nullptr, &record.event);
    return flushed(queue, code, "clEnqueueMarkerWithWaitList", stream.index);
  }

  Result<bool> event_query(Event event) noexcept override {
    const auto& record = *static_cast<const ClRecord*>(event.native);
    if (record.event == nullptr) return true;
    std::int32_t state = 0;  // 0: complete; below: the error that ended it
    const int code = call_.event_info(record.event, kEventStatus, sizeof state, &state, nullptr);
    if (code != 0) return failed(code, "clGetEventInfo", event.index);
    if (state < 0) return failed(state, "an enqueued copy", event.index);
    return state == 0;
  }

  Status stream_wait(Stream stream, Event event) noexcept override {
    const auto& record = *static_cast<const ClRecord*>(event.native);
    if (record.event == nullptr) return {};
    ClQueue queue = stream.native;
    if (stream.ours != 0) {
      ClContext context = nullptr;
      const int code =
          call_.event_info(record.event, kEventContext, sizeof context, &context, nullptr);
      if (code != 0) return failed(code, "clGetEventInfo", stream.index);
      auto own = queue_of_context(stream, context);
      if (!own.ok()) return own.status();
      queue = own.value();
    }
    if (queue == nullptr) return {};
    const int code = call_.barrier(queue, 1, &record.event, nullptr);
    return flushed(queue, code, "clEnqueueBarrierWithWaitList", stream.index);
  }

 private:
  bool exists(int index) const noexcept {
    return index >= 0 && static_cast<std::size_t>(index) < devices_.size();
  }
  void* device(int index) const noexcept { return devices_[static_cast<std::size_t>(index)]; }
  Status absent(int index) const {
    return {Code::InvalidArgument,
            text("opencl: there is no device ", index, " of ", devices_.size())};
  }

  std::string info(int index, std::uint32_t what) const {
    char words[256] = "";
    if (call_.device_info(device(index), what, sizeof words - 1, words, nullptr) != 0) return "?";
    return words;
  }

  // The context in which allocate() makes buffers.
  Result<ClContext> own_context(int index) noexcept {
    if (!exists(index)) return absent(index);
    const std::lock_guard lock(mutex_);
    ClContext& context = contexts_[index];
    if (context == nullptr) {
      int code = 0;
      void* const only = device(index);
      context = call_.context_create(nullptr, 1, &only, nullptr, nullptr, &code);
      if (code != 0) return failed(code, "clCreateContext", index);
    }
    return context;
  }

  static char* address_of(Place place) { return static_cast<char*>(place.handle) + place.offset; }

  // Remembers, and keeps, the context of a caller's queue: its pointers may come.
  void meet(int index, ClQueue queue) noexcept {
    if (!exists(index) || usm_[static_cast<std::size_t>(index)].copy == nullptr) return;
    ClContext context = nullptr;
    if (call_.queue_info(queue, kQueueContext, sizeof context, &context, nullptr) != 0) return;
    const std::lock_guard lock(mutex_);
    if (std::ranges::find(met_, context) != met_.end()) return;
    if (call_.context_retain(context) == 0) met_.push_back(context);
  }

  // The context whose USM this is; nullptr: it is a cl_mem.
  ClContext usm_context(int index, const void* memory) noexcept {
    const UsmFunctions& usm = usm_[static_cast<std::size_t>(index)];
    if (usm.copy == nullptr) return nullptr;
    const std::lock_guard lock(mutex_);
    for (ClContext each : met_) {
      std::uint32_t type = kUsmUnknown;
      const int code = usm.info(each, memory, kUsmType, sizeof type, &type, nullptr);
      if (code == 0 && type != kUsmUnknown) return each;
    }
    return nullptr;
  }

  Status copy_usm(Stream stream, ClContext context, void* dst, const void* src,
                  std::size_t bytes) noexcept {
    auto queue = queue_of_context(stream, context);
    if (!queue.ok()) return queue.status();
    if (bytes == 0) return {};
    const UsmFunctions& usm = usm_[static_cast<std::size_t>(stream.index)];
    const int code = usm.copy(queue.value(), 0, dst, src, bytes, 0, nullptr, nullptr);
    return flushed(queue.value(), code, "clEnqueueMemcpyINTEL", stream.index);
  }

  void find_usm(void* platform, void* device);

  Result<ClQueue> queue_of_buffer(Stream stream, ClMem buffer) noexcept {
    ClContext context = nullptr;
    const int code = call_.buffer_info(buffer, kMemContext, sizeof context, &context, nullptr);
    if (code != 0) return failed(code, "clGetMemObjectInfo", stream.index);
    return queue_of_context(stream, context);
  }

  // Our queue of that context; work behind another context's queue is finished first.
  Result<ClQueue> queue_of_context(Stream stream, ClContext context) noexcept {
    if (stream.ours == 0) return stream.native;
    auto& own = *static_cast<ClStream*>(stream.native);
    auto at = std::ranges::find(own.queues, context, &std::pair<ClContext, ClQueue>::first);
    if (at == own.queues.end()) {
      int code = 0;
      ClQueue made = call_.queue_create(context, device(stream.index), 0, &code);
      if (code != 0) return failed(code, "clCreateCommandQueue", stream.index);
      at = own.queues.insert(at, {context, made});
    }
    if (own.last != nullptr && own.last != at->second) {
      if (const int code = call_.finish(own.last); code != 0) {
        return failed(code, "clFinish", stream.index);
      }
    }
    return own.last = at->second;
  }

  // Without a flush nothing may ever run.
  Status flushed(ClQueue queue, int code, const char* what, int index) noexcept {
    if (code != 0) return failed(code, what, index);
    code = call_.flush(queue);
    return code == 0 ? Status() : failed(code, "clFlush", index);
  }

  Status failed(int code, const char* what, int index) const {
    return {Code::System,
            text("opencl:", index, ": ", what, " failed with ", code, " (CL/cl.h names it)")};
  }

  const DynamicLibrary library_;
  ClFunctions call_{};  // constant after open(), as devices_ and usm_
  OpenClSums sums_;
  std::vector<void*> devices_;     // of all platforms, in the loader's order
  std::vector<UsmFunctions> usm_;  // by device
  std::mutex mutex_;               // guards the rest
  std::vector<ClContext> met_;     // of callers' queues, where there is USM
  std::map<int, ClContext> contexts_;
};

void OpenCl::find_usm(void* platform, void* device) {
  UsmFunctions& usm = usm_.emplace_back();
  std::size_t bytes = 0;
  if (call_.device_info(device, kDeviceExtensions, 0, nullptr, &bytes) != 0) return;
  std::string words(bytes, '\0');
  if (call_.device_info(device, kDeviceExtensions, bytes, words.data(), nullptr) != 0) return;
  if (words.find("cl_intel_unified_shared_memory") == std::string::npos) return;
  const auto find = [&]<typename Function>(Function*& function, const char* name) {
    function = reinterpret_cast<Function*>(call_.extension(platform, name));
  };
  find(usm.info, "clGetMemAllocInfoINTEL");
  find(usm.copy, "clEnqueueMemcpyINTEL");
  if (usm.info == nullptr) usm.copy = nullptr;
}

Status OpenCl::open() {
  bool all = true;
  const auto find = [&]<typename Function>(Function*& function, const char* name) {
    function = library_.find_as<Function>(name);
    if (function == nullptr) all = false;
  };
  find(call_.platforms, "clGetPlatformIDs");
  find(call_.devices, "clGetDeviceIDs");
  find(call_.device_info, "clGetDeviceInfo");
  find(call_.context_create, "clCreateContext");
  find(call_.queue_create, "clCreateCommandQueue");
  find(call_.queue_release, "clReleaseCommandQueue");
  find(call_.buffer_create, "clCreateBuffer");
  find(call_.buffer_release, "clReleaseMemObject");
  find(call_.buffer_info, "clGetMemObjectInfo");
  find(call_.read, "clEnqueueReadBuffer");
  find(call_.write, "clEnqueueWriteBuffer");
  find(call_.marker, "clEnqueueMarkerWithWaitList");
  find(call_.barrier, "clEnqueueBarrierWithWaitList");
  find(call_.event_info, "clGetEventInfo");
  find(call_.event_release, "clReleaseEvent");
  find(call_.flush, "clFlush");
  find(call_.finish, "clFinish");
  find(call_.queue_info, "clGetCommandQueueInfo");
  find(call_.context_retain, "clRetainContext");
  find(call_.extension, "clGetExtensionFunctionAddressForPlatform");
  sums_.find(library_);
  if (!all) {
    return {Code::Unavailable,
            text("opencl: ", library_.path(), " lacks functions of OpenCL 1.2; it is too old")};
  }
  std::uint32_t found = 0;
  int code = call_.platforms(0, nullptr, &found);
  std::vector<void*> platforms(code == 0 ? found : 0);
  if (!platforms.empty()) code = call_.platforms(found, platforms.data(), nullptr);
  if (code != 0 || platforms.empty()) {
    return {Code::Unavailable, text("opencl: ", library_.path(), " is here, but no platform (",
                                    code, "); install a vendor's OpenCL driver (its .icd)")};
  }
  for (void* platform : platforms) {
    std::uint32_t here = 0;
    if (call_.devices(platform, kAllDevices, 0, nullptr, &here) != 0 || here == 0) continue;
    const std::size_t before = devices_.size();
    devices_.resize(before + here);
    if (call_.devices(platform, kAllDevices, here, devices_.data() + before, nullptr) != 0) {
      devices_.resize(before);
    }
    for (std::size_t k = before; k < devices_.size(); ++k) find_usm(platform, devices_[k]);
  }
  if (!devices_.empty()) return {};
  return {Code::Unavailable, text("opencl: ", platforms.size(), " platforms, but no device")};
}

}  // namespace

static Result<std::unique_ptr<Runtime>> probe() {
  auto library = find_library("opencl", {"libOpenCL.so.1", "libOpenCL.so"});
  if (!library.ok()) return library.status();
  auto runtime = std::make_unique<OpenCl>(std::move(library).value());
  if (Status status = runtime->open(); !status.ok()) return status;
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Builtin opencl_device() {
  return {Kind::OpenCl, "opencl", "OpenCL buffers (cl_mem, USM) of any platform", probe};
}

}  // namespace hccomm::device
