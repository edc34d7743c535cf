// SPDX-License-Identifier: Apache-2.0
//
// How torch reaches the runtime without an operator: allocators, guard, hooks.
#include "torch_device.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>

namespace simdevice {

static thread_local int this_device = 0;
static thread_local std::map<int, int64_t> this_streams;

int current_device() { return this_device; }

void set_current_device(int index) {
  TORCH_CHECK(index >= 0 && index < settings().devices, settings().vendor, ": there is no device ",
              index);
  this_device = index;
}

int64_t current_stream(int device) {
  const auto found = this_streams.find(device);
  return found == this_streams.end() ? 0 : found->second;
}

Stream& current(int index) { return device(index).stream(current_stream(index)); }

Stream& stream_of(const c10::Stream& stream) {
  return device(stream.device_index()).stream(stream.id());
}

// ---- device memory -----------------------------------------------------------------------------

namespace {

// What a DataPtr's context is: where the block came from and who else works on it.
struct Block {
  void* address;
  int device;
  Stream* home;
  std::mutex mutex;
  std::vector<Stream*> users;
};

void free_block(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  if (block) device(block->device).release(block->address, *block->home, block->users);
}

class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const int index = current_device();
    const c10::Device where(kType, static_cast<c10::DeviceIndex>(index));
    if (bytes == 0) return {nullptr, nullptr, &free_block, where};
    try {
      void* const address = device(index).allocate(bytes);
      auto block = std::make_unique<Block>();
      block->address = address;
      block->device = index;
      block->home = &current(index);
      return {address, block.release(), &free_block, where};
    } catch (const OutOfMemory& refusal) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, refusal.what());
    }
  }
  // Not every pointer of ours is its own context.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    Device& here = device(current_device());
    current(current_device()).synchronize();
    std::memcpy(here.memory().reach(to), here.memory().reach(from), bytes);
  }
};

// ---- pinned memory -----------------------------------------------------------------------------

std::mutex pinned_mutex;
std::map<const std::byte*, std::size_t> pinned;  // guarded by pinned_mutex

void free_pinned(void* address) {
  {
    const std::lock_guard lock(pinned_mutex);
    pinned.erase(static_cast<const std::byte*>(address));
  }
  std::free(address);
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::kCPU};
    TORCH_CHECK_WITH(OutOfMemoryError, !due(fail_pinned_after()), settings().vendor,
                     ": out of page-locked memory (ordered): ", bytes, " bytes");
    void* const address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    TORCH_CHECK_WITH(OutOfMemoryError, address, settings().vendor, ": out of host memory");
    const std::lock_guard lock(pinned_mutex);
    pinned.emplace(static_cast<const std::byte*>(address), bytes);
    return {address, address, &free_pinned, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

}  // namespace

c10::Allocator& device_allocator() {
  static DeviceAllocator allocator;
  return allocator;
}

c10::Allocator& pinned_allocator() {
  static PinnedAllocator allocator;
  return allocator;
}

bool is_pinned(const void* address) {
  const auto* place = static_cast<const std::byte*>(address);
  const std::lock_guard lock(pinned_mutex);
  auto after = pinned.upper_bound(place);
  if (after == pinned.begin()) return false;
  --after;
  return place < after->first + after->second;
}

int64_t live_pinned() {
  const std::lock_guard lock(pinned_mutex);
  return static_cast<int64_t>(pinned.size());
}

std::atomic<int64_t>& fail_pinned_after() {
  static std::atomic<int64_t> counter{-1};
  return counter;
}

// ---- guard -------------------------------------------------------------------------------------

namespace {

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(settings().devices);
  }
  c10::Device getDevice() const override { return at(current_device()); }
  void setDevice(c10::Device to) const override { set_current_device(index_of(to)); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { this_device = index_of(to); }
  c10::Device exchangeDevice(c10::Device to) const override {
    const c10::Device before = getDevice();
    setDevice(to);
    return before;
  }

  c10::Stream getStream(c10::Device of) const override {
    return make(of, current_stream(index_of(of)));
  }
  c10::Stream getDefaultStream(c10::Device of) const override { return make(of, 0); }
  c10::Stream getNewStream(c10::Device of, int /*priority*/) const override {
    static std::atomic<int64_t> next{0};
    return make(of, 1 + next++ % (Device::kStreams - 1));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device of, bool /*high*/) const override {
    return getNewStream(of, 0);
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    const c10::Stream before = getStream(to.device());
    this_streams[to.device_index()] = to.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return &stream_of(stream);
  }
  bool queryStream(const c10::Stream& stream) const override { return stream_of(stream).idle(); }
  void synchronizeStream(const c10::Stream& stream) const override {
    stream_of(stream).synchronize();
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    device(index < 0 ? current_device() : index).synchronize();
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    if (!*event) *event = new EventPtr(std::make_shared<Event>(device(stream.device_index())));
    stream_of(stream).record(shared(*event));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) stream_of(stream).block(shared(event));
  }
  bool queryEvent(void* event) const override { return !event || shared(event)->query(); }
  void synchronizeEvent(void* event) const override {
    if (event) shared(event)->wait();
  }
  void destroyEvent(void* event, const c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<EventPtr*>(event);
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex /*device*/) const override {
    shared(to)->wait();
    return std::chrono::duration<double, std::milli>(shared(to)->when() - shared(from)->when())
        .count();
  }

  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    if (data.get_deleter() != &free_block || !data.get_context()) return;
    auto& block = *static_cast<Block*>(data.get_context());
    Stream* const user = &stream_of(stream);
    const std::lock_guard lock(block.mutex);
    if (user != block.home) block.users.push_back(user);
  }

 private:
  static int index_of(c10::Device device) {
    return device.index() < 0 ? current_device() : device.index();
  }
  static c10::Device at(int index) { return {kType, static_cast<c10::DeviceIndex>(index)}; }
  static c10::Stream make(c10::Device of, int64_t number) {
    return c10::Stream(c10::Stream::UNSAFE, at(index_of(of)), number);
  }
  static const EventPtr& shared(void* event) { return *static_cast<EventPtr*>(event); }
};

// ---- hooks -------------------------------------------------------------------------------------

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return settings().devices > 0; }
  bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(settings().devices);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(current_device());
  }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const c10::DeviceIndex before = getCurrentDevice();
    set_current_device(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? getCurrentDevice() : exchangeDevice(index);
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
  c10::Device getDeviceFromPtr(void* data) const override {
    for (int index = 0; index < settings().devices; ++index) {
      if (device(index).memory().holds(data)) {
        return {kType, static_cast<c10::DeviceIndex>(index)};
      }
    }
    TORCH_CHECK(false, settings().vendor, ": this address is of no device");
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex /*index*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const int index = storage.device().index();
    const int before = current_device();
    set_current_device(index);
    c10::DataPtr fresh = device_allocator().allocate(bytes);
    const size_t kept = std::min(bytes, storage.nbytes());
    if (kept > 0) {
      Memory& memory = device(index).memory();
      current(index).enqueue([&memory, to = memory.reach(fresh.get()),
                              from = memory.reach(storage.data()),
                              kept] { std::memcpy(to, from, kept); });
    }
    set_current_device(before);
    c10::StorageImpl* const impl = storage.unsafeGetStorageImpl();
    impl->set_data_ptr(std::move(fresh));
    impl->set_nbytes(bytes);
  }
};

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(kType, &device_allocator());
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace

}  // namespace simdevice
