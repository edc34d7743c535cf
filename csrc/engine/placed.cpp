// SPDX-License-Identifier: Apache-2.0
//
// Messages between a device and the cards, without a mirror (StagePlan::in_place). Each end decides
// for itself. Both may be let down: a sender whose receiver has told no place, a receiver whose
// sender goes through the link's own memory; then the bytes are copied all the same, as late copies
// of staging, and the step counts them once they are where they belong.
#include <algorithm>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using plan::Kind;
using plan::Step;
using wire::Type;

static constexpr std::size_t kLeastAcross = 64 << 10;  // bytes: below, staged in one hop or two

// Whether the peer is able to open memory of that device.
static bool opens(const Channel& channel, const Device& device) {
  if (!channel.devices.why_not.empty()) return false;
  const auto fits = [&](const std::string& passport) {
    return passport.starts_with(device.family + " ") &&
           passport.find(" " + device.bus + " ") != std::string::npos;
  };
  return std::ranges::any_of(channel.devices.theirs, fits);
}

// Requires: the lock is not held.
Reaches Engine::reach(Context& context, std::uint64_t bytes, const Where& one, const Where& other) {
  Reaches found;
  const bool worth_placing = reaches_devices_ && bytes != 0 && bytes >= settings_.in_place_bytes;
  if (!worth_placing && !pulls_any_) return found;
  const Where& where = one.runtime != nullptr ? one : other;
  const bool together =
      other.runtime == nullptr || (other.runtime == where.runtime && other.index == where.index);
  const Device* const mine = together ? staging_.exporter(where) : nullptr;
  Guard guard(*this);
  for (int rank = 0; rank < context.size; ++rank) {
    const Channel* const channel = context.channels[static_cast<std::size_t>(rank)];
    if (channel == nullptr || !channel->up()) continue;
    const bool placed = worth_placing && channel->link()->reaches_devices();
    if (!placed && !channel->pulls()) continue;
    Reach& way = placed ? found.cards : found.views;
    way.ranks.push_back(rank);
    way.above = std::max<std::uint64_t>(way.above, channel->eager_bytes());
    if (placed || mine == nullptr || !opens(*channel, *mine)) continue;
    Channel::Devices& devices = context.channels[static_cast<std::size_t>(rank)]->devices;
    const auto add = [&](Reach& reach, Rest& rest) {
      if (!rest.over()) return;
      reach.ranks.push_back(rank);
      reach.above = std::max({reach.above, channel->eager_bytes(), kLeastAcross});
    };
    add(found.opened, devices.offering);
    add(found.opens, devices.expecting);
  }
  call_back(guard);
  return found;
}

Cell cell_of(const Operation& op, std::uint32_t id) {
  if (op.kind != OperationKind::Collective) return {.bytes = op.bytes};
  const Step& step = op.recipe->plan.steps[id];
  const plan::Slice& slice = step.kind == Kind::Send ? step.src : step.dst;
  const StagePlan& plan = *op.staged->plan;
  return {
      .offset = plan.base[static_cast<int>(slice.space)] + slice.offset * op.recipe->element_bytes,
      .bytes = slice.count * op.recipe->element_bytes,
      .memory = plan.memory_of(slice.space),
      .first = id};
}

void Engine::send_placed(Operation& op, std::uint32_t id, Channel& channel, const Header& header) {
  Staged& staged = *op.staged;
  const Cell cell = cell_of(op, id);
  const bool message = op.kind != OperationKind::Collective;
  if (channel.pulls() && (message || !op.steps[id].announced)) {
    return offer_device(op, id, channel);
  }
  const std::uint64_t* const available = message ? &staged.available : nullptr;
  if (channel.link()->reaches_devices() && channel.link()->awaited(header, cell.bytes)) {
    if (message && staged.open) staged.available = op.bytes;
    channel.send_bulk({header, staged.on_device(cell.memory, cell.offset), cell.bytes, 0, &op, id,
                       available, true});
  } else if (message) {
    staging_.stage_after_all(staged, op.bytes, true);
    channel.send_bulk({header, op.data, op.bytes, 0, &op, id, available});
  } else {
    staging_.carry(staged, true, cell);
  }
}

// A part of a message has come to the device itself.
void Engine::landed(Context& context, int source, const Header& header) {
  if (header.type == Type::TaggedData) {
    const auto found = context.matching.receiving.find({source, header.index});
    if (found == context.matching.receiving.end()) return;
    Operation& op = *found->second;
    op.moved += header.length;
    if (op.moved == op.bytes) end(op);
    return;
  }
  Operation* const op = context.find(header.sequence);
  const std::int64_t step = op == nullptr ? -1 : recv_step(*op, source, header.index);
  if (step < 0) return;
  const auto id = static_cast<std::uint32_t>(step);
  if (fits(*op, id, header, source)) came(*op, id, header.length);
}

// ---- what staging tells -------------------------------------------------------------------------

// The caller's streams have reached the call: what runs in place may begin.
void Engine::opened(Staged& staged) {
  Operation& op = *staged.operation;
  if (op.kind == OperationKind::Collective) {
    const std::vector<std::uint32_t>& placed = staged.plan->placed;
    if (placed.empty()) return;
    for (std::size_t k = placed.size(); k > 0; --k) {
      if (--op.steps[placed[k - 1]].waiting == 0) ready_.emplace_back(&op, placed[k - 1]);
    }
    if (!staged.begun) return;  // begin_collective() goes on
    drain();
    if (op.running()) issue_opens(op);
    drain();
  } else if (!staged.plan->runs_in_place(0)) {
    return;
  } else if (op.kind == OperationKind::Send) {
    staged.available = op.bytes;
    Channel* const channel = op.context->channels[static_cast<std::size_t>(op.peer)];
    if (op.asked) return offer_device(op, 0, *channel);
    if (channel != nullptr && channel->up()) channel->pump();
  } else if (staged.unanswered) {
    answer(op);
  }
}

// A late copy has ended.
void Engine::carried(Staged& staged, bool in, const Cell& cell) {
  Operation& op = *staged.operation;
  if (op.kind != OperationKind::Collective) {  // its sends are staged as others are
    op.moved += cell.bytes;
    if (op.moved == op.bytes) end(op);
    return;
  }
  if (!in) return came(op, cell.first, cell.bytes);
  StepState& state = op.steps[cell.first];
  state.value += cell.bytes;
  const Step& step = op.recipe->plan.steps[cell.first];
  if (state.value != op.bytes_of(step)) return;
  Header header = message_of(op, cell.first);
  Channel& channel = *op.context->channels[static_cast<std::size_t>(step.peer)];
  channel.send_bulk({header, op.at(step.src), state.value, 0, &op, cell.first});
}

}  // namespace hccomm::engine
