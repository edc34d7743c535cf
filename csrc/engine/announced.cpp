// SPDX-License-Identifier: Apache-2.0
//
// Large point-to-point messages between their announcement and their data: who receives asks for
// them. Over a link that writes in place (ofi) to say where a message shall lie is to ask for it;
// and a receive that can only be for the next large message of its source says so at once, before
// that is announced: then the data follow the announcement without an answer between.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "engine/engine.hpp"

namespace hccomm::engine {

using wire::Header;
using wire::Type;

bool can_invite(const Context& context, const Parcel& in) {
  if (in.peer < 0 || in.peer == context.rank) return false;
  const Channel& channel = *context.channels[in.peer];
  return channel.up() && !channel.pulls() && in.bytes > channel.eager_bytes();
}

// What can only be the next large message of its source may have its place told before it is
// announced. The sender, which announces it all the same, begins without waiting for an answer.
void invite(Operation& op) {
  Context& context = *op.context;
  if (op.staged != nullptr || context.matching.from_any != 0) return;
  if (!can_invite(context, {.peer = op.peer, .bytes = op.bytes})) return;
  Matching::Large& from = context.matching.large[op.peer];
  if (from.invited != nullptr) return;
  op.index = from.announced;
  op.invited = expect(op, 0);
  if (op.invited) from.invited = &op;
}

// The next large message is announced, and `op` takes it: who was told to await it is that, or
// waits for another one, since its sender compares tag and size.
void announced(Context& context, int source, const Header& header, const Operation* op) {
  Matching::Large& from = context.matching.large[source];
  from.announced = header.index + 1;
  Operation* const invited = std::exchange(from.invited, nullptr);
  if (invited == nullptr || invited == op) return;
  invited->invited = false;
  Channel& channel = *context.channels[source];
  if (channel.up()) channel.link()->forget(message_of(*invited, 0));
}

// Asks for the message that has been announced; what comes in place not before the caller's stream
// has left the place.
void answer(Operation& op) {
  if (op.staged != nullptr) {
    op.staged->unanswered = op.staged->plan->runs_in_place(0) && !op.staged->open;
    if (op.staged->unanswered) return;
  }
  Channel& channel = *op.context->channels[op.peer];
  // Who could be pulled from but must be asked sends frames.
  if (!channel.pulls() && expect(op, 0)) return;
  Header wanted;
  wanted.type = Type::TaggedOpen;
  wanted.context = op.context->id;
  wanted.sequence = op.tag;
  wanted.index = op.index;
  channel.send(wanted, nullptr);
}

void Engine::receive_tagged_control(Context& context, int source, const Header& header,
                                    const std::byte* payload) {
  Matching& matching = context.matching;
  const TagKey key{source, header.index};
  const auto said = [&] {
    return std::string(reinterpret_cast<const char*>(payload), header.length);
  };
  if (header.type == Type::TaggedData) {
    const auto found = matching.receiving.find(key);
    if (found == matching.receiving.end()) return;
    Operation& op = *found->second;
    if (header.address > op.bytes || header.length > op.bytes - header.address) return;
    if (payload != nullptr) std::memcpy(op.data + header.address, payload, header.length);
    arrived(op, header.address, header.length);
    return;
  }
  if (header.type == Type::TaggedWritten) {
    const auto found = matching.receiving.find(key);
    if (found != matching.receiving.end()) receive_written(*found->second, 0, source, header);
    return;
  }
  if (header.type == Type::TaggedHere) {
    const auto found = matching.receiving.find(key);
    if (found == matching.receiving.end()) return;
    if ((header.flags & wire::kOnDevice) != 0) {
      if (std::exchange(found->second->here, found->second->bytes) != 0)
        return;  // it is being taken
      return start_across(*context.channels[source], *found->second, 0, header.address, said());
    }
    stage_receive(staging_, *context.channels[source], *found->second);
    more_here(context, *found->second, source, header);
    return;
  }
  const auto found = matching.sending.find(key);
  if (found == matching.sending.end()) return;
  Operation& op = *found->second;
  const bool other = header.fingerprint != 0 && header.fingerprint != op.bytes;
  if (header.type == Type::TaggedOpen && (header.sequence != op.tag || other)) return;
  if (header.type == Type::TaggedDone) {
    sent(op, 0);
    return;
  }
  if (context.channels[source]->pulls() && op.staged != nullptr &&
      op.staged->plan->runs_in_place(0)) {
    if (!std::exchange(op.asked, true)) {
      if (op.staged->open) offer_device(op, 0, *context.channels[source]);
      return;
    }
    op.asked = false;
    declined(*context.channels[source], header, said());
    staging_.stage_after_all(*op.staged, op.bytes, true);
  }
  if (context.channels[source]->pulls() && in_shared_memory(op, 0)) {
    op.asked = true;
    return tell_here(op);
  }
  send_announced(op);
}

// Its receiver has asked for it. From now on it is the channel's.
void Engine::send_announced(Operation& op) {
  Context& context = *op.context;
  context.matching.sending.erase({op.peer, op.index});
  op.listed = false;
  op.moved = op.bytes;
  const Header data = message_of(op, 0);
  Channel& channel = *context.channels[op.peer];
  if (op.staged != nullptr && op.staged->plan->runs_in_place(0)) {
    return send_placed(op, 0, channel, data);
  }
  const std::uint64_t* available = op.staged != nullptr ? &op.staged->available : nullptr;
  channel.send_bulk({data, op.data, op.bytes, 0, &op, 0, available});
}

}  // namespace hccomm::engine
