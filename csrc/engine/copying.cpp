// SPDX-License-Identifier: Apache-2.0
//
// Large messages over links that reach into the peer's memory. The receiver pulls what the sender
// has offered (Ready), piece by piece. A message that the receiver expects the sender writes to its
// place, which is quicker while the data are in its cache. Who is there alone does it alone; if
// both are, the sender begins, and from kTogether on, or where a root has many to serve, the
// receiver helps: two cores copy twice as fast. Else the same end should copy the same message from
// call to call: its cache lines stay.
//
// What lies in memory that the receiver can map (Link::view) it copies itself, plainly and not by
// the kernel. The sender helps where it can map the receiver's place, and has nothing to pull
// itself.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/engine.hpp"

namespace hccomm::engine {

using plan::Kind;
using transport::Piece;
using transport::Turn;
using wire::Type;

static constexpr std::uint64_t kPullPiece = 256 << 10;   // bytes moved before others get a turn
static constexpr std::uint64_t kBouncePiece = 64 << 10;  // pulled and reduced while in L2
static constexpr std::uint64_t kTogether = 1 << 20;      // the receiver is asked to help
// Bytes that may flow to a peer until it has answered: it keeps what it has not called for.
static constexpr std::uint64_t kFlowsAhead = 8 << 20;
static constexpr std::uint64_t kFlowing = 8;  // eager messages, of one that flows
static constexpr int kFlowsTo = 4;            // ranks; more copy quicker each for itself
static constexpr std::size_t kTries = 8;      // messages that are asked for a piece in one look
static constexpr unsigned kPatience = 16;     // looks, 1 us: for a sender that is there to begin
static constexpr auto kGrace = std::chrono::seconds(2);  // for a reason that is on its way

static bool tagged(const Operation& op) { return op.kind != OperationKind::Collective; }

wire::Header message_of(const Operation& op, std::uint32_t id) {
  wire::Header message;
  message.context = op.context->id;
  if (tagged(op)) {
    message.type = Type::TaggedData;
    message.sequence = op.tag;
    message.index = op.index;
  } else {
    message.type = Type::Data;
    message.sequence = op.sequence;
    message.index = op.recipe->plan.steps[id].index;
    message.fingerprint = op.recipe->fingerprint;
  }
  return message;
}

static std::uint64_t bytes_of(const Operation& op, std::uint32_t id) {
  return tagged(op) ? op.bytes : op.bytes_of(op.recipe->plan.steps[id]);
}

static std::uint64_t received(const Operation& op, std::uint32_t id) {
  return tagged(op) ? op.moved : op.steps[id].value;
}

// ---- the receiver -----------------------------------------------------------------------------

// Whether a message is quicker in frames than pulled. Among more ranks than cores that also holds
// for what is laid aside to be reduced with others.
static bool in_frames(const Channel& channel, const Operation& op, std::uint32_t id) {
  if (!channel.streams_sums()) return false;
  if (!channel.crowded()) return !stores(op, id);
  const bool aside = op.recipe->plan.steps[id].dst.space == plan::Space::Scratch;
  return op.staged == nullptr && (aside || !stores(op, id));
}

// Whether the message may go unasked though it is large: where the ring is quick and data flow from
// a root or to one, so that one core copies in while the other copies out, and none waits for an
// answer. In an exchange both ends copy both ways, and it takes as long as one copy by the kernel.
static bool flows(const Channel& channel, const Operation& op, std::uint32_t id) {
  if (tagged(op) || !op.recipe->rooted || op.staged != nullptr) return false;
  const bool few = op.context->size <= kFlowsTo || channel.crowded();
  return few && channel.streams_sums() && bytes_of(op, id) <= kFlowing * channel.eager_bytes();
}

bool goes_unasked(const Channel& channel, const Operation& op, std::uint32_t id) {
  if (bytes_of(op, id) <= channel.eager_bytes()) return true;
  return flows(channel, op, id) && !in_shared_memory(op, id) && channel.flowed < kFlowsAhead;
}

// Tells the sender so before it offers the message: among more ranks than cores an answer would
// cost more than a copy.
static void ask(Channel& channel, const Operation& op, std::uint32_t id) {
  if (bytes_of(op, id) <= channel.eager_bytes() || flows(channel, op, id)) return;
  wire::Header wanted = message_of(op, id);
  wanted.type = Type::Stream;
  wanted.address = 1;
  channel.send(wanted, nullptr);
}

// What is stored as it comes may come straight to its place, once nothing else is read there.
void expect(Operation& op, std::uint32_t id) {
  int peer = op.peer;
  std::byte* place = op.data;
  if (!tagged(op)) {
    const plan::Step& step = op.recipe->plan.steps[id];
    const StepState& state = op.steps[id];
    if (state.waiting != 0 || state.value != 0 || state.done) return;
    Channel& channel = *op.context->channels[step.peer];
    if (channel.crowded() && in_frames(channel, op, id)) return ask(channel, op, id);
    if (!stores(op, id)) return;
    peer = step.peer;
    place = op.at(step.dst);
    // What flows comes in frames, unless it has been offered or the sender can map the place.
    const auto mapped = [&] {
      return channel.up() && channel.link()->shows(place, bytes_of(op, id));
    };
    if (flows(channel, op, id) && !state.announced && !mapped()) return;
  }
  Channel& channel = *op.context->channels[peer];
  if (op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
    const Cell cell = cell_of(op, id);
    channel.expect_on_device(message_of(op, id), op.staged->on_device(cell.memory, cell.offset),
                             cell.bytes);
    return;
  }
  if (op.staged != nullptr && channel.pulls()) return;  // pieces go on to the device, in order
  channel.expect(message_of(op, id), place, bytes_of(op, id));
}

// `shared`: the sender has it in memory that can be mapped.
void Engine::start_pull(Channel& channel, Operation& op, std::uint32_t id, std::uint64_t address,
                        bool shared) {
  if (!channel.up()) {  // its sender has left since, and its memory with it
    return lost(*op.context, tagged(op) ? op.peer : op.recipe->plan.steps[id].peer);
  }
  const std::uint64_t bytes = bytes_of(op, id);
  if (!tagged(op)) op.steps[id].value = 0;
  const auto abroad =
      std::ranges::find(op.abroad, id, &std::pair<std::uint32_t, std::string>::first);
  if (!tagged(op) && abroad != op.abroad.end()) {
    return start_across(channel, op, id, address, abroad->second);
  }
  if (op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
    wire::Header wanted = message_of(op, id);  // what was read would be on its way to the device
    wanted.type = Type::Stream;
    channel.send(wanted, nullptr);
    return;
  }
  auto view = shared ? channel.link()->view(address, bytes) : nullptr;
  const bool pinned = view != nullptr && view->bytes <= settings_.staging_bytes;
  if (pinned && fetch(op, id, view, address)) {
    const std::uint64_t at = op.recipe->plan.steps[id].dst.offset * op.recipe->element_bytes;
    return staging_.written(*op.staged, at, bytes);
  }
  if (view == nullptr && !tagged(op) && in_frames(channel, op, id)) {
    wire::Header wanted = message_of(op, id);
    wanted.type = Type::Stream;
    channel.send(wanted, nullptr);
    return;
  }
  if (view == nullptr || tagged(op) || !in_frames(channel, op, id)) expect(op, id);
  const unsigned patience = shared || settings_.oversubscribed ? 0 : kPatience;
  pulls_.push_back({&channel, &op, id, patience, address, 0, bytes, false, std::move(view)});
}

// Nothing of the message is missing. A sender whose memory we have read may use it again.
static void settle(Channel& channel, const Operation& op, std::uint32_t id, bool pulled) {
  wire::Header answer = message_of(op, id);
  channel.link()->settle(answer);
  if (!pulled) return;
  answer.type = tagged(op) ? Type::TaggedDone : Type::Done;
  channel.send(answer, nullptr);
}

static std::uint64_t offer_of(const Operation& op) {
  return offer(op.context->id, tagged(op) ? op.index : op.sequence, tagged(op));
}

static Status still_offered(Channel& channel, const Operation& op) {
  if (!channel.link()->withdrawn(offer_of(op))) return {};
  return {Code::Aborted, "it gave its call up before the data had been read"};
}

// Who lives but whose buffer is gone has failed: its reason is on its way, and better than ours.
void Engine::cannot_copy(Operation& op, Channel& channel, const Status& why) {
  if (why.code() == Code::PeerLost) return channel_broken(channel, why);
  const int rank = channel.bindings().at(op.context->id).rank;
  op.doubt = Status(Code::PeerLost, text(op.context->who[rank], ": ", why.text()), rank);
  op.probe_at = Clock::now() + kGrace;
  op.deadline = op.probe_at;
}

// So many more bytes have been copied from the peer's memory. The last ones are told to it before
// the operation may end. False: the peer took them back meanwhile.
bool Engine::pulled(Channel& channel, Operation& op, std::uint32_t id, std::uint64_t bytes) {
  if (received(op, id) + bytes != bytes_of(op, id)) return true;
  const Status status = still_offered(channel, op);
  if (status.ok()) {
    settle(channel, op, id, true);
  } else {
    cannot_copy(op, channel, status);
  }
  return status.ok();
}

// Moves one piece of a pull. False when there is no more for us to do: it is whole, or the sender
// writes the rest, or it has failed, and the operation may no longer be ours.
bool Engine::advance(Pull& pull, bool& any) {
  Operation& op = *pull.operation;
  Channel& channel = *pull.channel;
  const bool reduces = !tagged(op) && !stores(op, pull.step);
  const bool bounces = reduces && pull.view == nullptr;
  if (bounces && bounce_.size() < kBouncePiece) bounce_.resize(kBouncePiece);
  std::uint64_t moved = 0;
  while (moved < kPullPiece) {
    Piece piece = {pull.offset,
                   std::min(reduces ? kBouncePiece : kPullPiece, pull.bytes - pull.offset)};
    Turn turn = Turn::Copy;
    if (!reduces && !pull.alone) {
      turn = channel.link()->claim(message_of(op, pull.step), piece, pull.patience > 0);
    }
    if (turn != Turn::Copy) {
      any = moved != 0;
      if (turn == Turn::Over) return false;
      --pull.patience;
      return true;
    }
    const std::uint64_t there = pull.address + piece.offset;
    std::byte* target = reduces && !bounces ? pull.view->at(there) : bounce_.data();
    if (!reduces) {
      target = (tagged(op) ? op.data : op.at(op.recipe->plan.steps[pull.step].dst)) + piece.offset;
    }
    Status status;
    if (pull.view == nullptr) {
      status = channel.link()->pull(offer_of(op), target, there, piece.bytes);
    } else if (!reduces) {
      std::memcpy(target, pull.view->at(there), piece.bytes);
    }
    if (!status.ok()) {
      cannot_copy(op, channel, status);
      return false;
    }
    if (reduces) put(op, pull.step, piece.offset, target, piece.bytes);  // before the peer hears
    const bool whole = received(op, pull.step) + piece.bytes == bytes_of(op, pull.step);
    if (!pulled(channel, op, pull.step, piece.bytes)) return false;
    pull.offset += piece.bytes;
    moved += piece.bytes;
    if (tagged(op)) {
      arrived(op, piece.offset, piece.bytes);
    } else {
      apply(op, pull.step, piece.offset, nullptr, piece.bytes);
    }
    if (whole || pull.offset == pull.bytes) return false;
  }
  return true;
}

// The sender has written `header.address` bytes of the message to their place.
void Engine::receive_written(Operation& op, std::uint32_t id, int source, const Header& header) {
  Context& context = *op.context;
  Channel& channel = *context.channels[source];
  const std::uint64_t before = received(op, id), bytes = bytes_of(op, id);
  const bool stored = tagged(op) || stores(op, id);
  const std::uint64_t most = channel.pulls() && stored ? bytes - before : 0;
  if (header.address == 0 || header.address > most) {
    poison_locked(context,
                  Status(Code::Integrity,
                         text(context.who[source], " says that it has written ", header.address,
                              " bytes where it may write 1 to ", most),
                         source),
                  true);
    return;
  }
  if (before + header.address == bytes) {
    const Status offered = before == 0 ? Status() : still_offered(channel, op);
    if (!offered.ok()) return cannot_copy(op, channel, offered);
    pulls_.erase_if([&](const Pull& each) { return each.operation == &op && each.step == id; });
    settle(channel, op, id, before != 0);
  }
  if (tagged(op)) {
    arrived(op, 0, header.address);
  } else {
    apply(op, id, 0, nullptr, header.address);
  }
}

// ---- the sender -------------------------------------------------------------------------------

// Sends a large message: writes it if it is expected, or offers it with `ready`, or both. A root
// that sends to many would copy for all of them, one after the other, while they look on.
void Engine::start_push(const Push& push, const Header& ready) {
  Operation& op = *push.operation;
  const Header message = message_of(op, push.step);
  const bool shared = (ready.flags & wire::kShared) != 0;
  if (shared && !push.channel->link()->maps(message, push.bytes)) {
    if (!tagged(op)) op.steps[push.step].shared = true;
    push.channel->send(ready, nullptr);
    return;
  }
  const bool fans = !tagged(op) && op.recipe->plan.inlets.empty() && !pushes_.empty();
  if (shared || push.bytes >= kTogether || fans ||
      !push.channel->link()->awaited(message, push.bytes)) {
    push.channel->send(ready, nullptr);
  }
  Push mine = push;
  mine.helps = shared;
  pushes_.push_back(mine);
}

// Writes one piece of the message. False when there was none to write: it waits for its place, or
// will never have one, as its receiver pulls.
bool Engine::advance(Push& push) {
  Header message = message_of(*push.operation, push.step);
  std::uint64_t wrote = 0;
  auto outcome = push.channel->link()->write(message, push.data, push.bytes, wrote);
  if (!outcome.ok()) {
    cannot_copy(*push.operation, *push.channel, outcome.status());
    return true;
  }
  push.wrote += wrote;
  if (wrote != 0) push.channel->flowed = 0;  // the peer has called: it expected this
  if (outcome.value() != transport::Progress::Done) {
    pushes_.push_back(push);
    return wrote != 0;
  }
  if (push.wrote == 0) return false;  // the receiver has taken all; its Done will come
  message.type = tagged(*push.operation) ? Type::TaggedWritten : Type::Written;
  message.address = push.wrote;
  push.channel->send(message, nullptr);
  if (push.wrote == push.bytes) sent(*push.operation, push.step);
  drain();
  return true;
}

// Moves one piece of one message. Writing comes first: the data are likely in this core's cache.
bool Engine::copy_large() {
  for (std::size_t tries = std::min(pushes_.size(), kTries); tries > 0; --tries) {
    Push push = pushes_.front();
    pushes_.pop_front();
    if (push.helps && !pulls_.empty()) {
      pushes_.push_back(push);
    } else if (advance(push)) {
      return true;
    }
  }
  if (pulls_.empty()) return false;
  Pull pull = pulls_.front();
  pulls_.pop_front();
  bool moved = true;
  if (advance(pull, moved)) pulls_.push_back(pull);
  drain();
  return moved;
}

// The receiver wants in frames what it was offered.
void Engine::stream(Channel& channel, Operation& op, std::uint32_t id) {
  // Else it has been asked for before.
  bool offered = std::exchange(op.steps[id].shared, false);
  pushes_.erase_if([&](const Push& each) {
    const bool is_it = each.operation == &op && each.step == id && each.wrote == 0;
    offered = offered || is_it;
    return is_it;
  });
  if (!offered) return;
  if (op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
    return staging_.carry(*op.staged, true, cell_of(op, id));
  }
  channel.send_bulk({message_of(op, id), op.at(op.recipe->plan.steps[id].src),
                     op.bytes_of(op.recipe->plan.steps[id]), 0, &op, id});
}

// The message is where it belongs: the buffer is the caller's again.
void Engine::sent(Operation& op, std::uint32_t id) {
  pushes_.erase_if([&](const Push& each) { return each.operation == &op && each.step == id; });
  const int peer = tagged(op) ? op.peer : op.recipe->plan.steps[id].peer;
  if (op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
    op.context->channels[static_cast<std::size_t>(peer)]->devices.offering.well();
  }
  if (tagged(op)) op.moved = op.bytes;
  complete(op, id);
}

}  // namespace hccomm::engine
