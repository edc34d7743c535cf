// SPDX-License-Identifier: Apache-2.0
//
// Memory of devices between processes (IPC): what of ours peers may open, and what of theirs is
// open here. A runtime copies from there as from memory of its own. Opening takes long, so what is
// open stays so while it is used: few allocations, and not for long after the last copy, for the
// pages of what their owner frees stay until then.
#include <algorithm>
#include <cstring>

#include "engine/staging.hpp"

namespace hccomm::engine {

static constexpr std::size_t kMostOpened = 32;  // per device, but for those in use
static constexpr auto kOpenFor = std::chrono::seconds(5);

namespace {

// Owns: one open of a peer's allocation.
struct Opened final : transport::View {
  Opened(device::Runtime& its_runtime, int its_index, device::Place opened, std::uint64_t size)
      : runtime(its_runtime), index(its_index), place(opened) {
    data = static_cast<std::byte*>(place.handle) + place.offset;
    bytes = size;
  }
  ~Opened() override { runtime.ipc_close(index, place); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  device::Runtime& runtime;
  const int index;
  const device::Place place;
};

}  // namespace

void Staging::issue_passport(Device& device, std::string_view kind) const {
  device::Runtime& runtime = *device.runtime;
  device.why_no_ipc = runtime.lacks(device::Feature::Ipc);
  if (checks_) device.why_no_ipc = "copies are checked (HCCOMM_INTEGRITY)";
  if (!ipc_) device.why_no_ipc = "HCCOMM_DEVICE_IPC=off";
  if (!device.why_no_ipc.empty()) return;
  const std::string version = runtime.ipc_version();
  device.bus = runtime.bus_address(device.index);
  if (version.empty() || device.bus.empty()) {
    device.why_no_ipc = "the runtime does not tell its version, or where the device is";
    return;
  }
  device.family = text(kind, "/", version);
  device.passport = device.family + " ";
  auto count = runtime.count();
  for (int index = 0; count.ok() && index < count.value(); ++index) {
    device.passport += runtime.bus_address(index) + " ";
  }
}

std::vector<std::string> Staging::passports() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> all;
  for (const auto& each : devices_) {
    const bool told = std::ranges::find(all, each->passport) != all.end();
    if (!each->passport.empty() && !told) all.push_back(each->passport);
  }
  return all;
}

const Device* Staging::exporter(const Where& where) {
  const std::lock_guard lock(mutex_);
  for (const auto& each : devices_) {
    const bool is_it = each->runtime == where.runtime && each->index == where.index;
    if (is_it && !where.opaque && each->why_no_ipc.empty()) return each.get();
  }
  return nullptr;
}

// False: the runtime does not export this memory.
bool Staging::export_memory(Staged& staged, int memory, std::uint64_t bytes) {
  Staged::Memory& target = staged.memory[memory];
  if (!target.exported.handle.empty()) return true;
  auto made = target.device->runtime->ipc_export(target.device->index, target.place);
  Status status = made.ok() ? Status() : made.status();
  if (made.ok() && bytes > made.value().bytes - made.value().offset) {
    status = Status(Code::Unavailable, "the buffer ends outside of the allocation it begins in");
  }
  const std::lock_guard lock(mutex_);
  target.device->why_not_exported = status.text();
  if (status.ok()) target.exported = std::move(made).value();
  return status.ok();
}

std::string offer_of(const Device& device, const device::Export& exported) {
  std::string offer = device.family;
  offer.push_back('\0');
  offer.append(reinterpret_cast<const char*>(&exported.bytes), sizeof exported.bytes);
  return offer + exported.handle;
}

Result<transport::ViewPtr> Staging::open_abroad(Device& device, const void* peer,
                                                const std::string& offer) {
  const std::size_t head = device.family.size() + 1;
  std::uint64_t bytes = 0;
  if (offer.size() < head + sizeof bytes || offer.compare(0, head, device.family.c_str(), head)) {
    return Status(Code::Unavailable, text(device.name, " cannot open memory of ", offer.c_str()));
  }
  std::memcpy(&bytes, offer.data() + head, sizeof bytes);
  const auto is_it = [&](const Device::Opened& each) {
    return each.peer == peer && each.handle == offer;
  };
  const auto in_use = [](const Device::Opened& each) { return each.view.use_count() > 1; };
  std::vector<Device::Opened>& all = device.opened;
  if (const auto found = std::ranges::find_if(all, is_it); found != all.end()) {
    std::rotate(found, found + 1, all.end());
    all.back().used = Clock::now();
    return all.back().view;
  }
  while (all.size() >= kMostOpened) {
    const auto oldest = std::ranges::find_if_not(all, in_use);
    if (oldest == all.end()) break;
    all.erase(oldest);
  }
  auto opened = device.runtime->ipc_open(device.index, offer.substr(head + sizeof bytes));
  if (!opened.ok()) {  // what lay at its address before may be in the way
    std::erase_if(all, [&](const auto& each) { return !in_use(each); });
    opened = device.runtime->ipc_open(device.index, offer.substr(head + sizeof bytes));
  }
  if (!opened.ok()) return opened.status();
  auto view = std::make_shared<Opened>(*device.runtime, device.index, opened.value(), bytes);
  const std::uint64_t really = device.runtime->ipc_bytes(device.index, opened.value());
  if (really != 0 && really < bytes) {
    return Status(Code::Integrity, text(device.name, ": a peer offers ", bytes,
                                        " bytes of its memory; what it names has ", really));
  }
  all.push_back({peer, offer, view, Clock::now()});
  return transport::ViewPtr(std::move(view));
}

void Staging::take_across(Staged& staged, Cell cell, const transport::ViewPtr& view,
                          std::uint64_t offset) {
  cell.across = true;
  staged.late_out.push_back(cell);
  const std::size_t index = staged.plan->out.size() + staged.late_out.size() - 1;
  staged.from.resize(index + 1, nullptr);
  staged.from[index] = view->data + offset;
  staged.views.push_back(view);
  staged.due.push_back(static_cast<std::uint32_t>(index));
  ++staged.memory[cell.memory].device->across;
  wait_out(staged);
}

void Staging::close_abroad(const std::function<bool(const void*)>& lives) {
  for (std::size_t i = 0; Device* const device = device_at(i); ++i) {
    if (device->opened.empty()) continue;
    const Clock::time_point now = Clock::now();
    std::erase_if(device->opened, [&](const Device::Opened& each) {
      return !lives(each.peer) || (each.view.use_count() == 1 && now - each.used > kOpenFor);
    });
  }
}

std::string Staging::report_ipc(const Device& device) const {
  if (!device.why_no_ipc.empty()) return "no IPC: " + device.why_no_ipc;
  const std::string& why = device.why_not_exported;
  return text(device.across, " messages copied from peers' devices (IPC)",
              why.empty() ? "" : ", which cannot open ours now: " + why);
}

}  // namespace hccomm::engine
