// SPDX-License-Identifier: Apache-2.0
//
// What staging does before an operation begins: devices are opened at their first use, mirrors are
// leased, the stage plan is made or found. All of it without the engine's lock, since loading a
// device or pinning memory may take long.
#include <algorithm>
#include <bit>
#include <cmath>

#include "engine/staging.hpp"

namespace hccomm::engine {

using plan::Space;

static constexpr std::uint64_t kSmallestSegment = 64 << 10, kLargestSegment = 16 << 20;
static constexpr double kPieceCost = 60e-6;  // seconds: two looks at events, a message, its reply
static constexpr std::uint64_t kBlock = 256 << 10;  // what copies of unpinned mirrors go through
static constexpr std::uint64_t kBlocks = 4;
static constexpr std::uint64_t kProof = 1 << 20, kProofs = 8;  // what copies are read again into
static constexpr std::uint64_t kCongruence = 256;  // mirror and device address agree modulo this
static constexpr std::size_t kMostStagePlans = 8;  // kept per recipe

// ---- devices ------------------------------------------------------------------------------------

void Staging::close(Device& device) {
  for (const Device::Seen& each : device.seen) {
    if (each.pinned) device.runtime->host_unregister(device.index, each.view->data);
  }
  device.opened.clear();
  for (const device::Event& each : device.events) device.runtime->event_destroy(each);
  for (const Lane& lane : device.lanes) {
    if (lane.stream.native != nullptr) device.runtime->stream_destroy(lane.stream);
  }
}

Result<Device*> Staging::device_of(const Where& where) {
  const auto find = [&]() -> Device* {
    const std::lock_guard lock(mutex_);
    for (const auto& each : devices_) {
      if (each->runtime == where.runtime && each->index == where.index) return each.get();
    }
    return nullptr;
  };
  if (Device* found = find()) return found;
  const std::lock_guard opening(opening_);
  if (Device* found = find()) return found;
  auto made = open(where);
  if (!made.ok()) return made.status();
  const std::lock_guard lock(mutex_);
  devices_.push_back(std::move(made).value());
  return devices_.back().get();
}

Result<std::unique_ptr<Device>> Staging::open(const Where& where) const {
  auto device = std::make_unique<Device>();
  device->runtime = where.runtime;
  device->index = where.index;
  device->name = text(where.name, ":", where.index);
  device->pool = std::make_unique<PinnedPool>(*where.runtime, where.index, pool_bytes_, cards_);
  device->lanes[0].in = true;
  device->why_no_sums = where.runtime->lacks(device::Feature::Reduce);
  issue_passport(*device, where.name);
  Status status;
  for (Lane& lane : device->lanes) {
    auto stream = where.runtime->stream_create(where.index);
    if (!stream.ok()) status = stream.status();
    if (!status.ok()) break;
    lane.stream = stream.value();
  }
  device->block_bytes = std::min(kBlock, pool_bytes_ / (2 * kBlocks) / 4096 * 4096);
  if (checks_) {
    device->proof_bytes =
        std::min(kProof, std::max<std::uint64_t>(pool_bytes_ / (4 * kProofs) / 4096, 1) * 4096);
  }
  if (status.ok()) {
    auto reserve =
        device->pool->lease(kBlocks * device->block_bytes + kProofs * device->proof_bytes);
    if (reserve.ok()) device->reserve = reserve.value();
    if (!reserve.ok()) status = reserve.status();
  }
  if (!status.ok()) {
    close(*device);
    return Status(status.code(), text(device->name, " cannot be used: ", status.text()));
  }
  for (std::uint64_t k = 0; k < kBlocks; ++k) {
    device->blocks.push_back(device->reserve.data + k * device->block_bytes);
  }
  for (std::uint64_t k = 0; checks_ && k < kProofs; ++k) {
    device->proofs.push_back(device->reserve.data + kBlocks * device->block_bytes +
                             k * device->proof_bytes);
  }
  return device;
}

std::uint64_t Staging::segment_of(const Device& device, std::uint64_t bytes, bool pinned) const {
  const std::uint64_t most = checks_ ? device.proof_bytes : kLargestSegment;
  if (!pinned) return std::min(device.block_bytes, most);
  if (segment_bytes_ != 0) return checks_ ? std::min(segment_bytes_, most) : segment_bytes_;
  double latency = 0, per_byte = 0;
  for (const Lane& lane : device.lanes) {
    latency = std::max(latency, lane.latency + kPieceCost);
    per_byte += 1 / lane.rate;
  }
  const double size = static_cast<double>(bytes);
  const double best = std::min(std::sqrt(size * latency / per_byte), size / 2);
  const auto whole = static_cast<std::uint64_t>(best * 1.414);
  return std::min(most, std::clamp(std::bit_floor(std::max<std::uint64_t>(whole, 1)),
                                   kSmallestSegment, kLargestSegment));
}

// How much peers on this machine and this device copy from each other's staging memory.
static std::string report_views(const Device& device) {
  const std::string why = device.pool->why_private();
  return text(device.fetched, " messages copied from peers' memory",
              why.empty() ? "" : ", which do not see ours: ", why);
}

std::vector<Staging::Report> Staging::report() {
  const std::lock_guard lock(mutex_);
  std::vector<Report> all;
  for (const auto& each : devices_) {
    const auto figures = [](const Lane& lane) {
      return text(std::llround(lane.rate / 1e8) / 10.0, " GB/s, ",
                  std::llround(lane.latency * 1e7) / 10.0, " us");
    };
    all.push_back(
        {each->name, each->runtime->library(),
         text("to the host ", figures(each->lanes[0]), "; to the device ", figures(each->lanes[1]),
              "; ", each->pool->pinned_bytes() >> 10, " KiB pinned of ", pool_bytes_ >> 10, "; ",
              each->bounced, " buffers found the pool full; ", report_views(*each), "; ",
              report_ipc(*each), "; ", each->in_place, " reached in place by cards",
              each->why_staged.empty() ? "" : " (not now: " + each->why_staged + ")", "; ",
              report_sums(*each)),
         each->in_place > 0 && each->why_staged.empty()});
  }
  return all;
}

// ---- one operation's share ----------------------------------------------------------------------

Staged& Staging::allocate() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) free_.push_back(&storage_.emplace_back());
  Staged& staged = *free_.back();
  free_.pop_back();
  return staged;
}

static std::uintptr_t address_of(const device::Place& place) {
  return reinterpret_cast<std::uintptr_t>(place.handle) + place.offset;
}

Status Staging::locate(Staged& staged, int memory, const Where& where) {
  auto found = device_of(where);
  if (!found.ok()) return found.status();
  Staged::Memory& target = staged.memory[memory];
  target.device = found.value();
  target.place = where.place;
  target.opaque = where.opaque;
  target.stream = {where.index, 0, where.stream};
  return {};
}

// Where nothing is copied, as far as is known, ordinary memory that nobody touches costs nothing.
void Staging::mirror(Staged& staged, int memory, std::uint64_t bytes, bool pinned) {
  Staged::Memory& target = staged.memory[memory];
  Device& device = *target.device;
  const std::uint64_t congruence = std::max(kCongruence, device.runtime->alignment());
  const std::uint64_t skew = address_of(target.place) % congruence;
  if (pinned) {
    auto lease = device.pool->lease(skew + bytes);
    if (lease.ok()) {
      target.lease = lease.value();
      target.mirror = target.lease.data + skew;
      return;
    }
    // The pool is full, and whoever holds it may wait for us: so without it, through the blocks.
    ++device.bounced;
  }
  target.pageable = std::make_unique_for_overwrite<std::byte[]>(bytes);
  target.mirror = target.pageable.get();
}

// ---- in place -----------------------------------------------------------------------------------

Result<transport::DeviceMemory> for_cards(const Where& where, std::uint64_t bytes) {
  if (where.opaque) return Status(Code::Unavailable, "handles are no addresses");
  device::Runtime* const runtime = where.runtime;
  transport::DeviceMemory told;
  told.kind = where.name;
  told.index = where.index;
  told.fabric_interface = runtime->fabric_interface();
  told.data = static_cast<std::byte*>(where.place.handle) + where.place.offset;
  told.bytes = bytes;
  if (runtime->lacks(device::Feature::Dmabuf).empty()) {
    told.dmabuf = [runtime, index = told.index](std::byte* pages, std::uint64_t length) {
      return runtime->dmabuf(index, {pages, 0}, length);
    };
  }
  return told;
}

// Tells the cards of a buffer. False: they do not reach it.
bool Staging::enroll(Staged& staged, int memory, std::uint64_t bytes) {
  Staged::Memory& target = staged.memory[memory];
  if (target.enrolled.bytes != 0) return true;
  const std::string_view name = target.device->name;
  const Where where{
      target.device->runtime,        target.device->index, target.opaque, target.place, nullptr,
      name.substr(0, name.find(':'))};
  Result<transport::DeviceMemory> told = for_cards(where, bytes);
  const Status status = told.ok() ? cards_.enroll(told.value()) : told.status();
  const std::lock_guard lock(mutex_);
  if (status.ok()) {
    target.enrolled = std::move(told).value();
    ++target.device->in_place;
    target.device->why_staged.clear();
  } else {
    target.device->why_staged = status.text();
  }
  return status.ok();
}

void Staging::expel(Staged& staged) {
  for (Staged::Memory& memory : staged.memory) {
    if (memory.enrolled.bytes != 0) cards_.expel(memory.enrolled);
    memory.enrolled = {};
    memory.exported.handle.clear();
  }
}

// The plan where some of its steps run in place; nullptr where none can. Ways that this memory
// cannot take leave the key.
std::shared_ptr<const StagePlan> Staging::place(Staged& staged, const Recipe& recipe, StageKey& key,
                                                const std::uint64_t* bytes) {
  if (!worth_placing(key.cards, std::max(bytes[0], bytes[1]))) key.cards = {};
  if (!recipe.moves) key.opened = key.opens = {};
  while (key.places_any()) {
    auto plan = stage_plan_of(recipe, key);
    Reach* closed = nullptr;  // a way that turned out to be
    for (const std::uint32_t id : plan->placed) {
      const plan::Step& step = recipe.plan.steps[id];
      const bool sends = step.kind == plan::Kind::Send;
      const bool by_card = std::ranges::binary_search(key.cards.ranks, step.peer);
      const auto at = static_cast<int>(plan->memory_of(sends ? step.src.space : step.dst.space));
      const bool open =
          by_card ? enroll(staged, at, bytes[at]) : !sends || export_memory(staged, at, bytes[at]);
      if (open) continue;
      closed = by_card ? &key.cards : &key.opened;
      break;
    }
    if (closed == nullptr && !plan->placed.empty()) return plan;
    expel(staged);
    if (closed == nullptr) break;
    *closed = {};
  }
  key.cards = key.opened = key.opens = {};
  return nullptr;
}

static bool copies(const StagePlan& plan, std::uint32_t memory) {
  const auto is_of = [&](const Cell& cell) { return cell.memory == memory; };
  return std::ranges::any_of(plan.in, is_of) || std::ranges::any_of(plan.out, is_of);
}

// ---- sums
// ----------------------------------------------------------------------------------------

// Whether it is worth asking: all lies on one device that offers sums, and the mirrors are pinned.
static bool may_sum(const Staged& staged) {
  const Staged::Memory &output = staged.memory[0], &input = staged.memory[1];
  return output.device != nullptr && output.device->why_no_sums.empty() &&
         output.pageable == nullptr && (input.device == nullptr || input.device == output.device);
}

// Made at the first call that asks for it.
const SumTrial& Staging::trial_of(Device& device, const Recipe& recipe,
                                  const device::Reduction& how) {
  const auto key = std::pair(recipe.type, recipe.op);
  const auto find = [&]() -> const SumTrial* {
    const std::lock_guard lock(mutex_);
    const auto found = device.trials.find(key);
    return found != device.trials.end() ? &found->second : nullptr;
  };
  if (const SumTrial* found = find()) return *found;
  const std::lock_guard opening(opening_);
  if (const SumTrial* found = find()) return *found;
  SumTrial made = try_sums(*device.runtime, device.index, how, recipe.reduce, recipe.element_bytes);
  const std::lock_guard lock(mutex_);
  return device.trials.emplace(key, std::move(made)).first->second;
}

// Whether the device shall make the sums that it can.
bool Staging::sums_pay(const Staged& staged, const Recipe& recipe, const StagePlan& plan) {
  Device& device = *staged.memory[0].device;
  const Cell& first = *std::ranges::find(plan.out, true, &Cell::sums);
  const auto place_of = [&](std::uint32_t memory, std::uint64_t offset) -> device::Place {
    return {staged.memory[memory].place.handle, staged.memory[memory].place.offset + offset};
  };
  std::string why =
      device.runtime->lacks_reduction(device.index, place_of(first.memory, first.offset),
                                      place_of(first.source_memory, first.source), plan.reduction);
  const SumTrial* const trial = why.empty() ? &trial_of(device, recipe, plan.reduction) : nullptr;
  const bool there = trial != nullptr && trial->why_not.empty() &&
                     (sums_ == Sums::Device || trial->quicker(first.bytes));
  const std::lock_guard lock(mutex_);
  device.last_sums = {trial, there, std::move(why)};
  return there;
}

std::string Staging::report_sums(const Device& device) const {
  if (!device.why_no_sums.empty()) return "sums on the host: " + device.why_no_sums;
  if (checks_) return "sums on the host: copies are checked (HCCOMM_INTEGRITY)";
  if (sums_ == Sums::Host) return "sums on the host: HCCOMM_STAGING_SUMS=host";
  const auto& [trial, there, why] = device.last_sums;
  if (trial == nullptr && why.empty()) return "no sums yet that end on it";
  std::string words = "sums on the host: ";
  if (trial == nullptr || !trial->why_not.empty()) {
    words += trial == nullptr ? why : trial->why_not;
  } else {
    words = text(there ? "sums that end on it made there" : "sums on the host, quicker in a trial",
                 " (", trial->text(), ")");
  }
  return text(words, "; ", device.sums, " pieces summed there so far");
}

// ---- one operation's share, made ----------------------------------------------------------------

// Whether Input and Output are parts of one memory; `shift` says how they lie.
static bool one_memory(const Recipe& recipe, const Buffers& buffers, std::int64_t& shift) {
  const Where& output = buffers.where[static_cast<int>(Space::Output)];
  const Where& input = buffers.where[static_cast<int>(Space::Input)];
  if (output.runtime != input.runtime || output.index != input.index) return false;
  if (input.opaque && output.place.handle != input.place.handle) return false;
  shift = static_cast<std::int64_t>(address_of(input.place) - address_of(output.place));
  const auto output_bytes = static_cast<std::int64_t>(recipe.extent[0]);
  const auto input_bytes = static_cast<std::int64_t>(recipe.extent[1]);
  return shift < output_bytes && -shift < input_bytes;
}

Result<Staged*> Staging::prepare(const Recipe& recipe, const Buffers& buffers,
                                 const Reaches& reaches) {
  Staged& staged = allocate();
  StageKey key;
  key.cards = reaches.cards;
  key.opened = reaches.opened;
  key.opens = reaches.opens;
  staged.might_open = recipe.moves ? reaches.opens : Reach();
  key.views = reaches.views;
  const auto has = [&](int space) {
    return buffers.where[space].runtime != nullptr && recipe.extent[space] != 0;
  };
  key.staged[0] = has(0);
  key.staged[1] = has(1);
  key.one = has(0) && has(1) && one_memory(recipe, buffers, key.shift);
  if (!key.one) key.shift = 0;
  const bool input_first = key.one && key.shift < 0;
  std::uint64_t bytes[2] = {recipe.extent[0], recipe.extent[1]};
  if (key.one) {
    const auto shift = static_cast<std::uint64_t>(std::abs(key.shift));
    bytes[0] =
        input_first ? std::max(bytes[1], shift + bytes[0]) : std::max(bytes[0], shift + bytes[1]);
    key.staged[1] = false;
  }
  key.segment = kLargestSegment;
  for (const int memory : {0, 1}) {
    if (!key.staged[memory]) continue;
    const Where& where = buffers.where[memory == 0 && input_first ? 1 : memory];
    const Status status = locate(staged, memory, where);
    if (status.ok()) continue;
    recycle(staged);
    return status;
  }
  const auto placed = place(staged, recipe, key, bytes);
  for (const std::uint32_t memory : {0u, 1u}) {
    if (!key.staged[memory]) continue;
    mirror(staged, static_cast<int>(memory), bytes[memory],
           placed == nullptr || copies(*placed, memory));
    const Staged::Memory& made = staged.memory[memory];
    key.segment =
        std::min(key.segment, segment_of(*made.device, bytes[memory], made.pageable == nullptr));
  }
  if (key.one) staged.other_stream = {buffers.where[1].index, 0, buffers.where[1].stream};
  key.sums = sums_ != Sums::Host && may_sum(staged);
  staged.plan = stage_plan_of(recipe, key);
  if (!staged.plan->summed.empty() && !sums_pay(staged, recipe, *staged.plan)) {
    key.sums = false;
    staged.plan = stage_plan_of(recipe, key);
  }
  return &staged;
}

std::shared_ptr<const StagePlan> Staging::stage_plan_of(const Recipe& recipe, const StageKey& key) {
  const auto find = [&]() -> std::shared_ptr<const StagePlan> {
    for (const auto& each : recipe.stages) {
      if (each->key == key) return each;
    }
    return nullptr;
  };
  {
    const std::lock_guard lock(mutex_);
    if (auto found = find()) return found;
  }
  auto made = make_stage_plan(recipe, key);
  const std::lock_guard lock(mutex_);
  if (recipe.stages.size() >= kMostStagePlans) recipe.stages.clear();
  recipe.stages.push_back(made);
  return made;
}

Result<Staged*> Staging::prepare(const Where& where, std::uint64_t bytes, bool sent,
                                 const Reaches& reaches) {
  Staged& staged = allocate();
  const Status status = locate(staged, 0, where);
  if (!status.ok()) {
    recycle(staged);
    return status;
  }
  const bool placed = (worth_placing(reaches.cards, bytes) && enroll(staged, 0, bytes)) ||
                      (sent ? !reaches.opened.ranks.empty() && export_memory(staged, 0, bytes)
                            : !reaches.opens.ranks.empty());
  mirror(staged, 0, bytes, !placed);
  const Staged::Memory& made = staged.memory[0];
  plan_message(staged.message, placed ? 0 : bytes, sent,
               segment_of(*made.device, bytes, made.pageable == nullptr));
  if (placed) staged.message.in_place = {1};
  staged.message.bytes[0] = bytes;
  // No owner: the message's plan lives as long as its Staged.
  staged.plan = std::shared_ptr<const StagePlan>(std::shared_ptr<void>(), &staged.message);
  return &staged;
}

void Staging::recycle(Staged& staged) {
  expel(staged);
  for (Staged::Memory& memory : staged.memory) {
    if (memory.device != nullptr) memory.device->pool->give_back(memory.lease);
    memory.pageable.reset();
    memory.device = nullptr;
    memory.mirror = nullptr;
  }
  staged.operation = nullptr;
  staged.plan.reset();
  staged.other_stream = {};
  staged.due.clear();
  staged.late_in.clear();
  staged.late_out.clear();
  staged.from.clear();
  staged.views.clear();
  staged.might_open.ranks.clear();
  staged.next_in = staged.landed_in = staged.next_due = staged.landed_out = 0;
  staged.available = 0;
  staged.open = staged.over = staged.leaving = staged.begun = staged.unanswered = false;
  const std::lock_guard lock(mutex_);
  free_.push_back(&staged);
}

}  // namespace hccomm::engine
