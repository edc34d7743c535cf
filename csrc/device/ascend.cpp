// SPDX-License-Identifier: Apache-2.0
//
// Huawei Ascend through ACL (libascendcl). Unlike CUDA: a context per thread that must be set, six
// arguments of a copy, addresses on 64 bytes and pinned memory for asynchronous copies, and events
// that report "not ready" before they were ever recorded.
#include <array>
#include <atomic>
#include <mutex>

#include "device/addressed.hpp"
#include "device/library.hpp"
#include "device/registry.hpp"

namespace hccomm::device {

namespace {

// ACL's functions, declared by us.
struct AclFunctions {
  int (*init)(const char* config);
  int (*count)(std::uint32_t*);
  int (*set_device)(std::int32_t);
  int (*get_device)(std::int32_t*);
  int (*get_context)(void**);
  int (*set_context)(void*);
  int (*allocate)(void**, std::size_t, int policy);
  int (*release)(void*);
  int (*host_allocate)(void**, std::size_t);
  int (*host_free)(void*);
  int (*copy)(void* dst, std::size_t room, const void* src, std::size_t bytes, int kind,
              void* stream);
  int (*copy_now)(void* dst, std::size_t room, const void* src, std::size_t bytes, int kind);
  int (*stream_create)(void**);
  int (*stream_destroy)(void*);
  int (*stream_sync)(void*);
  int (*stream_wait)(void* stream, void* event);
  int (*event_create_ex)(void**, std::uint32_t flags);
  int (*event_create)(void**, std::uint32_t flags);
  int (*event_record)(void* event, void* stream);
  int (*event_status)(void* event, int* recorded);
  int (*event_destroy)(void*);
  const char* (*recent_error)();
  const char* (*soc_name)();
};

static constexpr int kToDevice = 1, kToHost = 2;
static constexpr int kHugeFirst = 0;
static constexpr int kAlreadyInitialised = 100002;
static constexpr std::uint32_t kSync = 1;
static constexpr std::size_t kAlignment = 64;
static constexpr int kMaxDevices = 64;

// What an Event's native points to.
struct AclEvent {
  void* native;
  bool recorded;
};

class Ascend final : public Addressed<Ascend> {
 public:
  explicit Ascend(DynamicLibrary library) : library_(std::move(library)) {}

  Status open();

  std::string library() const override { return library_.path(); }
  std::size_t alignment() const noexcept override { return kAlignment; }

  Result<int> count() noexcept override {
    std::uint32_t found = 0;
    if (const int code = call_.count(&found); code != 0) {
      return failed(code, "aclrtGetDeviceCount", 0);
    }
    return static_cast<int>(found);
  }

  Result<int> current() noexcept override {
    std::int32_t index = 0;
    if (const int code = call_.get_device(&index); code != 0) {
      return Status(Code::Unavailable,
                    text("ascend: this thread has no device (", code, "); call aclrtSetDevice"));
    }
    return static_cast<int>(index);
  }

  std::string describe(int index) noexcept override {
    const char* soc = call_.soc_name != nullptr ? call_.soc_name() : nullptr;
    return text(soc != nullptr ? soc : "Ascend", ", device ", index);
  }

  Status health(int index) noexcept override {
    const Guard guard(*this, index);
    if (!guard.status.ok()) return guard.status;
    return told(lost_[static_cast<std::size_t>(index)], "an earlier call", index);
  }

  Result<Event> event_create(int index) noexcept override {
    const Guard guard(*this, index);
    if (!guard.status.ok()) return guard.status;
    auto made = std::make_unique<AclEvent>();
    if (Status status = create(*made, index); !status.ok()) return status;
    return Event{index, made.release()};
  }
  void event_destroy(Event event) noexcept override {
    const Guard guard(*this, event.index);
    const std::unique_ptr<AclEvent> gone(static_cast<AclEvent*>(event.native));
    call_.event_destroy(gone->native);
  }

  Status event_record(Event event, Stream stream) noexcept override {
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    auto& own = *static_cast<AclEvent*>(event.native);
    // Events of older releases stay signalled until they are reset; a new one is the safe reset (a
    // destroyed one lives on until its work is done).
    if (own.recorded && call_.event_create_ex == nullptr) {
      call_.event_destroy(own.native);
      own.recorded = false;
      if (Status status = create(own, event.index); !status.ok()) return status;
    }
    Status status =
        told(call_.event_record(own.native, stream.native), "aclrtRecordEvent", stream.index);
    own.recorded = own.recorded || status.ok();
    return status;
  }

  Result<bool> event_query(Event event) noexcept override {
    const auto& own = *static_cast<const AclEvent*>(event.native);
    if (!own.recorded) return true;
    const Guard guard(*this, event.index);
    if (!guard.status.ok()) return guard.status;
    int recorded = 0;
    if (const int code = call_.event_status(own.native, &recorded); code != 0) {
      return failed(code, "aclrtQueryEventStatus", event.index);
    }
    return recorded == 1;
  }

  Status stream_wait(Stream stream, Event event) noexcept override {
    const auto& own = *static_cast<const AclEvent*>(event.native);
    if (!own.recorded) return {};
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.stream_wait(stream.native, own.native), "aclrtStreamWaitEvent", stream.index);
  }

 private:
  friend Addressed<Ascend>;
  static constexpr const char *kHostAllocate = "aclrtMallocHost", *kAllocate = "aclrtMalloc",
                              *kStreamCreate = "aclrtCreateStream";
  static constexpr std::size_t kPage = 4096;

  // Sets the device's context for one call and puts the thread's own back.
  struct Guard {
    Guard(Ascend& runtime, int index) noexcept : self(runtime) {
      if (self.call_.get_context(&former) != 0) former = nullptr;
      void* context = nullptr;
      status = self.context_of(index, &context);
      if (!status.ok()) return;
      if (context == former) {
        former = nullptr;
      } else if (const int code = self.call_.set_context(context); code != 0) {
        status = self.failed(code, "aclrtSetCurrentContext", index);
      }
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      if (former != nullptr) self.call_.set_context(former);
    }
    Ascend& self;
    void* former = nullptr;
    Status status;
  };

  // The device's default context, which all threads share; made at its first use.
  Status context_of(int index, void** context) noexcept {
    const std::lock_guard lock(mutex_);
    if (index < 0 || index >= kMaxDevices) {
      return {Code::InvalidArgument, text("ascend: there is no device ", index)};
    }
    void*& own = contexts_[static_cast<std::size_t>(index)];
    if (own == nullptr) {
      int code = call_.set_device(index);
      if (code == 0) code = call_.get_context(&own);
      if (code != 0) return failed(code, "aclrtSetDevice", index);
    }
    *context = own;
    return {};
  }

  Status create(AclEvent& event, int index) noexcept {
    const int code = call_.event_create_ex != nullptr ? call_.event_create_ex(&event.native, kSync)
                                                      : call_.event_create(&event.native, kSync);
    return told(code, "aclrtCreateEvent", index);
  }

  // ACL promises less than a page: the block begins at one, and its true address before that.
  int new_host(void** address, std::size_t bytes) const noexcept {
    void* raw = nullptr;
    const int code = call_.host_allocate(&raw, bytes + 2 * kPage);
    if (code != 0) return code;
    const auto page = (reinterpret_cast<std::uintptr_t>(raw) + 2 * kPage - 1) / kPage * kPage;
    auto* const block = reinterpret_cast<void**>(page);
    block[-1] = raw;
    *address = block;
    return 0;
  }
  void drop_host(void* address) const noexcept {
    if (address != nullptr) call_.host_free(static_cast<void**>(address)[-1]);
  }
  int new_memory(void** address, std::size_t bytes) const noexcept {
    return call_.allocate(address, bytes, kHugeFirst);
  }
  void drop_memory(void* address) const noexcept { call_.release(address); }
  int new_stream(void** stream) const noexcept { return call_.stream_create(stream); }
  void drop_stream(void* stream) const noexcept { call_.stream_destroy(stream); }

  Status enqueue_copy(Stream stream, void* dst, const void* src, std::size_t bytes,
                      bool to_device) noexcept {
    const int kind = to_device ? kToDevice : kToHost;
    const auto both = reinterpret_cast<std::uintptr_t>(dst) | reinterpret_cast<std::uintptr_t>(src);
    if (both % kAlignment == 0) {
      return told(call_.copy(dst, bytes, src, bytes, kind, stream.native), "aclrtMemcpyAsync",
                  stream.index);
    }
    // Off the 64 bytes an asynchronous copy fails in ways it does not tell: copy now, behind what
    // is in the stream.
    Status status = told(call_.stream_sync(stream.native), "aclrtSynchronizeStream", stream.index);
    if (!status.ok()) return status;
    return told(call_.copy_now(dst, bytes, src, bytes, kind), "aclrtMemcpy", stream.index);
  }

  Status failed(int code, const char* what, int index) noexcept {
    const char* words = call_.recent_error != nullptr ? call_.recent_error() : nullptr;
    const bool stays = code >= 507000 && code < 508000;  // the device's own errors
    if (stays && index >= 0 && index < kMaxDevices) lost_[static_cast<std::size_t>(index)] = code;
    return {Code::System,
            text("ascend:", index, ": ", what, " failed: ", words != nullptr ? words : "no message",
                 " (", code, ")", stays ? "; the device may be lost: restart the rank" : "")};
  }

  const DynamicLibrary library_;
  AclFunctions call_{};  // constant after open()
  std::mutex mutex_;     // guards contexts_
  std::array<void*, kMaxDevices> contexts_{};
  std::array<std::atomic<int>, kMaxDevices> lost_{};
};

Status Ascend::open() {
  bool all = true;
  const auto find = [&]<typename Function>(Function*& function, const char* name,
                                           bool required = true) {
    function = library_.find_as<Function>(name);
    if (required && function == nullptr) all = false;
  };
  find(call_.init, "aclInit");
  find(call_.count, "aclrtGetDeviceCount");
  find(call_.set_device, "aclrtSetDevice");
  find(call_.get_device, "aclrtGetDevice");
  find(call_.get_context, "aclrtGetCurrentContext");
  find(call_.set_context, "aclrtSetCurrentContext");
  find(call_.allocate, "aclrtMalloc");
  find(call_.release, "aclrtFree");
  find(call_.host_allocate, "aclrtMallocHost");
  find(call_.host_free, "aclrtFreeHost");
  find(call_.copy, "aclrtMemcpyAsync");
  find(call_.copy_now, "aclrtMemcpy");
  find(call_.stream_create, "aclrtCreateStream");
  find(call_.stream_destroy, "aclrtDestroyStream");
  find(call_.stream_sync, "aclrtSynchronizeStream");
  find(call_.stream_wait, "aclrtStreamWaitEvent");
  find(call_.event_create_ex, "aclrtCreateEventExWithFlag", false);
  find(call_.event_create, "aclrtCreateEventWithFlag");
  find(call_.event_record, "aclrtRecordEvent");
  find(call_.event_status, "aclrtQueryEventStatus");
  find(call_.event_destroy, "aclrtDestroyEvent");
  find(call_.recent_error, "aclGetRecentErrMsg", false);
  find(call_.soc_name, "aclrtGetSocName", false);
  if (!all) {
    return {Code::Unavailable, text("ascend: ", library_.path(),
                                    " lacks functions of CANN 6 and "
                                    "later; it is too old, or no libascendcl")};
  }
  int code = call_.init(nullptr);
  if (code == kAlreadyInitialised) code = 0;
  std::uint32_t devices = 0;
  if (code == 0) code = call_.count(&devices);
  if (code == 0 && devices > 0) return {};
  return {Code::Unavailable, text("ascend: ", library_.path(), " is here, but no device: ",
                                  code != 0 ? failed(code, "aclInit", 0).text() : "it counts 0",
                                  "; it needs an Ascend NPU and its driver")};
}

}  // namespace

static Result<std::unique_ptr<Runtime>> probe() {
  auto library =
      find_library("ascend", {"libascendcl.so", "libacl_rt.so",
                              "/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so"});
  if (!library.ok()) return library.status();
  auto runtime = std::make_unique<Ascend>(std::move(library).value());
  if (Status status = runtime->open(); !status.ok()) return status;
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Builtin ascend_device() { return {Kind::Ascend, "ascend", "Huawei Ascend, ACL of CANN", probe}; }

}  // namespace hccomm::device
