// SPDX-License-Identifier: Apache-2.0
#include "comm/devices.hpp"

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "comm/communicator.hpp"
#include "device/registry.hpp"

namespace hccomm::comm {

using device::Kind;
using device::Registry;

// Whether handles are no addresses: two are the same memory only if they are equal. Of a plug-in's
// nobody knows.
static bool opaque(std::int32_t kind) {
  return kind == static_cast<std::int32_t>(Kind::OpenCl) ||
         kind >= static_cast<std::int32_t>(Kind::FirstPlugin);
}

namespace {

// A kind whose runtime has been found; never forgotten, as the registry forgets none.
struct Known {
  device::Runtime* runtime = nullptr;
  std::string name;
  int count = 0;
};

}  // namespace

static Result<const Known*> known(std::int32_t kind) {
  static std::mutex mutex;
  static auto* all = new std::unordered_map<std::int32_t, std::unique_ptr<Known>>();
  {
    const std::lock_guard lock(mutex);
    if (const auto found = all->find(kind); found != all->end()) return found->second.get();
  }
  Registry& registry = Registry::global();
  auto runtime = registry.runtime(static_cast<Kind>(kind));
  if (!runtime.ok()) return runtime.status();
  auto count = runtime.value()->count();
  if (!count.ok()) return count.status();
  const std::lock_guard lock(mutex);
  auto& slot = (*all)[kind];
  if (slot == nullptr) {
    slot = std::make_unique<Known>(
        Known{runtime.value(), registry.name(static_cast<Kind>(kind)), count.value()});
  }
  return slot.get();
}

Result<engine::Where> locate(const char* what, const DeviceBuffer& buffer) {
  auto found = known(buffer.kind);
  if (!found.ok()) {
    return Status(found.status().code(), text(what, ": ", found.status().text()));
  }
  const Known& kind = *found.value();
  if (buffer.index < 0 || buffer.index >= kind.count) {
    return Status(Code::InvalidArgument,
                  text(what, ": ", kind.name, ":", buffer.index, " is outside 0..", kind.count - 1,
                       ", the devices that its runtime shows"));
  }
  return engine::Where{kind.runtime,        buffer.index,
                       opaque(buffer.kind), {buffer.handle, buffer.offset},
                       buffer.stream,       kind.name};
}

void make_comparable(Memory& input, Memory& output) {
  constexpr std::uintptr_t kApart = std::uintptr_t{1} << 60;  // no address of a process
  const DeviceBuffer& a = input.device;
  const DeviceBuffer& b = output.device;
  const bool together = a.kind == b.kind && a.index == b.index;
  const bool addresses = together && !opaque(a.kind);
  std::uintptr_t region = 0;
  for (Memory* const each : {&input, &output}) {
    if (each->device.kind == 0 || each->device.handle == nullptr) continue;
    if (!(together && each == &output && a.handle == b.handle)) region += kApart;
    const std::uintptr_t begin =
        addresses ? reinterpret_cast<std::uintptr_t>(each->device.handle) : region;
    each->data = reinterpret_cast<std::byte*>(begin + each->device.offset);
  }
}

}  // namespace hccomm::comm
