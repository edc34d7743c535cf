// SPDX-License-Identifier: Apache-2.0
//
// The copies themselves: gates, the two lanes of each device, what lands. staging_prepare.cpp has
// what comes before.
#include "engine/staging.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/log.hpp"
#include "engine/proof.hpp"

namespace hccomm::engine {

using plan::Space;

static constexpr std::uint64_t kSmallCopy = 64 << 10,
                               kLargeStretch = 1 << 20;  // worth learning from
static constexpr double kFade = 1.02;  // of the best that was seen, with each further stretch
static constexpr auto kPartingPatience = std::chrono::seconds(2);

Staging::~Staging() {
  const Deadline patience(Clock::now() + kPartingPatience);
  while (!active_.empty() && !patience.passed()) {
    if (!progress()) std::this_thread::yield();
  }
  for (const auto& each : devices_) {
    if (!each->lanes[0].flying.empty() || !each->lanes[1].flying.empty()) {
      HCCOMM_LOG(Warn, each->name, ": copies have not ended; their memory stays pinned");
      continue;
    }
    each->pool->give_back(each->reserve);
    close(*each);
  }
}

// ---- the caller's streams -----------------------------------------------------------------------

static Result<device::Event> take_event(Device& device) {
  if (device.events.empty()) return device.runtime->event_create(device.index);
  const device::Event event = device.events.back();
  device.events.pop_back();
  return event;
}

static Status gate(Staged& staged, Device& device, const device::Stream& stream) {
  auto event = take_event(device);
  if (!event.ok()) return event.status();
  const Status status = device.runtime->event_record(event.value(), stream);
  if (status.ok()) {
    staged.gates.emplace_back(&device, event.value());
  } else {
    device.events.push_back(event.value());
  }
  return status;
}

Status Staging::begin(Staged& staged, Operation& operation) {
  staged.operation = &operation;
  staged.left.clear();
  for (const Cell& cell : staged.plan->out) staged.left.push_back(cell.writes);
  for (const Staged::Memory& memory : staged.memory) {
    if (memory.device == nullptr) continue;
    const Status status = gate(staged, *memory.device, memory.stream);
    if (!status.ok()) return status;
  }
  Device* const shared = staged.memory[0].device;
  if (shared != nullptr && staged.plan->key.one &&
      staged.other_stream.native != staged.memory[0].stream.native) {
    const Status status = gate(staged, *shared, staged.other_stream);
    if (!status.ok()) return status;
  }
  gated_.push_back(&staged);
  progress();
  return {};
}

// Looks whether the caller's streams have come to where the call was made.
bool Staging::gate_open(Staged& staged, bool& moved) {
  while (!staged.gates.empty()) {
    const auto [device, event] = staged.gates.back();
    Result<bool> reached = device->runtime->event_query(event);
    if (reached.ok() && !reached.value()) return false;
    moved = true;
    staged.gates.pop_back();
    device->events.push_back(event);
    if (!reached.ok()) {
      std::erase(gated_, &staged);
      client_.copy_failed(staged, reached.status());
      return false;
    }
  }
  return true;
}

bool Staging::open_gates() {
  bool moved = false;
  for (std::size_t k = 0; k < gated_.size();) {
    Staged& staged = *gated_[k];
    if (gate_open(staged, moved)) {
      std::erase(gated_, &staged);
      staged.open = true;
      moved = true;
      wait_in(staged);
      wait_out(staged);
      client_.opened(staged);
    } else if (k < gated_.size() && gated_[k] == &staged) {
      ++k;
    }
  }
  return moved;
}

// ---- copies -------------------------------------------------------------------------------------

void Staging::activate(Device& device) {
  if (std::ranges::find(active_, &device) == active_.end()) active_.push_back(&device);
}

// Lines up for the next copy to a mirror, on the device where that begins.
void Staging::wait_in(Staged& staged) {
  if (staged.next_in == staged.plan->in.size() + staged.late_in.size()) return;
  Device& device = *staged.memory[staged.cell(true, staged.next_in).memory].device;
  device.lanes[0].waiting.push_back(&staged);
  activate(device);
}

void Staging::wait_out(Staged& staged) {
  if (!staged.open || staged.leaving || staged.next_due == staged.due.size()) return;
  staged.leaving = true;
  Device& device = *staged.memory[0].device;
  device.lanes[1].waiting.push_back(&staged);
  activate(device);
}

void Staging::written(Staged& staged, std::uint64_t offset, std::uint64_t bytes) {
  const std::vector<Cell>& cells = staged.plan->out;
  const std::uint64_t begin = staged.plan->base[static_cast<int>(Space::Output)] + offset;
  auto at = std::ranges::upper_bound(cells, begin, {}, &Cell::offset);
  if (at != cells.begin()) --at;
  for (; at != cells.end() && at->offset < begin + bytes; ++at) {
    const std::uint64_t from = std::max(at->offset, begin);
    const std::uint64_t to = std::min(at->offset + at->bytes, begin + bytes);
    if (from >= to) continue;
    const auto index = static_cast<std::uint32_t>(at - cells.begin());
    staged.left[index] -= to - from;
    if (staged.left[index] == 0) staged.due.push_back(index);
  }
  wait_out(staged);
}

Device* Staging::device_at(std::size_t place) {
  const std::lock_guard lock(mutex_);
  return place < devices_.size() ? devices_[place].get() : nullptr;
}

bool Staging::sees_any() {
  for (std::size_t i = 0; const Device* const device = device_at(i); ++i) {
    if (!device->seen.empty() || !device->opened.empty()) return true;
  }
  return false;
}

void Staging::forget_unused() {
  const auto holders = [&](const transport::ViewPtr& view) {
    long found = 0;
    for (std::size_t i = 0; const Device* const device = device_at(i); ++i) {
      found += std::ranges::count(device->seen, view, &Device::Seen::view);
    }
    return found;
  };
  for (std::size_t i = 0; Device* const device = device_at(i); ++i) {
    std::erase_if(device->seen, [&](const Device::Seen& each) {
      const bool unused = each.view.use_count() == holders(each.view);
      if (unused && each.pinned) device->runtime->host_unregister(device->index, each.view->data);
      return unused;
    });
  }
}

// Whether the device copies from there.
bool Staging::sees(Device& device, const transport::ViewPtr& view) {
  const auto found = std::ranges::find(device.seen, view, &Device::Seen::view);
  if (found != device.seen.end()) return found->pinned;
  device.seen.push_back({view, false});
  const Status status = device.runtime->host_register(device.index, view->data, view->bytes);
  if (!status.ok()) {
    HCCOMM_LOG(Info, device.name, ": a peer's memory is pulled from, not mapped: ", status.text());
  }
  return device.seen.back().pinned = status.ok();
}

bool Staging::fetch(Staged& staged, std::uint64_t begin, std::uint64_t bytes,
                    const transport::ViewPtr& view, const std::byte* data) {
  Device& device = *staged.memory[0].device;
  if (!sees(device, view)) return false;
  const std::vector<Cell>& cells = staged.plan->out;
  if (staged.from.size() < cells.size()) staged.from.resize(cells.size(), nullptr);
  staged.views.push_back(view);
  auto at = std::ranges::lower_bound(cells, begin, {}, &Cell::offset);
  for (; at != cells.end() && at->offset + at->bytes <= begin + bytes; ++at) {
    staged.from[static_cast<std::size_t>(at - cells.begin())] = data + (at->offset - begin);
  }
  ++device.fetched;
  return true;
}

// In pieces that fit what they go through.
void Staging::carry(Staged& staged, bool in, Cell cell) {
  const Device& device = *staged.memory[cell.memory].device;
  const bool pinned = staged.memory[cell.memory].pageable == nullptr;
  const std::uint64_t most = segment_of(device, cell.bytes, pinned);
  const bool rests = staged.next_in == staged.plan->in.size() + staged.late_in.size();
  for (std::uint64_t left = cell.bytes; left > 0; left -= cell.bytes, cell.offset += cell.bytes) {
    cell.bytes = std::min(left, most);
    (in ? staged.late_in : staged.late_out).push_back(cell);
    if (in) continue;
    staged.due.push_back(
        static_cast<std::uint32_t>(staged.plan->out.size() + staged.late_out.size() - 1));
  }
  if (in && rests && staged.open) wait_in(staged);
  if (!in) wait_out(staged);
}

void Staging::stage_after_all(Staged& staged, std::uint64_t bytes, bool sent) {
  const Staged::Memory& memory = staged.memory[0];
  plan_message(staged.message, bytes, sent,
               segment_of(*memory.device, bytes, memory.pageable == nullptr));
  for (const Cell& cell : staged.plan->out) staged.left.push_back(cell.writes);
  staged.available = 0;
  if (staged.open) wait_in(staged);
}

bool Staging::cancel(Staged& staged) {
  staged.over = true;
  std::erase(gated_, &staged);
  for (const auto& [device, event] : staged.gates) device->events.push_back(event);
  staged.gates.clear();
  for (const Staged::Memory& memory : staged.memory) {
    if (memory.device == nullptr) continue;
    for (Lane& lane : memory.device->lanes) std::erase(lane.waiting, &staged);
  }
  return staged.flying == 0;
}

Status Staging::enqueue(Device& device, Lane& lane, Staged& staged, std::uint32_t index) {
  const Cell cell = staged.cell(lane.in, index);
  const Staged::Memory& memory = staged.memory[cell.memory];
  auto event = take_event(device);
  if (!event.ok()) return event.status();
  Copy copy{&staged, index, event.value()};
  std::byte* host = memory.mirror + cell.offset;
  if (const std::byte* const from = lane.in ? nullptr : staged.seen_at(index)) {
    host = const_cast<std::byte*>(from);  // only read
  } else if (memory.pageable != nullptr) {
    copy.block = device.blocks.back();
    device.blocks.pop_back();
    if (!lane.in) std::memcpy(copy.block, host, cell.bytes);
    host = copy.block;
  }
  const device::Place place{memory.place.handle, memory.place.offset + cell.offset};
  Status status;
  if (lane.in) {
    status = device.runtime->copy_out(lane.stream, host, place, cell.bytes);
  } else if (cell.sums) {
    const device::Place& from = staged.memory[cell.source_memory].place;
    device::Reduction how = staged.plan->reduction;
    how.host_first = cell.mirror_first;
    status = device.runtime->reduce_in(lane.stream, place, {from.handle, from.offset + cell.source},
                                       host, cell.bytes / staged.plan->element_bytes, how);
    ++device.sums;
  } else if (cell.across) {
    status = device.runtime->copy_across(lane.stream, place, {host, 0}, cell.bytes);
  } else {
    status = device.runtime->copy_in(lane.stream, place, host, cell.bytes);
  }
  if (status.ok() && checks_) {
    HCCOMM_CHECK(cell.bytes <= device.proof_bytes, "copies that are checked fit a proof");
    copy.again = device.proofs.back();
    device.proofs.pop_back();
    status = device.runtime->copy_out(lane.stream, copy.again, place, cell.bytes);
  }
  if (status.ok()) status = device.runtime->event_record(copy.event, lane.stream);
  if (!status.ok()) {
    device.events.push_back(copy.event);
    if (copy.block != nullptr) device.blocks.push_back(copy.block);
    if (copy.again != nullptr) device.proofs.push_back(copy.again);
    return status;
  }
  if (lane.flying.empty()) {
    lane.busy_since = Clock::now();
    lane.busy_bytes = lane.busy_copies = 0;
    lane.busy_others = false;
  }
  lane.busy_bytes += cell.bytes;
  ++lane.busy_copies;
  lane.busy_others = lane.busy_others || cell.sums || cell.across;
  lane.flying_bytes += cell.bytes;
  lane.flying.push_back(copy);
  ++staged.flying;
  return {};
}

// Enough in flight to keep the lane busy until the next look, little enough that a newcomer waits
// not long.
static bool has_room(const Lane& lane) {
  constexpr std::uint64_t kBytes = 8 << 20;
  constexpr std::size_t kCopies = 64;
  return lane.flying.size() < 2 || (lane.flying_bytes < kBytes && lane.flying.size() < kCopies);
}

bool Staging::pump(Device& device, Lane& lane) {
  bool moved = false;
  while (!lane.waiting.empty() && has_room(lane)) {
    Staged& staged = *lane.waiting.front();
    const std::uint32_t index = lane.in ? staged.next_in : staged.due[staged.next_due];
    const Cell cell = staged.cell(lane.in, index);
    const bool through_block = staged.memory[cell.memory].pageable != nullptr &&
                               (lane.in || staged.seen_at(index) == nullptr);
    if (through_block && device.blocks.empty()) break;
    if (checks_ && device.proofs.empty()) break;
    lane.waiting.pop_front();
    moved = true;
    const Status status = enqueue(device, lane, staged, index);
    if (!status.ok()) {
      client_.copy_failed(staged, status);
    } else if (lane.in) {
      ++staged.next_in;
      wait_in(staged);
    } else {
      ++staged.next_due;
      staged.leaving = false;
      wait_out(staged);
    }
  }
  return moved;
}

// What a stretch of copies without a gap tells of latency and rate. The driver looks late rather
// than early, so the best stretch is the truest; old ones fade, slowly, for a driver that is busy
// with the wire looks late at many in a row.
void Staging::learn(Lane& lane) {
  const double seconds = Seconds(Clock::now() - lane.busy_since).count();
  if (seconds <= 0 || lane.busy_others) return;
  if (lane.busy_copies == 1 && lane.busy_bytes <= kSmallCopy) {
    lane.latency = std::min(seconds, lane.measured_latency ? lane.latency * kFade : seconds);
    lane.measured_latency = true;
  }
  if (lane.busy_bytes >= kLargeStretch) {
    const double rate = static_cast<double>(lane.busy_bytes) / seconds;
    lane.rate = std::max(rate, lane.measured_rate ? lane.rate / kFade : rate);
    lane.measured_rate = true;
  }
}

// A copy that is over, as HCCOMM_INTEGRITY wants it.
Status Staging::proved(const Device& device, const Lane& lane, const Copy& copy) {
  if (copy.again == nullptr || copy.staged->over) return {};
  const Cell cell = copy.staged->cell(lane.in, copy.cell);
  const std::byte* host = lane.in ? nullptr : copy.staged->seen_at(copy.cell);
  if (host == nullptr) host = copy.block;
  if (host == nullptr) host = copy.staged->memory[cell.memory].mirror + cell.offset;
  return engine::proved({device.name, lane.in, cell.offset}, host, copy.again, cell.bytes);
}

void Staging::land(Device& device, Lane& lane, Copy copy, const Status& status) {
  Staged& staged = *copy.staged;
  const Cell cell = staged.cell(lane.in, copy.cell);
  const bool planned = copy.cell < (lane.in ? staged.plan->in : staged.plan->out).size();
  lane.flying_bytes -= cell.bytes;
  if (lane.flying.empty() && status.ok()) learn(lane);
  device.events.push_back(copy.event);
  if (copy.block != nullptr) {
    std::byte* const mirror = staged.memory[cell.memory].mirror + cell.offset;
    if (lane.in && status.ok() && !staged.over) std::memcpy(mirror, copy.block, cell.bytes);
    device.blocks.push_back(copy.block);
  }
  if (copy.again != nullptr) device.proofs.push_back(copy.again);
  --staged.flying;
  if (staged.over) {
    if (staged.flying > 0) return;
    if (staged.operation == nullptr) {
      recycle(staged);
    } else {
      client_.copies_over(staged);
    }
  } else if (!status.ok()) {
    client_.copy_failed(staged, status);
  } else if (cell.across) {
    client_.fetched(staged, cell);
  } else if (!planned) {
    client_.carried(staged, lane.in, cell);
  } else if (lane.in) {
    ++staged.landed_in;
    staged.available = cell.offset + cell.bytes;
    client_.copied_in(staged, cell);
  } else {
    const bool last = ++staged.landed_out == staged.plan->out.size();
    if (staged.seen_at(copy.cell) != nullptr) {
      client_.fetched(staged, cell);
    } else if (last) {
      client_.copied_out(staged);
    }
  }
}

bool Staging::poll(Device& device, Lane& lane) {
  bool moved = false;
  while (!lane.flying.empty()) {
    Result<bool> here = device.runtime->event_query(lane.flying.front().event);
    if (here.ok() && !here.value()) break;
    const Copy copy = lane.flying.front();
    lane.flying.pop_front();
    moved = true;
    Status status = here.ok() ? Status() : here.status();
    if (status.ok()) status = proved(device, lane, copy);
    land(device, lane, copy, status);
  }
  return moved;
}

bool Staging::progress() {
  if (progressing_) return false;  // a client called from below: the outer call goes on
  progressing_ = true;
  const struct Ends {
    bool& flag;
    ~Ends() { flag = false; }
  } ends{progressing_};  // also where memory is refused in a callback
  bool moved = !gated_.empty() && open_gates();
  for (std::size_t k = 0; k < active_.size();) {
    Device& device = *active_[k];
    bool rests = true;
    for (Lane& lane : device.lanes) {
      if (poll(device, lane)) moved = true;
      if (pump(device, lane)) moved = true;
    }
    for (const Lane& lane : device.lanes) {
      rests = rests && lane.flying.empty() && lane.waiting.empty();
    }
    if (rests) {
      active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(k));
    } else {
      ++k;
    }
  }
  if (moved) nap_us_ = kShortestNap;
  return moved;
}

std::chrono::nanoseconds Staging::nap() {
  const std::chrono::nanoseconds nap = std::chrono::microseconds(nap_us_);
  nap_us_ = std::min(2 * nap_us_, active_.empty() ? kLongestNap : kFlyingNap);
  return nap;
}

}  // namespace hccomm::engine
