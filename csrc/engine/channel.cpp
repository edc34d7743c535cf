// SPDX-License-Identifier: Apache-2.0
#include "engine/channel.hpp"

#include <algorithm>
#include <cstring>

#include "base/log.hpp"
#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using transport::Placement;
using wire::Header;
using wire::Type;

// One frame (or part) per look at a link: what follows is for later operations as often as not, and
// would have to be kept aside.
static constexpr std::size_t kPollBudget = 1;

void Channel::bind(Context& context, int rank) {
  bindings_[context.id] = {&context, rank};
  last_context_ = 0;
  if (auto early = strangers_.extract(context.id)) {
    for (Kept& kept : early.mapped()) deliver(kept.header, kept.payload.get());
  }
}

void Channel::unbind(const Context& context) {
  bindings_.erase(context.id);
  last_context_ = 0;
  if (incoming_.binding.context == &context && incoming_.mode != Incoming::Mode::None) {
    incoming_.mode = Incoming::Mode::Drop;
    link_->discard();
  }
}

const Channel::Binding* Channel::binding_of(std::uint64_t context) {
  if (context == 0) return nullptr;  // none: a frame of no group
  if (context == last_context_) return &last_binding_;
  const auto found = bindings_.find(context);
  if (found == bindings_.end()) return nullptr;
  last_context_ = context;
  last_binding_ = found->second;
  return &last_binding_;
}

void Channel::attach(std::unique_ptr<transport::Link> link, std::size_t eager_limit) {
  link_ = std::move(link);
  state_ = State::Up;
  eager_bytes_ = link_->eager_bytes();
  if (eager_limit != 0) eager_bytes_ = std::min(eager_bytes_, eager_limit);
  frame_bytes_ = link_->frame_bytes();
  pulls_ = link_->pulls();
  streams_sums_ = pulls_ && link_->streams_sums();
  devices = {};
  silence.restart();
}

bool Channel::crowded() const { return up() && engine_.settings_.oversubscribed; }

void Channel::set_broken(Status why) {
  if (link_ != nullptr && current_) link_->recall();
  state_ = State::Broken;
  why_ = std::move(why);
  link_.reset();  // so that the peer learns of it, too
  urgent_.clear();
  bulk_.clear();
  current_.reset();
  parked_.clear();
  strangers_.clear();
  incoming_.mode = Incoming::Mode::None;
}

void Channel::completed(Operation* operation, std::uint32_t step) {
  if (operation != nullptr) engine_.complete(*operation, step);
}

void Channel::send(const Header& header, const std::byte* payload, Operation* operation,
                   std::uint32_t step) {
  if (state_ == State::Broken) return;
  transport::Outgoing frame{header, payload, 0};
  if (header.length > kBriefBytes && operation != nullptr) frame.fan = operation->fan(step);
  if (up() && !current_ && urgent_.empty()) {
    dirty_ = true;
    const transport::Progress outcome = link_->send(frame);
    if (outcome == transport::Progress::Done) return completed(operation, step);
    if (outcome == transport::Progress::Broken) return;  // the next poll says so, too
  }
  keep(frame, operation, step);
}

// What the link did not take, or not whole.
void Channel::keep(const transport::Outgoing& frame, Operation* operation, std::uint32_t step) {
  Pending pending{frame, operation, step, nullptr};
  if (frame.sent > 0) {
    current_ = std::move(pending);
  } else {
    urgent_.push_back(std::move(pending));
  }
}

void Channel::send_text(Header header, const std::string& payload) {
  if (state_ == State::Broken) return;
  Pending pending;
  pending.owned = std::make_unique_for_overwrite<std::byte[]>(payload.size());
  std::memcpy(pending.owned.get(), payload.data(), payload.size());
  header.length = payload.size();
  pending.frame.header = header;
  pending.frame.payload = pending.owned.get();
  urgent_.push_back(std::move(pending));
  if (up()) pump();
}

void Channel::send_bulk(Bulk bulk) {
  bulk_.push_back(std::move(bulk));
  pump();
}

// The next part of the first large message becomes the current frame; the message goes to the end
// of the line, so that several share the link. False when no message has bytes to send.
bool Channel::next_bulk_part() {
  const auto there = [](const Bulk& bulk) {
    return (bulk.available == nullptr ? bulk.bytes : *bulk.available) - bulk.offset;
  };
  for (std::size_t others = bulk_.size(); there(bulk_.front()) == 0; --others) {
    if (others == 1) return false;
    bulk_.push_back(bulk_.front());
    bulk_.pop_front();
  }
  Bulk bulk = bulk_.front();
  bulk_.pop_front();
  const std::uint64_t part = std::min<std::uint64_t>(frame_bytes_, there(bulk));
  current_.emplace();
  current_->frame.header = bulk.header;
  current_->frame.header.length = part;
  current_->frame.header.address = bulk.offset;
  current_->frame.payload = bulk.data + bulk.offset;
  current_->frame.on_device = bulk.on_device;
  bulk.offset += part;
  if (bulk.offset == bulk.bytes) {
    current_->operation = bulk.operation;
    current_->step = bulk.step;
  } else {
    bulk_.push_back(bulk);
  }
  return true;
}

bool Channel::pump() {
  bool moved = false;
  while (true) {
    if (!current_) {
      if (!urgent_.empty()) {
        current_ = std::move(urgent_.front());
        urgent_.pop_front();
      } else if (bulk_.empty() || !next_bulk_part()) {
        return moved;
      }
    }
    const std::size_t before = current_->frame.sent;
    const transport::Progress outcome = link_->send(current_->frame);
    moved = moved || current_->frame.sent != before || outcome == transport::Progress::Done;
    if (outcome != transport::Progress::Done) {
      dirty_ = dirty_ || moved;
      return moved;
    }
    dirty_ = true;
    Operation* const operation = current_->operation;
    const std::uint32_t step = current_->step;
    current_.reset();
    completed(operation, step);
  }
}

bool Channel::progress() {
  bool moved = link_->pending();
  if (moved) {
    silence.heard();
    if (!link_->poll(*this, kPollBudget)) {
      engine_.channel_broken(*this, link_->status());
      return true;
    }
  }
  if (!idle()) moved = pump() || moved;
  return moved;
}

// What the operation may have told this link to expect.
std::optional<Header> Channel::expected(const Operation& op) const {
  const Context& context = *op.context;
  Header of;
  of.context = context.id;
  if (op.kind == OperationKind::Collective) {
    of.type = Type::Data;
    of.sequence = op.sequence;
    return of;
  }
  const auto found = context.matching.receiving.find({op.peer, op.index});
  if (found == context.matching.receiving.end() || found->second != &op) return {};
  if (context.channels[op.peer] != this) return {};  // another rank's message of that number
  of.type = Type::TaggedData;
  of.sequence = op.tag;
  of.index = op.index;
  return of;
}

// Whether the frame carries data of the operation; only the last part of a message names it.
static bool belongs(const Pending& pending, const Operation& operation) {
  const Header& header = pending.frame.header;
  if (pending.operation != nullptr) return pending.operation == &operation;
  if (header.context != operation.context->id) return false;
  return operation.kind == OperationKind::Collective
             ? header.type == Type::Data && header.sequence == operation.sequence
             : header.type == Type::TaggedData && operation.kind == OperationKind::Send &&
                   header.index == operation.index;
}

void Channel::release(const Operation& operation) {
  const auto of = up() ? expected(operation) : std::nullopt;
  if (of) link_->release(*of);
}

void Channel::cancel(const Operation* operation) {
  // Whoever writes to the operation's memory has stopped after this.
  const auto of = up() ? expected(*operation) : std::nullopt;
  if (of) link_->reclaim(*of);
  std::erase_if(parked_, [&](const Parked& each) { return each.operation == operation; });
  urgent_.erase_if([&](const Pending& each) { return each.operation == operation; });
  bulk_.erase_if([&](const Bulk& each) { return each.operation == operation; });
  const bool on_device = current_ && current_->frame.on_device;
  if (on_device && up() && belongs(*current_, *operation)) {
    // Cards alone can read the rest. The receiver counts each piece by itself, and its call fails,
    // too: it does without.
    link_->recall();
    current_.reset();
  } else if (current_ && !on_device && current_->owned == nullptr &&
             current_->frame.header.length != 0 && up()) {
    // The frame has begun and must end; its bytes come from a copy from now on. (It may belong to
    // another operation: then the copy does no harm.)
    Pending& frame = *current_;
    link_->recall();
    frame.owned = std::make_unique_for_overwrite<std::byte[]>(frame.frame.header.length);
    std::memcpy(frame.owned.get(), frame.frame.payload, frame.frame.header.length);
    frame.frame.payload = frame.owned.get();
  }
  if (current_ && current_->operation == operation) current_->operation = nullptr;
  if (incoming_.operation == operation && incoming_.mode != Incoming::Mode::None && up()) {
    if (incoming_.mode == Incoming::Mode::Direct) link_->discard();
    if (incoming_.mode != Incoming::Mode::Keep) incoming_.mode = Incoming::Mode::Drop;
    incoming_.operation = nullptr;
  }
}

void Channel::keep_for_later(const Header& header, const std::byte* payload) {
  if (header.context == 0) return;
  if (engine_.closed_.has(header.context)) return;
  strangers_[header.context].push_back(engine_.keep(-1, header, payload));
}

// ---- what comes: from inside the link, where nothing may throw ----------------------------------

void Channel::deliver(const Header& header, const std::byte* payload) {
  if (header.type == Type::Beat) {
    constexpr std::uint64_t kMost = 3'600'000;  // what is longer is no truer
    silence.told(std::chrono::milliseconds(std::min(header.address, kMost)));
    if (const Binding* left = binding_of(header.context))
      left->context->parting[left->rank] = Parting::Taken;
    return;
  }
  if (header.type == Type::Devices) {
    engine_.surely([&] {
      constexpr std::size_t kMost = 64;
      std::string told(reinterpret_cast<const char*>(payload), header.length);
      if (told == kTakesGrowing) {
        devices.grows = true;
      } else if (devices.theirs.size() < kMost) {
        devices.theirs.push_back(std::move(told));
      }
    });
    return;
  }
  engine_.surely([&] {
    if (header.type == Type::Bye) beat(header.context);
    hand_over(header, payload);
  });
}

void Channel::beat(std::uint64_t left) {
  Header beat;
  beat.type = Type::Beat;
  beat.context = left;
  const auto unheard = std::chrono::floor<std::chrono::milliseconds>(silence.unheard());
  beat.address = static_cast<std::uint64_t>(unheard.count());
  send(beat, nullptr);
  flush();
}

void Channel::hand_over(const Header& header, const std::byte* payload) {
  const Binding* binding = binding_of(header.context);
  if (binding == nullptr) {
    keep_for_later(header, payload);
    return;
  }
  Context& context = *binding->context;
  const int source = binding->rank;
  switch (header.type) {
    case Type::Tagged:
    case Type::TaggedReady: engine_.receive_tagged(context, source, header, payload); break;
    case Type::TaggedOpen:
    case Type::TaggedData:
    case Type::TaggedWritten:
    case Type::TaggedHere:
    case Type::TaggedDone: engine_.receive_tagged_control(context, source, header, payload); break;
    case Type::Status:
      engine_.poison_locked(context, wire::decode_status(payload, header.length), true);
      break;
    case Type::Probe:
      engine_.receive(context, source, header, payload);
      if (context.poison.ok()) answer_probe(context, source, header);
      break;
    case Type::Absent: engine_.receive_absent(context, header, payload); break;
    case Type::Bye: engine_.peer_gone(context, source); break;
    default: engine_.receive(context, source, header, payload);
  }
  engine_.drain();
}

Placement Channel::begin(const Header& header) {
  incoming_ = {};
  incoming_.header = header;
  Placement place;
  engine_.surely([&] { place = place_of(header); });  // refused: the frame is dropped
  return place;
}

Placement Channel::place_of(const Header& header) {
  const Binding* binding = binding_of(header.context);
  if (binding != nullptr) incoming_.binding = *binding;
  if (binding != nullptr && header.type == Type::Data) {
    Context& context = *binding->context;
    Operation* operation = context.find(header.sequence);
    const std::int64_t step =
        operation == nullptr ? -1 : recv_step(*operation, binding->rank, header.index);
    if (step >= 0 && header.fingerprint == operation->recipe->fingerprint &&
        operation->steps[step].waiting == 0 &&
        engine_.fits(*operation, static_cast<std::uint32_t>(step), header, binding->rank)) {
      const plan::Step& target = operation->recipe->plan.steps[step];
      incoming_.operation = operation;
      incoming_.step = static_cast<std::uint32_t>(step);
      if (stores(*operation, incoming_.step)) {
        incoming_.mode = Incoming::Mode::Direct;
        return {operation->at(target.dst) + header.address};
      }
      incoming_.mode = Incoming::Mode::Reduce;
      incoming_.offset = header.address;
      return {};
    }
  }
  if (binding != nullptr && header.type == Type::Tagged) {
    Operation* const op = engine_.wanted(*binding->context, binding->rank, header);
    if (op != nullptr && engine_.suits(*binding->context, *op, binding->rank, header)) {
      incoming_.mode = Incoming::Mode::Direct;
      incoming_.operation = op;
      return {op->data};
    }
    if (op != nullptr) {
      incoming_.mode = Incoming::Mode::Drop;
      return {};
    }
  }
  if (binding != nullptr && header.type == Type::TaggedData) {
    auto& receiving = binding->context->matching.receiving;
    const auto found = receiving.find({binding->rank, header.index});
    if (found != receiving.end() && header.address <= found->second->bytes &&
        header.length <= found->second->bytes - header.address) {
      incoming_.mode = Incoming::Mode::Direct;
      incoming_.operation = found->second;
      return {found->second->data + header.address};
    }
  }
  incoming_.buffer = engine_.blocks_.take(header.length);
  incoming_.mode = Incoming::Mode::Keep;
  return {incoming_.buffer.get()};
}

void Channel::landed(const Header& header) {
  engine_.surely([&] {
    const Binding* const binding = binding_of(header.context);
    if (binding != nullptr) engine_.landed(*binding->context, binding->rank, header);
    engine_.drain();
  });
}

void Channel::consume(const std::byte* piece, std::size_t bytes) {
  if (incoming_.mode != Incoming::Mode::Reduce) return;
  const std::uint64_t offset = incoming_.offset;
  incoming_.offset += bytes;
  // apply() may complete the operation: the rest of this function must not touch it.
  engine_.surely([&] {
    engine_.apply(*incoming_.operation, incoming_.step, offset, piece, bytes);
    engine_.drain();
  });
}

void Channel::end() {
  Incoming incoming = std::exchange(incoming_, {});
  engine_.surely([&] {
    switch (incoming.mode) {
      case Incoming::Mode::Keep:
        engine_.blocks_.with(std::move(incoming.buffer),
                             [&](const std::byte* payload) { deliver(incoming.header, payload); });
        break;
      case Incoming::Mode::Direct:
        if (incoming.header.type == Type::Tagged) {
          engine_.arrived(*incoming.operation, 0, incoming.header.length);
        } else if (incoming.header.type == Type::TaggedData) {
          engine_.receive_tagged_control(*incoming.binding.context, incoming.binding.rank,
                                         incoming.header, nullptr);
        } else {
          if (pulls_ && incoming.header.length > eager_bytes_) link_->settle(incoming.header);
          engine_.apply(*incoming.operation, incoming.step, incoming.header.address, nullptr,
                        incoming.header.length);
        }
        break;
      default: break;
    }
    engine_.drain();
  });
}

}  // namespace hccomm::engine
