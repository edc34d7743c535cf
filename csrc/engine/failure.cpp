// SPDX-License-Identifier: Apache-2.0
//
// What happens when something goes wrong: a group is poisoned with the first reason, its operations
// fail, and the reason is flooded to its other ranks, so that all raise the same error at once.
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "base/log.hpp"
#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using wire::Header;
using wire::Type;

static constexpr auto kProbeAfter = std::chrono::milliseconds(40);
static constexpr auto kProbeEvery = std::chrono::milliseconds(500);

// The caller gets the buffers back: a peer that is reading them shall not take what it reads then
// for the message.
static void withdraw(const Operation& op) {
  Context& context = *op.context;
  const auto tell = [&](Channel& channel, std::uint64_t key) {
    if (channel.up() && channel.pulls()) channel.link()->withdraw(key);
  };
  if (op.kind == OperationKind::Send && op.bytes != 0 && op.peer != context.rank) {
    const auto found = context.matching.sending.find({op.peer, op.index});
    if (found == context.matching.sending.end() || found->second != &op) return;
    tell(*context.channels[op.peer], offer(context.id, op.index, true));
  }
  if (op.kind != OperationKind::Collective) return;
  for (const plan::Inlet& outlet : op.recipe->outlets) {
    tell(*context.channels[outlet.peer], offer(context.id, op.sequence, false));
  }
}

// Fails one operation and forgets every frame, pull and step of it.
void Engine::fail(Operation& op, const Status& why) {
  if (!op.running()) return;
  note_waits(op);
  withdraw(op);
  for (const auto& [uuid, channel] : channels_) channel->release(op);
  for (const auto& [uuid, channel] : channels_) channel->cancel(&op);
  std::erase_if(ready_, [&](const auto& each) { return each.first == &op; });
  pulls_.erase_if([&](const Pull& each) { return each.operation == &op; });
  pushes_.erase_if([&](const Push& each) { return each.operation == &op; });
  Status status = why;
  if (op.kind == OperationKind::Collective && why.code() != Code::Mismatch) {
    status =
        Status(why.code(), text(op.recipe->what, " #", op.sequence, ": ", why.text()), why.rank());
  }
  finish(op, std::move(status));
}

// Sends one rank the reason, once. Where there is no link yet it leaves as soon as there is one.
void tell(Context& context, int rank) {
  Channel* channel = context.channels[rank];
  if (channel == nullptr || context.told[rank] != 0) return;
  Header header;
  header.type = Type::Status;
  header.context = context.id;
  channel->send_text(header, wire::encode_status(context.poison));
  channel->flush();
  context.told[rank] = 1;
}

// A tolerant context without that rank: what needs the rank fails, the rest goes on.
void Engine::go_on_without(Context& context, const Status& why) {
  context.gone[why.rank()] = 1;
  context.someone_left = true;
  const std::vector<Operation*> all = running_;
  for (Operation* op : all) {
    if (op->context == &context && op->peer == why.rank()) fail(*op, why);
  }
}

std::vector<int> Engine::lost_ranks(const Context& context) {
  Guard guard(*this);
  std::vector<int> lost;
  for (int rank = 0; rank < context.size; ++rank) {
    const Channel* channel = context.channels[rank];
    const bool broken = channel != nullptr && channel->state() == Channel::State::Broken;
    const bool blamed = context.poison.code() == Code::PeerLost && context.poison.rank() == rank;
    if (broken || blamed || context.gone[rank] != 0) lost.push_back(rank);
  }
  return lost;
}

void Engine::poison_locked(Context& context, Status why, bool should_tell) {
  if (!context.poison.ok()) return;
  if (context.tolerant && why.rank() >= 0) {
    go_on_without(context, why);
    return;
  }
  context.poison = why;
  for (int rank = 0; should_tell && rank < context.size; ++rank) tell(context, rank);
  const bool closes = !should_tell && why.rank() < 0;  // a communicator: no dump of it
  if (!closes && !settings_.dump_folder.empty()) {
    write_dump(context, settings_.dump_folder, dump_locked(context));
  }
  const std::vector<Operation*> all = running_;
  for (Operation* op : all) {
    if (op->context == &context) fail(*op, context.poison);
  }
  context.early.clear();
}

void Engine::poison(Context& context, Status why, bool tell) {
  Guard guard(*this);
  surely([&] { poison_locked(context, std::move(why), tell); });
  call_back(guard);
}

// Memory was refused amid something: every group fails, as what it lacks now nobody knows. What is
// refused meanwhile is done at the next look.
void Engine::lament() {
  starved_ = false;
  for (Context* context : contexts_) {
    const int blamed = context->tolerant ? -1 : context->rank;
    surely([&] {
      poison_locked(*context,
                    Status(Code::System,
                           text(context->who[context->rank],
                                " was refused memory; it has too little, or a limit (RLIMIT_AS, "
                                "its control group's) is too low"),
                           blamed),
                    true);
    });
    const bool refused = context->poison.code() == Code::System;
    for (int rank = 0; refused && rank < context->size; ++rank) {
      surely([&] { tell(*context, rank); });
    }
  }
  // From the end: one that ends leaves its place to a later one.
  for (std::size_t i = running_.size(); i-- > 0;) {
    Operation& op = *running_[i];
    if (op.context->poison.ok()) continue;
    surely([&] { fail(op, op.context->poison); });
  }
}

Status Engine::trouble(const Context& context) {
  Guard guard(*this);
  return context.poison;
}

void Engine::channel_broken(Channel& channel, const Status& reason) {
  const Status why = reason;  // it may be the link's own
  if (why.code() == Code::Integrity && channel.up()) tell_damage(channel, why);
  if (channel.up() && channel.link()->fd() >= 0) {
    epoll_ctl(poller_.get(), EPOLL_CTL_DEL, channel.link()->fd(), nullptr);
  }
  channel.set_broken(why);
  std::erase(up_, &channel);
  retire(channel);
  const auto bindings = channel.bindings();
  for (const auto& [id, binding] : bindings) {
    Context& context = *binding.context;
    if (context.gone[binding.rank] != 0) {
      peer_gone(context, binding.rank);
      continue;
    }
    lost(context, binding.rank);
  }
  drop_unused(channel);
}

// This process lacks what a connection takes, descriptors for one. The peer is not to blame and not
// lost; a communicator that is made later may try again.
void Engine::cannot_dial(Channel& channel, const Status& why) {
  channel.set_idle();
  const auto bindings = channel.bindings();
  for (const auto& [id, binding] : bindings) {
    Context& context = *binding.context;
    const int blamed = context.tolerant ? binding.rank : context.rank;
    poison_locked(context,
                  Status(Code::System,
                         text(context.who[context.rank], " cannot connect to ",
                              context.who[binding.rank], ": ", why.text()),
                         blamed),
                  true);
  }
}

// The connection cannot be trusted any more, but what we say still reaches the peer.
void Engine::tell_damage(Channel& channel, const Status& why) {
  const auto bindings = channel.bindings();
  for (const auto& [id, binding] : bindings) {
    Context& context = *binding.context;
    poison_locked(context,
                  Status(Code::Integrity,
                         text("from ", context.who[binding.rank], " to ", context.who[context.rank],
                              ": ", why.text()),
                         binding.rank),
                  true);
  }
}

// Nothing has come from the process for too long: no communicator waits for it any more. The
// connection is left as it is: a process that was stopped finds it open when it goes on, learns
// from what lies there that it was given up, and can be talked to by the next communicator.
void Engine::fell_silent(Channel& channel) {
  const auto silent = std::chrono::round<std::chrono::milliseconds>(channel.silence.lasted());
  const std::string why =
      text(" is lost: it has ", channel.up() ? "said nothing" : "not answered our calls", " for ",
           Seconds(silent).count(),
           " s: its process is stopped or its host cannot be reached (HCCOMM_SILENCE sets how long "
           "to bear it)");
  const auto bindings = channel.bindings();
  for (const auto& [id, binding] : bindings) {
    Context& context = *binding.context;
    if (context.gone[binding.rank] != 0) continue;
    poison_locked(context, Status(Code::PeerLost, context.who[binding.rank] + why, binding.rank),
                  true);
  }
}

// The rank cannot be reached any more, as its channel says.
void Engine::lost(Context& context, int rank) {
  const Status& why = context.channels[rank]->why();
  const Code code = why.code() == Code::System ? Code::PeerLost : why.code();
  poison_locked(context, Status(code, text(context.who[rank], " is lost: ", why.text()), rank),
                true);
}

// Whether all that the step receives has come, and is on its way to the device.
static bool lands(const Operation& op, std::uint32_t step, std::uint64_t bytes) {
  if (op.staged == nullptr) return false;
  std::uint64_t landing = 0;
  for (const Cell& cell : op.staged->late_out) {
    if (cell.first == step && !cell.across) landing += cell.bytes;  // across: the peer has it yet
  }
  return landing != 0 && landing == bytes;
}

// Whether the operation cannot end without something that this rank has still to send or take.
bool waits_for(const Operation& op, int rank) {
  if (!op.running()) return false;
  if (op.kind != OperationKind::Collective) {
    const bool here = op.kind == OperationKind::Recv && op.staged != nullptr && op.bytes != 0 &&
                      (op.moved == op.bytes || lands(op, 0, op.bytes));
    return op.peer == rank && !here;
  }
  const plan::Plan& plan = op.recipe->plan;
  for (const plan::Inlet& outlet : op.recipe->outlets) {
    if (outlet.peer != rank) continue;
    for (std::uint32_t k = 0; k < outlet.count; ++k) {
      if (!op.steps[op.recipe->send_steps[outlet.first + k]].done) return true;
    }
  }
  for (const plan::Inlet& inlet : plan.inlets) {
    if (inlet.peer != rank) continue;
    for (std::uint32_t k = 0; k < inlet.count; ++k) {
      const std::uint32_t step = plan.recv_steps[inlet.first + k];
      const bool here =
          std::ranges::any_of(op.stash, [&](const Stashed& each) { return each.step == step; });
      const bool there = here || lands(op, step, op.bytes_of(plan.steps[step]));
      if (!op.steps[step].done && !there) return true;
    }
  }
  return false;
}

// The rank has closed the communicator: what still needs it can never end.
void Engine::peer_gone(Context& context, int rank) {
  context.gone[rank] = 1;
  context.someone_left = true;
  const std::vector<Operation*> all = running_;
  for (Operation* op : all) {
    if (op->context != &context || !waits_for(*op, rank)) continue;
    poison_locked(context,
                  Status(Code::PeerLost,
                         text(context.who[rank], " has closed ", context.name,
                              " while this rank still waits for it; issue the same calls on all "
                              "ranks before closing"),
                         rank),
                  true);
    return;
  }
}

// Likewise an operation that has begun after the farewell.
void Engine::miss_the_gone(Operation& op) {
  Context& context = *op.context;
  for (int rank = 0; rank < context.size && op.running(); ++rank) {
    if (context.gone[rank] != 0 && waits_for(op, rank)) peer_gone(context, rank);
  }
}

// A rank's message is of another call than ours of that number.
void Engine::differs(Context& context, std::uint64_t mine, int source, const Header& header) {
  const auto describe = settings_.describe_fingerprint;
  const Operation* op = context.find(header.sequence);
  const std::string here = op != nullptr ? op->recipe->what
                           : describe    ? describe(mine)
                                         : "something else";
  const std::string there = describe ? describe(header.fingerprint) : "something else";
  poison_locked(
      context,
      Status(Code::Mismatch,
             text(context.name, ", operation #", header.sequence, ": ", context.who[context.rank],
                  " called ", here, " but ", context.who[source], " called ", there,
                  "; make all ranks call the same collectives in the same order with the same "
                  "arguments"),
             source),
      true);
}

static std::string copies_text(const Operation& op) {
  if (op.staged == nullptr) return {};
  const Staged& staged = *op.staged;
  if (!staged.open) return ", the caller's stream has not reached the call";
  return text(", ", staged.landed_in + staged.landed_out, " of ",
              staged.plan->in.size() + staged.plan->out.size(), " device copies done");
}

std::string progress_text(const Operation& op) {
  const Context& context = *op.context;
  if (op.kind != OperationKind::Collective) {
    return text(op.kind == OperationKind::Send ? "send to " : "recv from ",
                op.peer < 0 ? std::string("any rank") : context.who[op.peer], ", tag ", op.tag,
                ", ", op.moved, " of ", op.bytes, " bytes", copies_text(op));
  }
  std::string missing;
  for (const std::uint32_t rank : op.absent) {
    missing += (missing.empty() ? "" : ", ") + context.who[rank];
  }
  std::string late;
  int listed = 0;
  for (int rank = 0; rank < context.size; ++rank) {
    if (rank == context.rank || !waits_for(op, rank)) continue;
    if (++listed <= 8) late += (late.empty() ? "" : ", ") + context.who[rank];
  }
  if (listed > 8) late += text(" and ", listed - 8, " more");
  return text(op.recipe->what, " #", op.sequence, ", ", op.steps.size() - op.left, " of ",
              op.steps.size(), " steps done", copies_text(op),
              late.empty() ? std::string() : ", waiting for " + late,
              missing.empty() ? std::string() : "; not called yet by " + missing);
}

// Asks the peers we wait for whether they have called the same, and whom they wait for.
void Engine::probe(Operation& op) {
  Context& context = *op.context;
  Header header;
  header.type = Type::Probe;
  header.context = context.id;
  header.sequence = op.sequence;
  header.fingerprint = op.recipe->fingerprint;
  for (int rank = 0; rank < context.size; ++rank) {
    if (rank == context.rank || !waits_for(op, rank)) continue;
    Channel& channel = *context.channels[rank];
    if (!channel.up()) {
      need(channel);
      continue;
    }
    channel.send(header, nullptr);
    channel.flush();
  }
}

static Clock::time_point deadline_from(Clock::time_point now, Seconds timeout) {
  if (timeout.count() > 3.0e8) return Clock::time_point::max();
  return now + std::chrono::duration_cast<Clock::duration>(timeout);
}

// Says who has not called the operation: we ourselves, or those of whom we have heard so.
void answer_probe(Context& context, int source, const Header& probe) {
  const Operation* op = context.find(probe.sequence);
  std::vector<std::uint32_t> absent;
  if (op != nullptr) absent.assign(op->absent.begin(), op->absent.end());
  if (probe.sequence >= context.next_sequence) {
    absent = {static_cast<std::uint32_t>(context.rank)};
  }
  Header header;
  header.type = Type::Absent;
  header.context = context.id;
  header.sequence = probe.sequence;
  const auto* bytes = reinterpret_cast<const char*>(absent.data());
  context.channels[source]->send_text(header, {bytes, absent.size() * sizeof absent[0]});
  context.channels[source]->flush();
}

void Engine::receive_absent(Context& context, const Header& header, const std::byte* payload) {
  Operation* op = context.find(header.sequence);
  if (op == nullptr) return;
  // A peer that has not called yet is not waited for: it may want our next message before it does.
  if (std::exchange(op->confirms, false)) {
    const std::vector<std::uint32_t> blocked = std::exchange(op->blocked, {});
    for (const std::uint32_t id : blocked) issue_send(*op, id);
    if (!op->running()) return;
  }
  for (std::uint64_t at = 0; at + sizeof(std::uint32_t) <= header.length;
       at += sizeof(std::uint32_t)) {
    std::uint32_t rank = 0;
    std::memcpy(&rank, payload + at, sizeof rank);
    if (rank < static_cast<std::uint32_t>(context.size)) op->absent.insert(rank);
  }
}

// Deadlines, probes, dials that are due. Called every few milliseconds by whoever drives.
void Engine::check_deadlines(Clock::time_point now) {
  if (starved_) lament();
  surely([&] {
    if (abort_word_.exchange(0, std::memory_order_acq_rel) != 0) {
      for (Context* context : contexts_) {
        poison_locked(*context, Status(Code::Aborted, "aborted by a signal"), true);
      }
    }
    for (std::size_t i = 0; i < late_dials_.size();) {
      const auto [at, channel] = late_dials_[i];
      const bool wanted = !channel->bindings().empty();
      const bool coming = reserved_.contains(channel->card().uuid);
      if (wanted && channel->state() == Channel::State::Idle && (now < at || coming)) {
        ++i;
        continue;
      }
      late_dials_.erase(late_dials_.begin() + static_cast<std::ptrdiff_t>(i));
      if (wanted && channel->state() == Channel::State::Idle) {
        channel->set_dialing();
        if (Status begun = dialer_.dial(channel->card()); !begun.ok()) cannot_dial(*channel, begun);
      }
    }
    looked_at_ = running_;  // a copy: failing one changes the list
    for (Operation* op : looked_at_) {
      if (!op->running()) {
        const bool ending = op->state.load(std::memory_order_relaxed) == Operation::Ending;
        if (ending && now >= op->deadline) give_up(*op);
        continue;
      }
      if (op->probe_at == Clock::time_point{}) {
        op->probe_at = now + kProbeAfter;
        op->deadline = deadline_from(now, op->timeout);
        continue;
      }
      if (now >= op->deadline) {
        const Status late =
            !op->doubt.ok()
                ? op->doubt
                : Status(Code::Timeout,
                         text("the deadline has passed (", progress_text(*op),
                              "); look for the rank that is late, or raise the timeout"));
        if (op->kind == OperationKind::Collective) {
          poison_locked(*op->context, late, true);
        } else {
          fail(*op, late);
        }
        continue;
      }
      if (op->kind != OperationKind::Collective || now < op->probe_at) continue;
      probe(*op);
      op->probe_at = now + kProbeEvery;
    }
  });
}

}  // namespace hccomm::engine
