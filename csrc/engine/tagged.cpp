// SPDX-License-Identifier: Apache-2.0
//
// Point-to-point messages: matched by (source, tag) in the order sent and posted, as MPI defines
// it. Small ones travel whole and wait here if nobody wants them yet; large ones are announced, and
// move once they are wanted.
#include <algorithm>
#include <cstring>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using wire::Header;
using wire::Type;

static bool on_device(const Parcel& parcel) { return parcel.where != nullptr && parcel.bytes != 0; }

// Outside the lock: a device is opened at its first use.
static Result<Staged*> stage(Staging& staging, OperationKind kind, const Parcel& parcel,
                             Reaches reaches) {
  for (Reach* const way : {&reaches.cards, &reaches.opened, &reaches.opens}) {
    if (parcel.peer < 0 || !way->has(parcel.peer, parcel.bytes)) *way = {};
  }
  return staging.prepare(*parcel.where, parcel.bytes, kind == OperationKind::Send, reaches);
}

Operation& Engine::enlist_message(Context& context, OperationKind kind, const Parcel& parcel) {
  Operation& op = fresh();
  enlist(op, context, kind, parcel.timeout);
  op.peer = parcel.peer;
  op.tag = parcel.tag;
  op.element_kind = parcel.kind;
  op.data = parcel.data;
  op.bytes = parcel.bytes;
  op.moved = op.here = 0;
  op.asked = false;
  op.order = context.matching.next_order++;
  context.recorder.begin(op);
  return op;
}

Operation& Engine::begin_message(Context& context, OperationKind kind, const Parcel& parcel,
                                 Result<Staged*>* staged) {
  Operation& op = enlist_message(context, kind, parcel);
  surely([&] {
    if (!context.poison.ok()) return finish(op, context.poison);
    if (on_device(parcel) && !begin_staged(op, *staged)) return;
    if (kind == OperationKind::Send) {
      issue_tagged(op);
    } else {
      want(op);
    }
    drain();
    if (context.someone_left) miss_the_gone(op);
  });
  return op;
}

Operation* Engine::start(Context& context, OperationKind kind, const Parcel& parcel) {
  Result<Staged*> staged = nullptr;
  if (on_device(parcel)) {
    staged = stage(staging_, kind, parcel, reach(context, parcel.bytes, *parcel.where));
  }
  Guard guard(*this);
  const Leftover leftover(staging_, staged);
  Operation& op = begin_message(context, kind, parcel, &staged);
  handle(op, parcel.follow);
  call_back(guard);
  return &op;
}

static Header header_of(const Context& context, const Parcel& parcel) {
  Header header;
  header.type = Type::Tagged;
  header.context = context.id;
  header.sequence = parcel.tag;
  header.fingerprint = parcel.bytes;
  header.flags = parcel.kind;
  header.length = parcel.bytes;
  return header;
}

// Sends a message of host memory, without an operation where the link takes it at once: it needs
// no deadline then, and nobody to wait for. nullptr: it has left.
Operation* Engine::send_now(Context& context, const Parcel& parcel) {
  const auto begin = [&] { return &begin_message(context, OperationKind::Send, parcel, nullptr); };
  if (parcel.peer == context.rank || !context.poison.ok()) return begin();
  Channel& channel = *context.channels[parcel.peer];
  if (!channel.clear() || parcel.bytes > channel.eager_bytes()) return begin();
  if (!context.matching.held.empty()) return begin();
  transport::Outgoing frame{header_of(context, parcel), parcel.data, 0};
  const std::uint64_t began = ticks_now();
  if (channel.try_send(frame)) {
    context.recorder.sent(parcel.peer, parcel.tag, parcel.bytes, began);
    return nullptr;
  }
  if (frame.sent == 0) return begin();
  Operation& op = enlist_message(context, OperationKind::Send, parcel);
  op.moved = op.bytes;
  channel.keep(frame, &op, 0);  // the rest of what has begun: refused no memory
  return &op;
}

Status Engine::exchange(Context& context, const Parcel& out, const Parcel& in, int& source) {
  if (on_device(in) || on_device(out)) return exchange_staged(context, out, in, source);
  Guard guard(*this);
  fresh(2);  // once the first has begun, the second must not be refused
  Operation* sends = nullptr;
  Operation* receives = nullptr;
  const auto receive = [&] {
    receives = &begin_message(context, OperationKind::Recv, in, nullptr);
  };
  // What is sent should leave first; but a message to ourselves must find who takes it.
  const bool self = out.peer == context.rank;
  if (self) receive();
  sends = send_now(context, out);
  if (!self) receive();
  return finish_exchange(guard, sends, *receives, source);
}

Status Engine::finish_exchange(Guard& guard, Operation* sends, Operation& receives, int& source) {
  if (!receives.done()) drive(guard, &receives, Deadline::never());
  Status status = std::move(receives.status);
  if (sends != nullptr) {
    if (!sends->done()) drive(guard, sends, Deadline::never());
    if (status.ok()) status = sends->status;
    drop_reference(*sends);
  }
  flush();
  source = receives.peer;
  drop_reference(receives);
  if (!callbacks_.empty()) call_back(guard);
  return status;
}

Status Engine::exchange_staged(Context& context, const Parcel& out, const Parcel& in, int& source) {
  Result<Staged*> staged_in = nullptr, staged_out = nullptr;
  if (on_device(in)) {
    staged_in = stage(staging_, OperationKind::Recv, in, reach(context, in.bytes, *in.where));
  }
  if (on_device(out)) {
    staged_out = stage(staging_, OperationKind::Send, out, reach(context, out.bytes, *out.where));
  }
  Guard guard(*this);
  const Leftover left_in(staging_, staged_in), left_out(staging_, staged_out);
  fresh(2);  // once the first has begun, the second must not be refused
  Operation* sends = nullptr;
  Operation* receives = nullptr;
  const auto receive = [&] {
    receives = &begin_message(context, OperationKind::Recv, in, &staged_in);
  };
  const bool self = out.peer == context.rank;
  if (self) receive();
  sends = &begin_message(context, OperationKind::Send, out, &staged_out);
  if (!self) receive();
  return finish_exchange(guard, sends, *receives, source);
}

// Whether the message can be sent, or at least announced: its data are here, or it is large.
static bool may_leave(const Operation& op) {
  if (op.staged == nullptr || op.staged->available == op.bytes) return true;
  return op.peer != op.context->rank && op.bytes > op.context->channels[op.peer]->eager_bytes();
}

// Messages of one tag to one rank keep their order: one whose data are not here yet holds up those
// behind it.
static bool held_back(Operation& op) {
  auto& held = op.context->matching.held;
  const TagKey key{op.peer, op.tag};
  if (!held.contains(key) && may_leave(op)) return false;
  held[key].push_back(&op);
  return true;
}

void Engine::issue_tagged(Operation& op) {
  Context& context = *op.context;
  if (op.peer != context.rank) {
    Channel& channel = *context.channels[op.peer];
    if (channel.state() == Channel::State::Broken) {
      lost(context, op.peer);
      return;
    }
    if (!channel.up()) {
      if (op.kind == OperationKind::Send) channel.park({&op, 0, false});
      need(channel);
      return;
    }
  }
  if (op.kind == OperationKind::Recv) return;
  if ((op.staged == nullptr && context.matching.held.empty()) || !held_back(op)) dispatch(op);
}

// More of the message's data are here. False when it is not one that is held back.
bool Engine::send_held(Operation& op) {
  auto& held = op.context->matching.held;
  const TagKey key{op.peer, op.tag};
  const auto line = held.find(key);
  if (line == held.end()) return false;
  while (!line->second.empty() && may_leave(*line->second.front())) {
    Operation& first = *line->second.front();
    line->second.pop_front();
    dispatch(first);
  }
  if (line->second.empty()) held.erase(line);
  return true;
}

void Engine::dispatch(Operation& op) {
  Context& context = *op.context;
  Header header = header_of(context, {.tag = op.tag, .bytes = op.bytes, .kind = op.element_kind});
  if (op.peer == context.rank) {
    receive_tagged(context, op.peer, header, op.data);
    finish(op);
    return;
  }
  Channel& channel = *context.channels[op.peer];
  if (op.bytes <= channel.eager_bytes()) {
    op.moved = op.bytes;
    channel.send(header, op.data, &op, 0);
    return;
  }
  header.type = Type::TaggedReady;
  header.length = 0;
  header.index = op.index = context.matching.next_index[op.peer]++;
  // With no address the receiver asks for the data, and hears of them, or gets them, as they leave
  // the device.
  const bool pulled = channel.pulls() && op.staged == nullptr;
  header.address = pulled ? reinterpret_cast<std::uintptr_t>(op.data) : 0;
  context.matching.sending[{op.peer, header.index}] = &op;
  op.listed = true;
  if (pulled) {
    if (channel.link()->shows(op.data, op.bytes)) header.flags |= wire::kShared;
    start_push({&channel, &op, 0, op.data, op.bytes, 0}, header);
  } else {
    channel.send(header, nullptr);
  }
}

// Takes the first message that has come for it, or waits for one.
void Engine::want(Operation& op) {
  Context& context = *op.context;
  Matching& matching = context.matching;
  const auto [peer, tag] = std::pair(op.peer, op.tag);
  TagLines* best = &matching.lines_of({peer, tag});
  TagKey key{peer, tag};
  if (peer < 0) {
    for (auto& [of, lines] : matching.lines) {
      if (of.tag != tag || lines.arrived.empty()) continue;
      if (best->arrived.empty() || lines.arrived.front().order < best->arrived.front().order) {
        best = &lines;
        key = of;
      }
    }
  }
  if (!best->arrived.empty()) {
    const Kept frame = std::move(best->arrived.front().frame);
    best->arrived.pop_front();
    matching.tidy(key);
    if (peer < 0) matching.tidy({peer, tag});
    match(context, op, frame.source, frame.header, frame.payload.get());
  } else {
    best->wanted.push_back(&op);
    if (peer < 0) ++matching.from_any;
    if (peer >= 0 && peer != context.rank) need(*context.channels[peer]);
    if (context.tolerant && peer >= 0 && context.gone[peer] != 0) {
      fail(op, Status(Code::PeerLost, context.who[peer] + " is lost", peer));
    }
  }
}

// Bytes of a message are in their place.
void Engine::arrived(Operation& op, std::uint64_t offset, std::uint64_t bytes) {
  if (op.staged != nullptr && op.staged->plan->runs_in_place(0)) {
    staging_.carry(*op.staged, false, {.offset = offset, .bytes = bytes});
    return;
  }
  op.moved += bytes;
  if (op.staged != nullptr) staging_.written(*op.staged, offset, bytes);
  if (op.moved == op.bytes) end(op);
}

// Takes the receive that the message is for out of its line; nullptr: nobody wants it yet.
Operation* Engine::wanted(Context& context, int source, const Header& header) {
  Matching& matching = context.matching;
  const std::uint64_t tag = header.sequence;
  TagLines* best = &matching.lines_of({source, tag});
  TagKey key{source, tag};
  if (matching.from_any != 0) {
    const auto any = matching.lines.find({-1, tag});
    if (any != matching.lines.end() && !any->second.wanted.empty() &&
        (best->wanted.empty() || any->second.wanted.front()->order < best->wanted.front()->order)) {
      best = &any->second;
      key = any->first;
    }
  }
  if (best->wanted.empty()) return nullptr;
  Operation& op = *best->wanted.front();
  best->wanted.pop_front();
  if (key.source < 0) --matching.from_any;
  matching.tidy(key);
  if (key.source < 0) matching.tidy({source, tag});
  return &op;
}

// A message that was expected from the peer's device is staged after all.
static void stage_receive(Staging& staging, Channel& channel, Operation& op) {
  if (op.staged == nullptr || !op.staged->plan->runs_in_place(0)) return;
  channel.devices.expecting.let_down();
  staging.stage_after_all(*op.staged, op.bytes, false);
}

void Engine::receive_tagged(Context& context, int source, const Header& header,
                            const std::byte* payload) {
  if (Operation* const op = wanted(context, source, header)) {
    match(context, *op, source, header, payload);
    return;
  }
  Matching& matching = context.matching;
  matching.lines_of({source, header.sequence})
      .arrived.push_back({keep(source, header, payload), matching.next_order++});
}

// Whether the message is what the receive, whose source is known now, was called for; if not, the
// context is poisoned.
bool Engine::suits(Context& context, Operation& op, int source, const Header& header) {
  op.peer = source;
  const unsigned sent_kind = header.flags & ~unsigned{wire::kShared};
  const bool alike = sent_kind == op.element_kind || sent_kind == 0 || op.element_kind == 0;
  const bool whole = header.type != Type::Tagged || header.length == header.fingerprint;
  if (header.fingerprint != op.bytes || !alike || !whole) {
    const auto kind = [&](unsigned code) {
      return code == 0 || code > dtype::kDTypes
                 ? std::string()
                 : text(" of ", dtype::name(static_cast<dtype::DType>(code - 1)));
    };
    poison_locked(context,
                  Status(Code::Mismatch,
                         text("recv: ", context.who[source], " sent ", header.fingerprint, " bytes",
                              kind(sent_kind), " with tag ", op.tag, " but ",
                              context.who[context.rank], " receives ", op.bytes, " bytes",
                              kind(op.element_kind), "; give both the same count and dtype"),
                         source),
                  true);
    return false;
  }
  return true;
}

void Engine::match(Context& context, Operation& op, int source, const Header& header,
                   const std::byte* payload) {
  if (!suits(context, op, source, header)) return;
  if (header.type == Type::Tagged) {
    if (op.bytes != 0) std::memcpy(op.data, payload, op.bytes);
    arrived(op, 0, op.bytes);
    return;
  }
  const Channel& channel = *context.channels[source];
  if (!channel.up()) return lost(context, source);  // it has left since it said so
  op.index = header.index;
  context.matching.receiving[{source, header.index}] = &op;
  op.listed = true;
  if (channel.pulls() && header.address != 0) {
    stage_receive(staging_, *context.channels[source], op);
    const bool shared = (header.flags & wire::kShared) != 0 && op.staged == nullptr;
    start_pull(*context.channels[source], op, 0, header.address, shared);
    return;
  }
  answer(op);
}

// Asks for the message that has been announced; what comes in place not before the caller's stream
// has left the place.
void answer(Operation& op) {
  if (op.staged != nullptr) {
    op.staged->unanswered = op.staged->plan->runs_in_place(0) && !op.staged->open;
    if (op.staged->unanswered) return;
  }
  Channel& channel = *op.context->channels[op.peer];
  if (!channel.pulls()) expect(op, 0);  // who could be pulled from but must be asked sends frames
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
  matching.sending.erase(found);
  op.moved = op.bytes;  // from now on it is the channel's
  Header data;
  data.type = Type::TaggedData;
  data.context = context.id;
  data.sequence = op.tag;
  data.index = header.index;
  if (op.staged != nullptr && op.staged->plan->runs_in_place(0)) {
    return send_placed(op, 0, *context.channels[source], data);
  }
  const std::uint64_t* available = op.staged != nullptr ? &op.staged->available : nullptr;
  context.channels[source]->send_bulk({data, op.data, op.bytes, 0, &op, 0, available});
}

void forget_tagged(Operation& op) {
  Matching& matching = op.context->matching;
  if (std::exchange(op.listed, false)) {
    auto& large = op.kind == OperationKind::Send ? matching.sending : matching.receiving;
    const auto found = large.find({op.peer, op.index});
    if (found != large.end() && found->second == &op) large.erase(found);
  }
  if (op.status.ok()) return;
  const auto is_op = [&](const Operation* each) { return each == &op; };
  if (op.kind == OperationKind::Send) {
    for (auto& [key, line] : matching.held) line.erase_if(is_op);
    std::erase_if(matching.held, [](const auto& each) { return each.second.empty(); });
    return;
  }
  for (auto& [key, lines] : matching.lines) {
    const std::size_t before = lines.wanted.size();
    lines.wanted.erase_if(is_op);
    if (key.source < 0) matching.from_any -= before - lines.wanted.size();
  }
  matching.tidy_all();
}

}  // namespace hccomm::engine
