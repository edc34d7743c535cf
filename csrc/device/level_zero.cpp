// SPDX-License-Identifier: Apache-2.0
//
// Intel GPUs through the Level Zero loader. Unlike CUDA: an explicit context; immediate command
// lists that keep no order, so each copy is followed by a barrier; events that must be reset, so an
// Event of ours goes round a ring of them. The caller's stream is an immediate command list.
#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <vector>

#include "device/library.hpp"
#include "device/registry.hpp"

namespace hccomm::device {

namespace {

// Level Zero's descriptors, declared by us: a type, a chain, then what they say.
struct ZeContextDesc {
  std::uint32_t type = 0xd;
  const void* next = nullptr;
  std::uint32_t flags = 0;
};
struct ZeQueueDesc {
  std::uint32_t type = 0xe;
  const void* next = nullptr;
  std::uint32_t ordinal = 0, index = 0, flags = 0;
  std::uint32_t mode = 2;  // asynchronous
  std::uint32_t priority = 0;
};
struct ZePoolDesc {
  std::uint32_t type = 0x10;
  const void* next = nullptr;
  std::uint32_t flags = 1;  // the host sees the events
  std::uint32_t count = 0;
};
struct ZeEventDesc {
  std::uint32_t type = 0x11;
  const void* next = nullptr;
  std::uint32_t index = 0;
  std::uint32_t signal = 4, wait = 4;  // visible to the host
};
struct ZeDeviceMemoryDesc {
  std::uint32_t type = 0x15;
  const void* next = nullptr;
  std::uint32_t flags = 0, ordinal = 0;
};
struct ZeHostMemoryDesc {
  std::uint32_t type = 0x16;
  const void* next = nullptr;
  std::uint32_t flags = 0;
};

struct ZeFunctions {
  int (*init)(std::uint32_t);
  int (*drivers)(std::uint32_t*, void**);
  int (*devices)(void* driver, std::uint32_t*, void**);
  int (*status)(void* context, void* device);
  int (*context_create)(void* driver, const ZeContextDesc*, void**);
  int (*host_allocate)(void* context, const ZeHostMemoryDesc*, std::size_t, std::size_t align,
                       void**);
  int (*allocate)(void* context, const ZeDeviceMemoryDesc*, std::size_t, std::size_t align,
                  void* device, void**);
  int (*release)(void* context, void*);
  int (*list_create)(void* context, void* device, const ZeQueueDesc*, void**);
  int (*list_destroy)(void*);
  int (*copy)(void* list, void* dst, const void* src, std::size_t, void* signal, std::uint32_t,
              void** waits);
  int (*barrier)(void* list, void* signal, std::uint32_t, void** waits);
  int (*pool_create)(void* context, const ZePoolDesc*, std::uint32_t, void** devices, void**);
  int (*pool_destroy)(void*);
  int (*event_create)(void* pool, const ZeEventDesc*, void**);
  int (*event_destroy)(void*);
  int (*event_query)(void*);
  int (*event_reset)(void*);
  int (*extension)(void* driver, const char* name, void** function);
  int (*translate)(int handle_kind, void* handle, void** drivers_own);
};

static constexpr int kNotReady = 1;
static constexpr unsigned kDeviceLost = 0x70000001;
static constexpr std::uint32_t kRing = 16;

// Intel's drivers pin memory of others by two functions of their own, for all devices of the driver
// at once; the loader does not know them, so they want the driver's handle as the driver knows it.
struct ZePinning {
  void* driver = nullptr;
  int (*import)(void* driver, void* address, std::size_t bytes) = nullptr;
  int (*release)(void* driver, void* address) = nullptr;
};

struct ZeDevice {
  void* handle;
  void* context;  // of its driver
  ZePinning pinning;
};

// What an Event's native points to. A recording takes the next event of the ring, so that a list
// which still waits for the one before is not robbed of its signal.
struct ZeRing {
  void* pool = nullptr;
  std::array<void*, kRing> events{};
  std::uint32_t latest = 0;
  bool recorded = false;
};

class LevelZero final : public Runtime {
 public:
  explicit LevelZero(DynamicLibrary library) : library_(std::move(library)) {}

  Status open();

  std::string library() const override { return library_.path(); }
  Result<int> count() noexcept override { return static_cast<int>(devices_.size()); }
  Result<int> current() noexcept override { return 0; }         // Level Zero has no such notion
  int fabric_interface() const noexcept override { return 3; }  // FI_HMEM_ZE
  std::string describe(int index) noexcept override { return text("Level Zero device ", index); }

  Status health(int index) noexcept override {
    if (!exists(index)) return absent(index);
    const ZeDevice& own = device(index);
    if (call_.status == nullptr) return {};
    return told(call_.status(own.context, own.handle), "zeContextGetStatus", index);
  }

  Result<void*> host_allocate(int index, std::size_t bytes) noexcept override {
    if (!exists(index)) return absent(index);
    const ZeHostMemoryDesc desc;
    void* address = nullptr;
    const int code = call_.host_allocate(device(index).context, &desc, bytes, 4096, &address);
    if (code != 0) return failed(code, "zeMemAllocHost", index);
    return address;
  }
  void host_free(int index, void* address) noexcept override {
    if (address != nullptr) call_.release(device(index).context, address);
  }
  std::string lacks(Feature feature) const override {
    if (feature != Feature::HostRegister) return Runtime::lacks(feature);
    const auto pins = [](const ZeDevice& each) { return each.pinning.import != nullptr; };
    if (std::ranges::all_of(devices_, pins)) return {};
    return "a driver of Level Zero here has no zexDriverImportExternalPointer";
  }
  Status host_register(int index, void* address, std::size_t bytes) noexcept override {
    if (!exists(index)) return absent(index);
    const ZePinning& pinning = device(index).pinning;
    if (pinning.import == nullptr) return {Code::Unavailable, lacks(Feature::HostRegister)};
    const std::lock_guard lock(pinned_mutex_);
    if (unsigned& holders = pinned_[{pinning.driver, address}]; holders++ != 0) return {};
    const int code = pinning.import(pinning.driver, address, bytes);
    if (code != 0) pinned_.erase({pinning.driver, address});
    return told(code, "zexDriverImportExternalPointer", index);
  }
  void host_unregister(int index, void* address) noexcept override {
    const ZePinning& pinning = device(index).pinning;
    const std::lock_guard lock(pinned_mutex_);
    const auto found = pinned_.find({pinning.driver, address});
    if (found == pinned_.end() || --found->second != 0) return;
    pinned_.erase(found);
    pinning.release(pinning.driver, address);
  }

  Result<Place> allocate(int index, std::size_t bytes) noexcept override {
    if (!exists(index)) return absent(index);
    const ZeDeviceMemoryDesc desc;
    const ZeDevice& own = device(index);
    void* address = nullptr;
    const int code = call_.allocate(own.context, &desc, bytes, 64, own.handle, &address);
    if (code != 0) return failed(code, "zeMemAllocDevice", index);
    return Place{address, 0};
  }
  void release(int index, Place place) noexcept override {
    call_.release(device(index).context, address_of(place));
  }

  Result<Stream> stream_create(int index) noexcept override {
    if (!exists(index)) return absent(index);
    const ZeQueueDesc desc;
    const ZeDevice& own = device(index);
    void* list = nullptr;
    const int code = call_.list_create(own.context, own.handle, &desc, &list);
    if (code != 0) return failed(code, "zeCommandListCreateImmediate", index);
    return Stream{index, 1, list};
  }
  void stream_destroy(Stream stream) noexcept override { call_.list_destroy(stream.native); }

  Status copy_in(Stream stream, Place dst, const void* host, std::size_t bytes) noexcept override {
    return copy(stream, address_of(dst), host, bytes);
  }
  Status copy_out(Stream stream, void* host, Place src, std::size_t bytes) noexcept override {
    return copy(stream, host, address_of(src), bytes);
  }

  Result<Event> event_create(int index) noexcept override {
    if (!exists(index)) return absent(index);
    auto ring = std::make_unique<ZeRing>();
    ZePoolDesc pool;
    pool.count = kRing;
    void* only = device(index).handle;
    int code = call_.pool_create(device(index).context, &pool, 1, &only, &ring->pool);
    if (code != 0) return failed(code, "zeEventPoolCreate", index);
    for (std::uint32_t each = 0; each < kRing && code == 0; ++each) {
      ZeEventDesc desc;
      desc.index = each;
      code = call_.event_create(ring->pool, &desc, &ring->events[each]);
    }
    const Event made{index, ring.release()};
    if (code == 0) return made;
    event_destroy(made);
    return failed(code, "zeEventCreate", index);
  }
  void event_destroy(Event event) noexcept override {
    const std::unique_ptr<ZeRing> gone(static_cast<ZeRing*>(event.native));
    for (void* each : gone->events) {
      if (each != nullptr) call_.event_destroy(each);
    }
    call_.pool_destroy(gone->pool);
  }

  // A caller without a command list has finished what it did: there is nothing to stand behind.
  Status event_record(Event event, Stream stream) noexcept override {
    auto& ring = *static_cast<ZeRing*>(event.native);
    if (stream.native == nullptr) {
      ring.recorded = false;
      return {};
    }
    const std::uint32_t next = (ring.latest + 1) % kRing;
    if (const int code = call_.event_reset(ring.events[next]); code != 0) {
      return failed(code, "zeEventHostReset", stream.index);
    }
    const int code = call_.barrier(stream.native, ring.events[next], 0, nullptr);
    if (code != 0) return failed(code, "zeCommandListAppendBarrier", stream.index);
    ring.latest = next;
    ring.recorded = true;
    return {};
  }

  Result<bool> event_query(Event event) noexcept override {
    const auto& ring = *static_cast<const ZeRing*>(event.native);
    if (!ring.recorded) return true;
    const int code = call_.event_query(ring.events[ring.latest]);
    if (code == 0) return true;
    if (code == kNotReady) return false;
    return failed(code, "zeEventQueryStatus", event.index);
  }

  Status stream_wait(Stream stream, Event event) noexcept override {
    auto& ring = *static_cast<ZeRing*>(event.native);
    if (!ring.recorded || stream.native == nullptr) return {};
    return told(call_.barrier(stream.native, nullptr, 1, &ring.events[ring.latest]),
                "zeCommandListAppendBarrier", stream.index);
  }

 private:
  ZePinning pinning_of(void* driver) const;
  static char* address_of(Place place) { return static_cast<char*>(place.handle) + place.offset; }
  bool exists(int index) const noexcept {
    return index >= 0 && static_cast<std::size_t>(index) < devices_.size();
  }
  const ZeDevice& device(int index) const noexcept {
    return devices_[static_cast<std::size_t>(index)];
  }
  Status absent(int index) const {
    return {Code::InvalidArgument,
            text("level_zero: there is no device ", index, " of ", devices_.size())};
  }

  Status copy(Stream stream, void* dst, const void* src, std::size_t bytes) noexcept {
    if (bytes == 0) return {};
    int code = call_.copy(stream.native, dst, src, bytes, nullptr, 0, nullptr);
    if (code != 0) return failed(code, "zeCommandListAppendMemoryCopy", stream.index);
    code = call_.barrier(stream.native, nullptr, 0, nullptr);
    return told(code, "zeCommandListAppendBarrier", stream.index);
  }

  Status told(int code, const char* what, int index) const {
    return code == 0 ? Status() : failed(code, what, index);
  }
  Status failed(int code, const char* what, int index) const {
    std::ostringstream hex;
    hex << std::hex << static_cast<unsigned>(code);
    const bool lost = static_cast<unsigned>(code) == kDeviceLost;
    return {Code::System, text("level_zero:", index, ": ", what, " failed with 0x", hex.str(),
                               lost ? "; the device is lost to this process: restart the rank"
                                    : " (ze_api.h names it)")};
  }

  const DynamicLibrary library_;
  ZeFunctions call_{};                                  // constant after open(), as devices_
  std::vector<ZeDevice> devices_;                       // of all drivers
  std::mutex pinned_mutex_;                             // guards pinned_
  std::map<std::pair<void*, void*>, unsigned> pinned_;  // devices, by their driver and the memory
};

ZePinning LevelZero::pinning_of(void* driver) const {
  ZePinning found{driver};
  const auto find = [&]<typename Function>(Function*& function, const char* name) {
    void* address = nullptr;
    const bool there = call_.extension != nullptr && call_.extension(driver, name, &address) == 0 &&
                       address != nullptr;
    if (there) function = reinterpret_cast<Function*>(address);
    return there;
  };
  static constexpr int kDriverHandle = 0;
  const bool translated =
      call_.translate == nullptr || call_.translate(kDriverHandle, driver, &found.driver) == 0;
  const bool both = translated && find(found.import, "zexDriverImportExternalPointer") &&
                    find(found.release, "zexDriverReleaseImportedPointer");
  return both ? found : ZePinning{};
}

Status LevelZero::open() {
  bool all = true;
  const auto find = [&]<typename Function>(Function*& function, const char* name,
                                           bool required = true) {
    function = library_.find_as<Function>(name);
    if (required && function == nullptr) all = false;
  };
  find(call_.init, "zeInit");
  find(call_.drivers, "zeDriverGet");
  find(call_.devices, "zeDeviceGet");
  find(call_.status, "zeContextGetStatus", false);
  find(call_.context_create, "zeContextCreate");
  find(call_.host_allocate, "zeMemAllocHost");
  find(call_.allocate, "zeMemAllocDevice");
  find(call_.release, "zeMemFree");
  find(call_.list_create, "zeCommandListCreateImmediate");
  find(call_.list_destroy, "zeCommandListDestroy");
  find(call_.copy, "zeCommandListAppendMemoryCopy");
  find(call_.barrier, "zeCommandListAppendBarrier");
  find(call_.pool_create, "zeEventPoolCreate");
  find(call_.pool_destroy, "zeEventPoolDestroy");
  find(call_.event_create, "zeEventCreate");
  find(call_.event_destroy, "zeEventDestroy");
  find(call_.event_query, "zeEventQueryStatus");
  find(call_.event_reset, "zeEventHostReset");
  find(call_.extension, "zeDriverGetExtensionFunctionAddress", false);
  find(call_.translate, "zelLoaderTranslateHandle", false);
  if (!all) {
    return {Code::Unavailable, text("level_zero: ", library_.path(),
                                    " lacks functions of Level "
                                    "Zero 1.0; it is no loader of it")};
  }
  std::uint32_t found = 0;
  int code = call_.init(0);
  if (code == 0) code = call_.drivers(&found, nullptr);
  std::vector<void*> drivers(code == 0 ? found : 0);
  if (!drivers.empty()) code = call_.drivers(&found, drivers.data());
  for (void* driver : drivers) {
    std::uint32_t here = 0;
    if (call_.devices(driver, &here, nullptr) != 0 || here == 0) continue;
    std::vector<void*> handles(here);
    const ZeContextDesc desc;
    void* context = nullptr;
    if (call_.devices(driver, &here, handles.data()) != 0) continue;
    if (call_.context_create(driver, &desc, &context) != 0) continue;
    for (void* handle : handles) devices_.push_back({handle, context, pinning_of(driver)});
  }
  if (!devices_.empty()) return {};
  return {Code::Unavailable,
          text("level_zero: ", library_.path(), " is here, but no device: ",
               code != 0 ? failed(code, "zeInit", 0).text() : "no driver counts one",
               "; it needs an Intel GPU and its driver")};
}

}  // namespace

static Result<std::unique_ptr<Runtime>> probe() {
  auto library = find_library("level_zero", {"libze_loader.so.1", "libze_loader.so"});
  if (!library.ok()) return library.status();
  auto runtime = std::make_unique<LevelZero>(std::move(library).value());
  if (Status status = runtime->open(); !status.ok()) return status;
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Builtin level_zero_device() {
  return {Kind::LevelZero, "level_zero", "Intel GPUs, Level Zero", probe};
}

}  // namespace hccomm::device
