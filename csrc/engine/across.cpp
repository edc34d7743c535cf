// SPDX-License-Identifier: Apache-2.0
//
// Messages from device to device, of one vendor and in one host, by the runtime's own copies (IPC).
// A sender whose data nothing has to change offers the memory they lie in; the receiver's device
// copies from there to the place where they belong, and tells when it has. So they are not staged,
// and both steps run in place (StagePlan::in_place), as those do that cards move. Each end decides
// for itself: the sender may offer where the receiver cannot take, which then asks for frames.
#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using wire::Type;

void not_across(Channel& channel, const std::string& why) {
  if (channel.devices.why_not.empty()) channel.devices.why_not = why;
}

// The receiver does not take it from the device.
void declined(Channel& channel, const Header& header, const std::string& why) {
  if (channel.devices.messages > 0) --channel.devices.messages;
  if (!why.empty()) {
    not_across(channel, why);
  } else if ((header.flags & wire::kOnDevice) == 0) {
    channel.devices.offering.let_down();
  }
}

// What devices have come into use here, the peers of the group learn with the first operation: by
// the second they may offer us memory of theirs, and we them ours.
void Engine::tell_devices(const Context& context) {
  const std::vector<std::string> ours = staging_.passports();
  for (Channel* const channel : context.channels) {
    if (channel == nullptr || !channel->up() || !channel->pulls()) continue;
    Header header;
    header.type = Type::Devices;
    if (!std::exchange(channel->devices.said, true)) channel->send_text(header, kTakesGrowing);
    for (; channel->devices.told < ours.size(); ++channel->devices.told) {
      channel->send_text(header, ours[channel->devices.told]);
    }
  }
}

// Tells the receiver where the bytes lie. Requires: the caller's stream has reached the call.
void Engine::offer_device(Operation& op, std::uint32_t id, Channel& channel) {
  const Cell cell = cell_of(op, id);
  const Staged::Memory& memory = op.staged->memory[cell.memory];
  Header ready = message_of(op, id);
  if (op.kind == OperationKind::Collective) {
    ready.type = Type::Ready;
    op.steps[id].shared = true;
  } else {
    ready.type = Type::TaggedHere;
    ready.fingerprint = cell.bytes;
  }
  ready.flags = wire::kOnDevice;
  ready.address = memory.exported.offset + cell.offset;
  ++channel.devices.messages;
  channel.send_text(ready, offer_of(*memory.device, memory.exported));
}

// Has the device copy what the step receives from the peer's, where its memory can be opened; else
// it shall come in frames: for good (with the reason), for a while, or (kOnDevice) this once.
void Engine::start_across(Channel& channel, Operation& op, std::uint32_t id, std::uint64_t offset,
                          const std::string& offer) {
  std::string why;
  bool next_time = false;
  const int peer = op.kind == OperationKind::Collective ? op.recipe->plan.steps[id].peer : op.peer;
  Device* const device = op.staged != nullptr ? op.staged->memory[0].device : nullptr;
  const bool alike = device != nullptr && device->family == offer.c_str();
  if (alike && op.staged->plan->runs_in_place(id)) {
    const Cell cell = cell_of(op, id);
    auto view = staging_.open_abroad(*device, &channel, offer);
    const bool fits =
        view.ok() && offset <= view.value()->bytes && cell.bytes <= view.value()->bytes - offset;
    if (fits) {
      ++channel.devices.messages;
      channel.devices.expecting.well();
      return staging_.take_across(*op.staged, cell, view.value(), offset);
    }
    why = view.ok() ? "what was offered ends outside of its allocation" : view.status().text();
    not_across(channel, why);
  } else if (alike && !op.staged->might_open.has(peer, cell_of(op, id).bytes)) {
    next_time = true;
    channel.devices.expecting.left = 0;
  }
  op.here = 0;
  Header wanted = message_of(op, id);
  channel.link()->settle(wanted);
  wanted.flags = next_time ? wire::kOnDevice : 0;
  wanted.type = op.kind == OperationKind::Collective ? Type::Stream : Type::TaggedOpen;
  channel.send_text(wanted, why);
}

std::uint64_t Engine::went_across(const Context& context, int rank, std::string& why_not) {
  Guard guard(*this);
  const Channel* const channel = context.channels[static_cast<std::size_t>(rank)];
  if (channel == nullptr || !channel->up() || !channel->pulls()) return 0;
  why_not = channel->devices.why_not;
  if (why_not.empty() && channel->devices.theirs.empty()) {
    why_not = "that rank has no device in use whose runtime opens memory of others";
  }
  return channel->devices.messages;
}

}  // namespace hccomm::engine
