// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_shaped.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

#include "base/dynlib.hpp"
#include "device/addressed.hpp"
#include "device/library.hpp"

namespace hccomm::device {

namespace {

// cudaIpcMemHandle_t, which goes by value.
struct IpcHandle {
  char bytes[64];
};

// CUDA's functions, by what they do; declared by us, so that no header is needed. A function that
// is named otherwise, or not at all, by some vendors is tried under each of its names.
struct Functions {
  int (*count)(int*);
  int (*set_device)(int);
  int (*get_device)(int*);
  int (*allocate)(void**, std::size_t);
  int (*release)(void*);
  int (*host_allocate)(void**, std::size_t, unsigned flags);  // some take no flags: harmless
  int (*host_free)(void*);
  int (*copy)(void*, const void*, std::size_t, int kind, void* stream);
  int (*stream_create_flags)(void**, unsigned flags);
  int (*stream_create)(void**);
  int (*stream_destroy)(void*);
  int (*stream_wait)(void* stream, void* event, unsigned flags);
  int (*event_create_flags)(void**, unsigned flags);
  int (*event_create)(void**);
  int (*event_record)(void* event, void* stream);
  int (*event_query)(void*);
  int (*event_destroy)(void*);
  // Optional.
  int (*host_register)(void*, std::size_t, unsigned flags);
  int (*host_unregister)(void*);
  int (*stream_query)(void*);
  int (*last_error)();
  const char* (*error_text)(int);
  int (*pci_id)(char*, int, int);
  int (*name)(char*, int, int);
  int (*context_state)(int device, unsigned* flags, int* active);
  int (*export_handle)(void* handle, std::uintptr_t address, std::size_t, int type,
                       unsigned long long flags);
  int (*runtime_version)(int*);
  int (*ipc_get)(IpcHandle*, void*);
  int (*ipc_open)(void**, IpcHandle, unsigned flags);
  int (*ipc_close)(void*);
  int (*address_range)(void** base, std::size_t* bytes, void* address);  // the driver's
  int (*attribute)(void* value, int which, void* address);               // likewise
};

static constexpr int kToDevice = 1, kToHost = 2, kOnDevice = 3;
static constexpr unsigned kNonBlocking = 1, kNoTiming = 2;
static constexpr int kNotReady = 600;
static constexpr int kDmabuf = 1;
static constexpr unsigned kEnablePeerAccess = 1;
static constexpr int kBufferId = 7;  // CU_POINTER_ATTRIBUTE_BUFFER_ID
static constexpr int kMaxDevices = 64;

class CudaShaped final : public Addressed<CudaShaped> {
 public:
  CudaShaped(const CudaShape& shape, DynamicLibrary library)
      : shape_(shape), library_(std::move(library)) {}

  Status open();

  std::string library() const override { return library_.path(); }

  Result<int> count() noexcept override {
    int found = 0;
    if (const int code = call_.count(&found); code != 0) return failed(code, "GetDeviceCount", 0);
    return found;
  }

  Result<int> current() noexcept override {
    int index = 0;
    if (const int code = call_.get_device(&index); code != 0) return failed(code, "GetDevice", 0);
    return index;
  }

  std::string describe(int index) noexcept override {
    char name[128] = "", pci[64] = "";
    if (call_.name != nullptr && call_.name(name, sizeof name, index) != 0) name[0] = '\0';
    if (call_.pci_id != nullptr && call_.pci_id(pci, sizeof pci, index) != 0) pci[0] = '\0';
    std::string answer = name[0] != '\0' ? name : text(shape_.kind, ":", index);
    if (pci[0] != '\0') answer += std::string(", ") + pci;
    return answer;
  }

  std::string lacks(Feature feature) const override;
  Status health(int index) noexcept override;

  Status host_register(int index, void* address, std::size_t bytes) noexcept override {
    if (call_.host_register == nullptr) return Runtime::host_register(index, address, bytes);
    const Guard guard(*this, index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.host_register(address, bytes, 0), "HostRegister", index);
  }
  void host_unregister(int index, void* address) noexcept override {
    const Guard guard(*this, index);
    if (call_.host_unregister != nullptr) call_.host_unregister(address);
  }

  Result<Event> event_create(int index) noexcept override {
    auto native = made(index, "EventCreate", [&](void** event) {
      return call_.event_create_flags != nullptr ? call_.event_create_flags(event, kNoTiming)
                                                 : call_.event_create(event);
    });
    if (!native.ok()) return native.status();
    return Event{index, native.value()};
  }
  void event_destroy(Event event) noexcept override {
    const Guard guard(*this, event.index);
    call_.event_destroy(event.native);
  }
  Status event_record(Event event, Stream stream) noexcept override {
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.event_record(event.native, stream.native), "EventRecord", stream.index);
  }
  Result<bool> event_query(Event event) noexcept override {
    const int code = call_.event_query(event.native);
    if (code == 0) return true;
    if (code == kNotReady) return false;
    const Guard guard(*this, event.index);  // failed() asks what the device still says
    return failed(code, "EventQuery", event.index);
  }
  Status stream_wait(Stream stream, Event event) noexcept override {
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.stream_wait(stream.native, event.native, 0), "StreamWaitEvent", stream.index);
  }

  std::string ipc_version() noexcept override {
    int version = 0;
    if (call_.runtime_version == nullptr || call_.runtime_version(&version) != 0) return "";
    return std::to_string(version);
  }
  std::string bus_address(int index) noexcept override {
    char pci[64] = "";
    return call_.pci_id == nullptr || call_.pci_id(pci, sizeof pci, index) != 0 ? "" : pci;
  }
  Result<Export> ipc_export(int index, Place place) noexcept override;
  Result<Place> ipc_open(int index, const std::string& handle) noexcept override;
  std::uint64_t ipc_bytes(int index, Place opened) noexcept override;
  void ipc_close(int index, Place opened) noexcept override {
    const Guard guard(*this, index);
    if (call_.ipc_close != nullptr) call_.ipc_close(opened.handle);
  }
  Status copy_across(Stream stream, Place dst, Place opened, std::size_t bytes) noexcept override {
    const Guard guard(*this, stream.index);
    if (!guard.status.ok()) return guard.status;
    return told(call_.copy(address_of(dst), address_of(opened), bytes, kOnDevice, stream.native),
                "MemcpyAsync", stream.index);
  }

  int fabric_interface() const noexcept override { return shape_.fabric_interface; }
  Result<int> dmabuf(int index, Place place, std::size_t bytes) noexcept override;

 private:
  friend Addressed<CudaShaped>;
  static constexpr const char *kHostAllocate = "HostAlloc", *kAllocate = "Malloc",
                              *kStreamCreate = "StreamCreate";

  // Makes a device current for one call and puts back the former; not where the former has no
  // context yet, for that would make one, which costs it hundreds of megabytes.
  struct Guard {
    Guard(CudaShaped& runtime, int index) noexcept : self(runtime) {
      int now = -1;
      int code = self.call_.get_device(&now);
      if (code == 0 && now == index) return;
      code = self.call_.set_device(index);
      if (code != 0) {
        status = self.failed(code, "SetDevice", index);
      } else if (now >= 0 && self.has_context(now)) {
        former = now;
      }
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() {
      if (former >= 0) self.call_.set_device(former);
    }
    CudaShaped& self;
    int former = -1;
    Status status;
  };

  bool has_context(int index) noexcept {
    unsigned flags = 0;
    int active = 1;
    return call_.context_state == nullptr || call_.context_state(index, &flags, &active) != 0 ||
           active != 0;
  }

  int new_host(void** address, std::size_t bytes) const noexcept {
    return call_.host_allocate(address, bytes, 0);
  }
  void drop_host(void* address) const noexcept { call_.host_free(address); }
  int new_memory(void** address, std::size_t bytes) const noexcept {
    return call_.allocate(address, bytes);
  }
  void drop_memory(void* address) const noexcept { call_.release(address); }
  int new_stream(void** stream) const noexcept {
    return call_.stream_create_flags != nullptr ? call_.stream_create_flags(stream, kNonBlocking)
                                                : call_.stream_create(stream);
  }
  void drop_stream(void* stream) const noexcept { call_.stream_destroy(stream); }
  Status enqueue_copy(Stream stream, void* dst, const void* src, std::size_t bytes,
                      bool to_device) noexcept {
    return told(call_.copy(dst, src, bytes, to_device ? kToDevice : kToHost, stream.native),
                "MemcpyAsync", stream.index);
  }

  Status failed(int code, const char* what, int index) noexcept;
  std::string words(int code) const {
    const char* said = call_.error_text != nullptr ? call_.error_text(code) : nullptr;
    return text(said != nullptr ? said : "unknown error", " (", code, ")");
  }

  // The function under the first of these names (without the prefix) that the runtime has.
  template <typename Function>
  void find(Function*& function, std::initializer_list<const char*> names) const {
    for (const char* each : names) {
      if (function != nullptr) return;
      function = library_.find_as<Function>(text(shape_.prefix, each).c_str());
    }
  }
  template <typename Function>
  void find_in_driver(Function*& function, const std::string& name) const {
    function = library_.find_as<Function>(name.c_str());
    if (function != nullptr || shape_.driver_libraries.empty()) return;
    auto driver = DynamicLibrary::open(shape_.driver_libraries);
    if (driver.ok()) function = driver.value().find_as<Function>(name.c_str());
  }
  const char* missing() const;
  void find_ipc();
  std::string lacks_ipc() const;

  const CudaShape shape_;
  const DynamicLibrary library_;
  Functions call_{};                                  // constant after open()
  std::array<std::atomic<int>, kMaxDevices> lost_{};  // the error a device does not recover from
};

Status CudaShaped::open() {
  find(call_.count, {"GetDeviceCount"});
  find(call_.set_device, {"SetDevice"});
  find(call_.get_device, {"GetDevice"});
  find(call_.allocate, {"Malloc"});
  find(call_.release, {"Free"});
  find(call_.host_allocate, {"HostAlloc", "HostMalloc", "MallocHost"});
  find(call_.host_free, {"FreeHost", "HostFree"});
  find(call_.copy, {"MemcpyAsync"});
  find(call_.stream_create_flags, {"StreamCreateWithFlags"});
  find(call_.stream_create, {"StreamCreate"});
  find(call_.stream_destroy, {"StreamDestroy"});
  find(call_.stream_wait, {"StreamWaitEvent"});
  find(call_.event_create_flags, {"EventCreateWithFlags"});
  find(call_.event_create, {"EventCreate"});
  find(call_.event_record, {"EventRecord"});
  find(call_.event_query, {"EventQuery"});
  find(call_.event_destroy, {"EventDestroy"});
  find(call_.host_register, {"HostRegister"});
  find(call_.host_unregister, {"HostUnregister"});
  find(call_.stream_query, {"StreamQuery"});
  find(call_.last_error, {"GetLastError"});
  find(call_.error_text, {"GetErrorString"});
  find(call_.pci_id, {"DeviceGetPCIBusId"});
  if (const char* what = missing()) {
    return {Code::Unavailable, text(shape_.kind, ": ", library_.path(), " has no ", shape_.prefix,
                                    what, "; it is too old, or another vendor's")};
  }
  if (call_.host_unregister == nullptr) call_.host_register = nullptr;
  int devices = 0;
  if (const int code = call_.count(&devices); code != 0 || devices < 1) {
    return {Code::Unavailable,
            text(shape_.kind, ": ", library_.path(), " is here, but no device: ",
                 code != 0 ? words(code) : "it counts 0", "; it needs ", shape_.missing)};
  }
  if (shape_.driver != nullptr) {
    find_in_driver(call_.name, text(shape_.driver, "DeviceGetName"));
    find_in_driver(call_.context_state, text(shape_.driver, "DevicePrimaryCtxGetState"));
  }
  if (shape_.handles != nullptr) find_in_driver(call_.export_handle, shape_.handles);
  find_ipc();
  return {};
}

// A handle is of a whole allocation, and only the driver knows where that begins. Of CUDA's own two
// functions of that name the one without "_v2" has addresses of 32 bits.
void CudaShaped::find_ipc() {
  find(call_.runtime_version, {"RuntimeGetVersion"});
  find(call_.ipc_get, {"IpcGetMemHandle"});
  find(call_.ipc_open, {"IpcOpenMemHandle"});
  find(call_.ipc_close, {"IpcCloseMemHandle"});
  if (shape_.driver == nullptr) return;
  find_in_driver(call_.address_range, text(shape_.driver, "MemGetAddressRange_v2"));
  if (call_.address_range == nullptr && std::strcmp(shape_.driver, "cu") != 0) {
    find_in_driver(call_.address_range, text(shape_.driver, "MemGetAddressRange"));
  }
  find_in_driver(call_.attribute, text(shape_.driver, "PointerGetAttribute"));
}

std::string CudaShaped::lacks_ipc() const {
  if (call_.ipc_get == nullptr || call_.ipc_open == nullptr || call_.ipc_close == nullptr) {
    return text(library_.path(), " has no ", shape_.prefix, "IpcGetMemHandle");
  }
  if (call_.address_range == nullptr) {
    return text("the driver has no ", shape_.driver, "MemGetAddressRange");
  }
  if (call_.runtime_version == nullptr) {
    return text(library_.path(), " has no ", shape_.prefix, "RuntimeGetVersion");
  }
  if (call_.pci_id == nullptr) {
    return text(library_.path(), " has no ", shape_.prefix, "DeviceGetPCIBusId");
  }
  return "";
}

const char* CudaShaped::missing() const {
  if (call_.count == nullptr) return "GetDeviceCount";
  if (call_.set_device == nullptr || call_.get_device == nullptr) return "SetDevice";
  if (call_.allocate == nullptr || call_.release == nullptr) return "Malloc";
  if (call_.host_allocate == nullptr || call_.host_free == nullptr) return "HostAlloc";
  if (call_.copy == nullptr) return "MemcpyAsync";
  if (call_.stream_create_flags == nullptr && call_.stream_create == nullptr) {
    return "StreamCreate";
  }
  if (call_.stream_destroy == nullptr || call_.stream_wait == nullptr) return "StreamWaitEvent";
  if (call_.event_create_flags == nullptr && call_.event_create == nullptr) return "EventCreate";
  if (call_.event_record == nullptr || call_.event_destroy == nullptr) return "EventRecord";
  if (call_.event_query == nullptr) return "EventQuery";
  return nullptr;
}

// An error that is still the last one after it was asked for twice does not go away: the device is
// lost to this process.
Status CudaShaped::failed(int code, const char* what, int index) noexcept {
  bool stays = false;
  if (call_.last_error != nullptr) {
    call_.last_error();
    stays = call_.last_error() == code;
  }
  if (stays && index >= 0 && index < kMaxDevices) lost_[static_cast<std::size_t>(index)] = code;
  return {Code::System,
          text(shape_.kind, ":", index, ": ", shape_.prefix, what, " failed: ", words(code),
               stays ? "; the device is lost to this process: restart the rank" : "")};
}

Status CudaShaped::health(int index) noexcept {
  if (index < 0 || index >= kMaxDevices) {
    return {Code::InvalidArgument, text(shape_.kind, ": there is no device ", index)};
  }
  const Guard guard(*this, index);
  if (!guard.status.ok()) return guard.status;
  if (const int code = lost_[static_cast<std::size_t>(index)]; code != 0) {
    return failed(code, "GetLastError", index);
  }
  if (call_.stream_query == nullptr) return {};
  const int code = call_.stream_query(nullptr);
  return code == kNotReady ? Status() : told(code, "StreamQuery", index);
}

std::string CudaShaped::lacks(Feature feature) const {
  if (feature == Feature::HostRegister && call_.host_register == nullptr) {
    return text(library_.path(), " has no ", shape_.prefix, "HostRegister");
  }
  if (feature == Feature::Dmabuf && call_.export_handle == nullptr) {
    if (shape_.handles == nullptr) return text(shape_.kind, " offers no dmabuf that we know of");
    return text("the driver has no ", shape_.handles);
  }
  if (feature == Feature::Reduce) return Runtime::lacks(feature);
  if (feature == Feature::Ipc) return lacks_ipc();
  return "";
}

// The runtime's handle and, as that may be the same for a block that was freed and one that came to
// its address later, the number that the driver gives each.
Result<Export> CudaShaped::ipc_export(int index, Place place) noexcept {
  if (!lacks_ipc().empty()) return Status(Code::Unavailable, lacks_ipc());
  const Guard guard(*this, index);
  if (!guard.status.ok()) return guard.status;
  void* base = nullptr;
  Export exported;
  if (const int code = call_.address_range(&base, &exported.bytes, address_of(place)); code != 0) {
    return Status(Code::Unavailable,
                  text(shape_.kind, ":", index, ": where the memory begins ", shape_.driver,
                       "MemGetAddressRange does not say: ", code));
  }
  exported.offset = static_cast<std::uint64_t>(address_of(place) - static_cast<char*>(base));
  IpcHandle handle;
  if (const int code = call_.ipc_get(&handle, base); code != 0) {
    const Status status = failed(code, "IpcGetMemHandle", index);
    return Status(Code::Unavailable, status.text());
  }
  unsigned long long number = 0;
  if (call_.attribute == nullptr || call_.attribute(&number, kBufferId, base) != 0) {
    return Status(Code::Unavailable,
                  text(shape_.kind, ":", index, ": the driver does not number its allocations"));
  }
  exported.handle.assign(handle.bytes, sizeof handle.bytes);
  exported.handle.append(reinterpret_cast<const char*>(&number), sizeof number);
  return exported;
}

std::uint64_t CudaShaped::ipc_bytes(int index, Place opened) noexcept {
  const Guard guard(*this, index);
  void* base = nullptr;
  std::uint64_t bytes = 0;
  if (!guard.status.ok() || call_.address_range(&base, &bytes, opened.handle) != 0) return 0;
  return bytes - static_cast<std::uint64_t>(address_of(opened) - static_cast<char*>(base));
}

Result<Place> CudaShaped::ipc_open(int index, const std::string& handle) noexcept {
  IpcHandle theirs;
  if (!lacks_ipc().empty()) return Status(Code::Unavailable, lacks_ipc());
  if (handle.size() < sizeof theirs) return Status(Code::Integrity, "an IPC handle is too short");
  std::memcpy(theirs.bytes, handle.data(), sizeof theirs);
  auto opened = made(index, "IpcOpenMemHandle", [&](void** address) {
    return call_.ipc_open(address, theirs, kEnablePeerAccess);
  });
  if (!opened.ok()) return Status(Code::Unavailable, opened.status().text());
  return Place{opened.value(), 0};
}

Result<int> CudaShaped::dmabuf(int index, Place place, std::size_t bytes) noexcept {
  if (call_.export_handle == nullptr) return Status(Code::Unavailable, lacks(Feature::Dmabuf));
  const auto address = reinterpret_cast<std::uintptr_t>(address_of(place));
  if (address % 4096 != 0 || bytes % 4096 != 0) {
    return Status(Code::InvalidArgument,
                  text(shape_.kind, ": a dmabuf covers whole pages of 4096 bytes, not ", bytes,
                       " at offset ", address % 4096, "; round it to them"));
  }
  const Guard guard(*this, index);
  if (!guard.status.ok()) return guard.status;
  int fd = -1;
  const int code = call_.export_handle(&fd, address, bytes, kDmabuf, 0);
  if (code != 0) {
    return Status(Code::Unavailable, text(shape_.kind, ":", index, ": ", shape_.handles,
                                          " failed with ", code, "; the driver may lack it"));
  }
  return fd;
}

}  // namespace

Result<std::unique_ptr<Runtime>> open_cuda_shaped(const CudaShape& shape) {
  auto library = find_library(shape.kind, shape.libraries, [&](const std::string& path) {
    const std::string owner = owner_of(path);
    if (owner == shape.kind || (owner.empty() && !shape.borrowed)) return std::string();
    return text(path, " is not ", shape.kind, "'s by its path");
  });
  if (!library.ok()) return library.status();
  auto runtime = std::make_unique<CudaShaped>(shape, std::move(library).value());
  if (Status status = runtime->open(); !status.ok()) return status;
  return std::unique_ptr<Runtime>(std::move(runtime));
}

}  // namespace hccomm::device
