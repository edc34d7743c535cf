// SPDX-License-Identifier: Apache-2.0
//
// Cambricon MLU through CNRT. Unlike CUDA: queues and notifiers by name, the queue before the
// direction, directions numbered otherwise, two codes that say "not yet".
#include "device/addressed.hpp"
#include "device/library.hpp"
#include "device/registry.hpp"

namespace hccomm::device {

namespace {

// CNRT's functions, declared by us.
struct CnrtFunctions {
  int (*count)(unsigned*);
  int (*set_device)(int);
  int (*get_device)(int*);
  int (*allocate)(void**, std::size_t);
  int (*release)(void*);
  int (*host_allocate)(void**, std::size_t);
  int (*host_free)(void*);
  int (*copy)(void* dst, const void* src, std::size_t bytes, void* queue, int direction);
  int (*queue_create)(void**);
  int (*queue_destroy)(void*);
  int (*queue_wait)(void* notifier, void* queue, unsigned flags);
  int (*notifier_create)(void**);
  int (*notifier_place)(void* notifier, void* queue);
  int (*notifier_query)(void*);
  int (*notifier_destroy)(void*);
  const char* (*error_text)(int);
  int (*pci_id)(char*, int, int);
  int (*queue_query)(void*);
};

static constexpr int kToDevice = 0, kToHost = 2;
static constexpr int kNotReady = 1, kBusy = 632014;

// What an Event's native points to: CNRT does not say what a notifier never placed answers.
struct Notifier {
  void* native;
  bool placed;
};

class Cnrt final : public Addressed<Cnrt> {
 public:
  explicit Cnrt(DynamicLibrary library) : library_(std::move(library)) {}

  Status open();

  std::string library() const override { return library_.path(); }

  Result<int> count() noexcept override {
    unsigned found = 0;
    if (const int code = call_.count(&found); code != 0) {
      return failed(code, "cnrtGetDeviceCount", 0);
    }
    return static_cast<int>(found);
  }
  Result<int> current() noexcept override {
    int index = 0;
    if (const int code = call_.get_device(&index); code != 0) {
      return failed(code, "cnrtGetDevice", 0);
    }
    return index;
  }
  std::string describe(int index) noexcept override {
    char pci[64] = "";
    if (call_.pci_id == nullptr || call_.pci_id(pci, sizeof pci, index) != 0) {
      return text("Cambricon MLU ", index);
    }
    return text("Cambricon MLU ", index, ", ", pci);
  }

  Status health(int index) noexcept override {
    const Guard guard(*this, index);
    if (!guard.status.ok() || call_.queue_query == nullptr) return guard.status;
    const int code = call_.queue_query(nullptr);
    return code == kNotReady || code == kBusy ? Status() : told(code, "cnrtQueueQuery", index);
  }

  Result<Event> event_create(int index) noexcept override {
    const Guard guard(*this, index);
    if (!guard.status.ok()) return guard.status;
    auto made = std::make_unique<Notifier>();
    if (const int code = call_.notifier_create(&made->native); code != 0) {
      return failed(code, "cnrtNotifierCreate", index);
    }
    return Event{index, made.release()};
  }
  void event_destroy(Event event) noexcept override {
    const Guard guard(*this, event.index);
    const std::unique_ptr<Notifier> gone(static_cast<Notifier*>(event.native));
    call_.notifier_destroy(gone->native);
  }
  Status event_record(Event event, Stream stream) noexcept override {
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    auto& own = *static_cast<Notifier*>(event.native);
    Status status =
        told(call_.notifier_place(own.native, stream.native), "cnrtPlaceNotifier", stream.index);
    own.placed = own.placed || status.ok();
    return status;
  }
  Result<bool> event_query(Event event) noexcept override {
    const auto& own = *static_cast<const Notifier*>(event.native);
    if (!own.placed) return true;
    const Guard guard(*this, event.index);
    if (!guard.status.ok()) return guard.status;
    const int code = call_.notifier_query(own.native);
    if (code == 0) return true;
    if (code == kNotReady || code == kBusy) return false;
    return failed(code, "cnrtQueryNotifier", event.index);
  }
  Status stream_wait(Stream stream, Event event) noexcept override {
    const auto& own = *static_cast<const Notifier*>(event.native);
    if (!own.placed) return {};
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.queue_wait(own.native, stream.native, 0), "cnrtQueueWaitNotifier",
                stream.index);
  }

 private:
  friend Addressed<Cnrt>;
  static constexpr const char *kHostAllocate = "cnrtHostMalloc", *kAllocate = "cnrtMalloc",
                              *kStreamCreate = "cnrtQueueCreate";

  // Makes the device current for one call and puts the former back.
  struct Guard {
    Guard(Cnrt& runtime, int index) noexcept : self(runtime) {
      int now = -1;
      if (self.call_.get_device(&now) == 0 && now == index) return;
      if (const int code = self.call_.set_device(index); code != 0) {
        status = self.failed(code, "cnrtSetDevice", index);
      } else {
        former = now;
      }
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      if (former >= 0) self.call_.set_device(former);
    }
    Cnrt& self;
    int former = -1;
    Status status;
  };

  int new_host(void** address, std::size_t bytes) const noexcept {
    return call_.host_allocate(address, bytes);
  }
  void drop_host(void* address) const noexcept { call_.host_free(address); }
  int new_memory(void** address, std::size_t bytes) const noexcept {
    return call_.allocate(address, bytes);
  }
  void drop_memory(void* address) const noexcept { call_.release(address); }
  int new_stream(void** queue) const noexcept { return call_.queue_create(queue); }
  void drop_stream(void* queue) const noexcept { call_.queue_destroy(queue); }
  Status enqueue_copy(Stream stream, void* dst, const void* src, std::size_t bytes,
                      bool to_device) noexcept {
    const int direction = to_device ? kToDevice : kToHost;
    return told(call_.copy(dst, src, bytes, stream.native, direction), "cnrtMemcpyAsync",
                stream.index);
  }
  Status failed(int code, const char* what, int index) noexcept {
    const char* words = call_.error_text != nullptr ? call_.error_text(code) : nullptr;
    return {Code::System, text("cnrt:", index, ": ", what, " failed: ",
                               words != nullptr ? words : "unknown error", " (", code, ")")};
  }

  const DynamicLibrary library_;
  CnrtFunctions call_{};  // constant after open()
};

Status Cnrt::open() {
  bool all = true;
  const auto find = [&]<typename Function>(Function*& function,
                                           std::initializer_list<const char*> names,
                                           bool required = true) {
    for (const char* name : names) {
      if (function == nullptr) function = library_.find_as<Function>(name);
    }
    if (required && function == nullptr) all = false;
  };
  find(call_.count, {"cnrtGetDeviceCount"});
  find(call_.set_device, {"cnrtSetDevice"});
  find(call_.get_device, {"cnrtGetDevice"});
  find(call_.allocate, {"cnrtMalloc"});
  find(call_.release, {"cnrtFree"});
  find(call_.host_allocate, {"cnrtHostMalloc"});
  find(call_.host_free, {"cnrtFreeHost"});
  find(call_.copy, {"cnrtMemcpyAsync_V3", "cnrtMemcpyAsync_V2", "cnrtMemcpyAsync"});
  find(call_.queue_create, {"cnrtQueueCreate"});
  find(call_.queue_destroy, {"cnrtQueueDestroy"});
  find(call_.queue_wait, {"cnrtQueueWaitNotifier"});
  find(call_.notifier_create, {"cnrtNotifierCreate"});
  find(call_.notifier_place, {"cnrtPlaceNotifier"});
  find(call_.notifier_query, {"cnrtQueryNotifier"});
  find(call_.notifier_destroy, {"cnrtNotifierDestroy"});
  find(call_.error_text, {"cnrtGetErrorStr"}, false);
  find(call_.pci_id, {"cnrtDeviceGetPCIBusId"}, false);
  find(call_.queue_query, {"cnrtQueueQuery"}, false);
  if (!all) {
    return {Code::Unavailable, text("cnrt: ", library_.path(),
                                    " lacks functions of CNRT 5 and "
                                    "later; it is too old, or no libcnrt")};
  }
  unsigned devices = 0;
  const int code = call_.count(&devices);
  if (code == 0 && devices > 0) return {};
  return {Code::Unavailable,
          text("cnrt: ", library_.path(), " is here, but no device: ",
               code != 0 ? failed(code, "cnrtGetDeviceCount", 0).text() : "it counts 0",
               "; it needs a Cambricon MLU and its driver")};
}

}  // namespace

static Result<std::unique_ptr<Runtime>> probe() {
  auto library = find_library("cnrt", {"libcnrt.so", "/usr/local/neuware/lib64/libcnrt.so"});
  if (!library.ok()) return library.status();
  auto runtime = std::make_unique<Cnrt>(std::move(library).value());
  if (Status status = runtime->open(); !status.ok()) return status;
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Builtin cnrt_device() { return {Kind::Cnrt, "cnrt", "Cambricon MLU, CNRT", probe}; }

}  // namespace hccomm::device
