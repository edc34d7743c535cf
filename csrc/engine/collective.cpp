// SPDX-License-Identifier: Apache-2.0
//
// Running plans: steps are issued as soon as what they depend on is complete, depth first, so that
// a segment is forwarded while it is in cache.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using plan::Kind;
using plan::Step;
using wire::Header;
using wire::Type;

static const plan::Inlet* inlet_of(const std::vector<plan::Inlet>& inlets, int peer) {
  if (inlets.size() == 1) return inlets[0].peer == peer ? &inlets[0] : nullptr;
  const auto found = std::ranges::lower_bound(inlets, peer, {}, &plan::Inlet::peer);
  return found != inlets.end() && found->peer == peer ? &*found : nullptr;
}

// A rank that only sends would be done before it could hear that the others called something else:
// two ranks that each take themselves for the root, say. So at the first use of a rooted call its
// small messages, too, wait until the receiver says that it has called the same.
static bool first_use(Context& context, std::uint64_t fingerprint) {
  std::uint64_t& slot = context.met[(fingerprint * 0x9E3779B97F4A7C15ull) >> 56];
  return std::exchange(slot, fingerprint) != fingerprint;
}

Operation& Engine::begin_collective(Context& context, const Job& job, Result<Staged*>* staged) {
  Operation& op = fresh();
  if (op.recipe != job.recipe) op.recipe = job.recipe;
  const Recipe& recipe = *op.recipe;
  op.steps.assign(recipe.initial.begin(), recipe.initial.end());
  const std::size_t scratch = recipe.plan.scratch_count * recipe.element_bytes;
  if (scratch > op.scratch_bytes) {
    op.scratch_bytes = 0;
    op.scratch = std::make_unique_for_overwrite<std::byte[]>(scratch + 64);
    op.scratch_bytes = scratch;
  }
  while (context.window[context.next_sequence & (context.window.size() - 1)] != nullptr) {
    std::vector<Operation*> wider(context.window.size() * 2, nullptr);
    for (Operation* each : context.window) {
      if (each != nullptr) wider[each->sequence & (wider.size() - 1)] = each;
    }
    context.window = std::move(wider);
  }
  // From here on it has been called, whatever memory is refused.
  enlist(op, context, OperationKind::Collective, job.timeout);
  op.sequence = context.next_sequence++;
  context.history[op.sequence % context.history.size()] = recipe.fingerprint;
  context.recorder.begin(op);
  op.confirms = recipe.rooted && first_use(context, recipe.fingerprint);
  context.window[op.sequence & (context.window.size() - 1)] = &op;
  op.factor = job.factor;
  op.left = static_cast<std::uint32_t>(recipe.plan.steps.size());
  const auto raw = reinterpret_cast<std::uintptr_t>(op.scratch.get());
  op.base[static_cast<int>(plan::Space::Scratch)] =
      reinterpret_cast<std::byte*>((raw + 63) & ~std::uintptr_t{63});
  op.base[static_cast<int>(plan::Space::Input)] = job.input;
  op.base[static_cast<int>(plan::Space::Output)] = job.output;
  surely([&] {
    if (job.device != nullptr && !begin_staged(op, *staged)) return;
    if (op.staged == nullptr || op.staged->plan->placed.empty()) {
      issue_opens(op);
    } else if (op.staged->open) {  // else opened() does it: where messages shall lie is told first
      drain();
      issue_opens(op);
    }
    if (!op.running()) return;
    const auto& roots = op.staged == nullptr ? recipe.roots : op.staged->plan->roots;
    for (const std::uint32_t step : roots) ready_.emplace_back(&op, step);
    if (op.left == 0) end(op);
    drain();
    if (!context.early.empty()) receive_early(op);
    if (context.someone_left) miss_the_gone(op);
  });
  return op;
}

void Engine::issue_opens(Operation& op) {
  for (std::size_t i = 0; i < op.recipe->plan.inlets.size() && op.running(); ++i) issue_open(op, i);
}

// Tells a peer whose messages are large, and whose link pushes, that we are ready for them; also
// one that wants to know whether we called the same.
void Engine::issue_open(Operation& op, std::size_t inlet) {
  const int peer = op.recipe->plan.inlets[inlet].peer;
  Channel& channel = *op.context->channels[peer];
  if (channel.state() == Channel::State::Broken) {
    // Of one that has left all it sent is here; miss_the_gone() sees whether that is enough.
    if (op.context->gone[peer] == 0) lost(*op.context, peer);
    return;
  }
  if (!channel.up()) {
    channel.park({&op, static_cast<std::uint32_t>(inlet), true});
    need(channel);
    return;
  }
  const bool small = op.recipe->inlet_largest[inlet] <= channel.eager_bytes();
  const plan::Inlet& from = op.recipe->plan.inlets[inlet];
  for (std::uint32_t k = 0; !small && k < from.count; ++k) {
    const std::uint32_t step = op.recipe->plan.recv_steps[from.first + k];
    const bool in_place = op.staged != nullptr && op.staged->plan->runs_in_place(step);
    if (!in_place) expect(op, step);
  }
  if (!op.confirms && (small || channel.pulls())) return;
  Header header;
  header.type = Type::Open;
  header.context = op.context->id;
  header.sequence = op.sequence;
  header.fingerprint = op.recipe->fingerprint;
  channel.send(header, nullptr);
}

void Engine::issue_send(Operation& op, std::uint32_t id) {
  const Step& step = op.recipe->plan.steps[id];
  Channel& channel = *op.context->channels[step.peer];
  if (channel.state() == Channel::State::Broken) {
    lost(*op.context, step.peer);
    return;
  }
  if (!channel.up()) {
    channel.park({&op, id, false});
    need(channel);
    return;
  }
  const std::uint64_t bytes = step.src.count * op.recipe->element_bytes;
  const std::byte* data = op.at(step.src);
  Header header;
  header.type = Type::Data;
  header.index = step.index;
  header.context = op.context->id;
  header.sequence = op.sequence;
  header.fingerprint = op.recipe->fingerprint;
  const bool opened = !op.opened.empty() && op.opened[step.peer] != 0;
  const bool in_place = op.staged != nullptr && op.staged->plan->runs_in_place(id);
  if (in_place && (opened || channel.pulls())) return send_placed(op, id, channel, header);
  const bool streams = op.staged != nullptr && op.staged->plan->streams(id);
  if (streams && channel.pulls() && op.steps[id].waiting > 0) return tell_growth(op, id);
  const bool unasked = goes_unasked(channel, op, id);
  if (unasked && op.confirms && !opened) {
    op.blocked.push_back(id);
  } else if (unasked) {
    if (bytes > channel.eager_bytes()) channel.flowed += bytes;
    header.length = bytes;
    channel.send(header, data, &op, id);
  } else if (channel.pulls() && op.steps[id].announced && !in_shared_memory(op, id)) {
    channel.send_bulk({header, data, bytes, 0, &op, id});
  } else if (channel.pulls()) {
    header.type = Type::Ready;
    header.address = reinterpret_cast<std::uintptr_t>(data);
    if (in_shared_memory(op, id)) header.flags = wire::kShared;
    start_push({&channel, &op, id, data, bytes, 0}, header);
  } else if (opened) {
    const std::uint64_t* const available = streams ? &op.staged->sends[id].here : nullptr;
    channel.send_bulk({header, data, bytes, 0, &op, id, available});
  } else {
    op.blocked.push_back(id);
  }
}

void Engine::unpark(Channel& channel) {
  for (const Parked& parked : channel.take_parked()) {
    Operation& op = *parked.operation;
    if (op.kind != OperationKind::Collective) {
      issue_tagged(op);
    } else if (parked.open) {
      issue_open(op, parked.step);
    } else {
      issue_send(op, parked.step);
    }
  }
  drain();
}

// Bytes of a slice have their final value, or one on the way to it.
static void wrote(Staging& staging, Operation& op, const plan::Slice& dst, std::uint64_t offset,
                  std::uint64_t bytes) {
  if (dst.space != plan::Space::Output || bytes == 0) return;
  staging.written(*op.staged, dst.offset * op.recipe->element_bytes + offset, bytes);
}

void Engine::complete(Operation& op, std::uint32_t id) {
  if (op.kind != OperationKind::Collective) {
    finish(op);
    return;
  }
  const plan::Plan& plan = op.recipe->plan;
  const Step& step = plan.steps[id];
  op.steps[id].done = true;
  for (std::uint32_t k = step.dependents; k > 0; --k) {
    const std::uint32_t next = plan.edges[step.first_dependent + k - 1];
    if (--op.steps[next].waiting == 0) ready_.emplace_back(&op, next);
  }
  if (op.staged != nullptr && step.kind > Kind::RecvReduce && !op.staged->plan->streams(id))
    wrote(staging_, op, step.dst, 0, op.bytes_of(step));
  if (--op.left == 0) end(op);
}

void Engine::drain() {
  if (draining_) return;
  struct Draining {
    bool& is;
    explicit Draining(bool& flag) : is(flag) { is = true; }
    ~Draining() { is = false; }  // also where memory is refused
  } const draining(draining_);
  while (!ready_.empty()) {
    const auto [op, step] = ready_.back();
    ready_.pop_back();
    run_step(*op, step);
  }
}

void Engine::run_step(Operation& op, std::uint32_t id) {
  const Recipe& recipe = *op.recipe;
  const Step& step = recipe.plan.steps[id];
  const std::size_t bytes = step.dst.count * recipe.element_bytes;
  switch (step.kind) {
    case Kind::Send: issue_send(op, id); return;
    case Kind::Recv:
    case Kind::RecvReduce: {
      if (op.steps[id].announced) {
        start_pull(*op.context->channels[step.peer], op, id, op.steps[id].value,
                   op.steps[id].shared);
        return;
      }
      // What came early; applying the last part completes the step, and maybe the operation.
      for (std::size_t i = 0; i < op.stash.size();) {
        if (op.stash[i].step != id) {
          ++i;
          continue;
        }
        const Stashed mine = std::move(op.stash[i]);
        op.stash.erase(op.stash.begin() + static_cast<std::ptrdiff_t>(i));
        apply(op, id, mine.offset, mine.data.get(), mine.bytes);
      }
      if (op.running()) expect(op, id);
      return;
    }
    case Kind::Copy:
      if (op.staged != nullptr && op.staged->plan->streams(id)) break;  // copied as it came
      if (bytes != 0) std::memcpy(op.at(step.dst), op.at(step.src), bytes);
      break;
    case Kind::Reduce: {
      const void* terms[64];
      std::vector<const void*> many;
      const void** sources = terms;
      if (step.terms > 64) {
        many.resize(step.terms);
        sources = many.data();
      }
      for (std::uint32_t k = 0; k < step.terms; ++k) {
        sources[k] = op.at(recipe.plan.terms[step.first_term + k]);
      }
      recipe.reduce_many(op.at(step.dst), sources, step.terms, step.dst.count);
      break;
    }
    case Kind::Multiply:
      recipe.multiply(op.at(step.dst), op.at(step.src), step.dst.count, op.factor);
      break;
    case Kind::Divide:
      recipe.divide(op.at(step.dst), op.at(step.src), step.dst.count, op.context->size);
      break;
  }
  complete(op, id);
}

std::int64_t recv_step(const Operation& op, int source, std::uint32_t index) {
  const plan::Plan& plan = op.recipe->plan;
  const plan::Inlet* inlet = inlet_of(plan.inlets, source);
  if (inlet == nullptr || index >= inlet->count) return -1;
  return plan.recv_steps[inlet->first + index];
}

bool Engine::fits(Operation& op, std::uint32_t step, const Header& header, int source) {
  const std::uint64_t bytes = op.bytes_of(op.recipe->plan.steps[step]);
  if (!op.steps[step].done && header.address <= bytes && header.length <= bytes - header.address) {
    return true;
  }
  poison_locked(*op.context,
                Status(Code::Mismatch,
                       text(op.recipe->what, " #", op.sequence, ": ", op.context->who[source],
                            " sent ", header.length, " bytes at ", header.address, " where ",
                            op.context->who[op.context->rank], " expects ", bytes,
                            "; call with the same counts on all ranks"),
                       source),
                true);
  return false;
}

// Whether the sender called what we called; if not, everybody is told.
bool Engine::agrees(Context& context, int source, const Header& header) {
  std::uint64_t mine = header.fingerprint;
  if (const Operation* op = context.find(header.sequence)) {
    mine = op->recipe->fingerprint;
  } else if (header.sequence + context.history.size() >= context.next_sequence) {
    mine = context.history[header.sequence % context.history.size()];
  }
  if (mine == header.fingerprint) return true;
  differs(context, mine, source, header);
  return false;
}

// Keeps a frame of a collective that we have not started yet.
static void keep_early(Context& context, Kept kept) {
  const std::uint64_t sequence = kept.header.sequence;
  auto found = context.early.find(sequence);
  if (found == context.early.end() && !context.early_spare.empty()) {
    context.early_spare.back().key() = sequence;
    found = context.early.insert(std::move(context.early_spare.back())).position;
    context.early_spare.pop_back();
  }
  if (found == context.early.end()) found = context.early.try_emplace(sequence).first;
  found->second.push_back(std::move(kept));
}

void Engine::receive(Context& context, int source, const Header& header, const std::byte* payload) {
  if (!context.poison.ok()) {
    tell(context, source);  // it does not know, or it would not send
    return;
  }
  if (header.sequence >= context.next_sequence) {
    keep_early(context, keep(source, header, payload));
    return;
  }
  Operation* op = context.find(header.sequence);
  if (op == nullptr || header.fingerprint != op->recipe->fingerprint) {
    agrees(context, source, header);
    return;
  }
  if (!op->absent.empty()) op->absent.erase(static_cast<std::uint32_t>(source));
  if (header.type != Type::Data) {
    receive_control(context, *op, source, header, payload);
    return;
  }
  const std::int64_t step = recv_step(*op, source, header.index);
  if (step < 0) return differs(context, op->recipe->fingerprint, source, header);
  const auto id = static_cast<std::uint32_t>(step);
  if (!fits(*op, id, header, source)) return;
  Channel& channel = *context.channels[source];
  // It came before we called, and a place has been told since.
  if (channel.up() && header.length > channel.eager_bytes()) channel.link()->settle(header);
  if (op->steps[id].waiting == 0) {
    apply(*op, id, header.address, payload, header.length);
    return;
  }
  op->stash.push_back({id, header.address, header.length, blocks_.copy(payload, header.length)});
}

Kept Engine::keep(int source, const Header& header, const std::byte* payload) {
  return {source, header, blocks_.copy(payload, header.length)};
}

void Engine::receive_control(Context& context, Operation& op, int source, const Header& header,
                             const std::byte* payload) {
  const auto said = [&] {
    return std::string(reinterpret_cast<const char*>(payload), header.length);
  };
  switch (header.type) {
    case Type::Open: {
      op.opened.resize(context.size);
      op.opened[source] = 1;
      std::vector<std::uint32_t> released = std::move(op.released);
      std::erase_if(op.blocked, [&](std::uint32_t id) {
        const bool mine = op.recipe->plan.steps[id].peer == source;
        if (mine) released.push_back(id);
        return mine;
      });
      for (const std::uint32_t id : released) issue_send(op, id);
      released.clear();
      op.released = std::move(released);
      return;
    }
    case Type::Ready: {
      const std::int64_t step = recv_step(op, source, header.index);
      if (step < 0 || !context.channels[source]->pulls()) return;
      StepState& state = op.steps[step];
      if (state.done || state.announced) return;
      if ((header.flags & wire::kGrowing) != 0) {
        return grown(context, op, static_cast<std::uint32_t>(step), source, header);
      }
      state.announced = true;
      state.value = header.address;
      state.shared = (header.flags & wire::kShared) != 0;
      if ((header.flags & wire::kOnDevice) != 0) {
        op.abroad.emplace_back(static_cast<std::uint32_t>(step), said());
      }
      if (state.waiting == 0) {
        start_pull(*context.channels[source], op, static_cast<std::uint32_t>(step), header.address,
                   state.shared);
      }
      return;
    }
    case Type::Written: {
      const std::int64_t step = recv_step(op, source, header.index);
      if (step < 0 || op.steps[step].done || op.steps[step].waiting != 0) return;
      receive_written(op, static_cast<std::uint32_t>(step), source, header);
      return;
    }
    case Type::Stream:
    case Type::Done: {
      const plan::Inlet* outlet = inlet_of(op.recipe->outlets, source);
      if (outlet == nullptr || header.index >= outlet->count) return;
      const std::uint32_t id = op.recipe->send_steps[outlet->first + header.index];
      if (op.steps[id].done) return;
      // What is not whole yet is not asked for: the peer cannot have been told of all of it.
      if (op.steps[id].waiting > 0 && header.type == Type::Stream && header.address == 0) return;
      context.channels[source]->flowed = 0;  // it has called for what was announced
      if (header.type == Type::Stream) {
        op.steps[id].announced = true;
        if (op.steps[id].shared && op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
          declined(*context.channels[source], header, said());
        }
        if (header.address == 0 || !in_shared_memory(op, id))
          stream(*context.channels[source], op, id);
      } else if (op.steps[id].waiting == 0) {
        sent(op, id);
      }
      return;
    }
    default: return;  // Probe: that we agree is all it asks
  }
}

void Engine::receive_early(Operation& op) {
  Context& context = *op.context;
  auto early = context.early.extract(op.sequence);
  if (!early) return;
  for (const Kept& kept : early.mapped()) {
    receive(context, kept.source, kept.header, kept.payload.get());
    drain();
  }
  early.mapped().clear();
  if (context.early_spare.size() < 64) context.early_spare.push_back(std::move(early));
}

// Stores a part of a message where its step wants it, or reduces it into there.
void Engine::put(Operation& op, std::uint32_t id, std::uint64_t offset, const std::byte* payload,
                 std::uint64_t bytes) {
  const Recipe& recipe = *op.recipe;
  const Step& step = recipe.plan.steps[id];
  std::byte* dst = op.at(step.dst) + offset;
  if (bytes == 0) return;
  if (stores(op, id)) {
    std::memcpy(dst, payload, bytes);
    return;
  }
  const std::byte* mine = op.at(step.src) + offset;
  const std::size_t count = bytes >> std::countr_zero(recipe.element_bytes);
  if ((reinterpret_cast<std::uintptr_t>(payload) & (recipe.element_bytes - 1)) != 0) {
    bounce_.resize(std::max<std::size_t>(bounce_.size(), bytes));
    std::memcpy(bounce_.data(), payload, bytes);
    payload = bounce_.data();
  }
  if (step.received_first) {
    recipe.reduce(dst, payload, mine, count);
  } else {
    recipe.reduce(dst, mine, payload, count);
  }
}

// Takes a part of a message into its step. payload nullptr: it is in its place already.
void Engine::apply(Operation& op, std::uint32_t id, std::uint64_t offset, const std::byte* payload,
                   std::uint64_t bytes) {
  const Recipe& recipe = *op.recipe;
  const Step& step = recipe.plan.steps[id];
  if (payload != nullptr) put(op, id, offset, payload, bytes);
  if (op.staged != nullptr && op.staged->plan->runs_in_place(id)) {
    Channel& channel = *op.context->channels[step.peer];
    if (offset == 0 && channel.pulls()) channel.devices.expecting.let_down();
    Cell cell = cell_of(op, id);
    cell.offset += offset;
    cell.bytes = bytes;
    staging_.carry(*op.staged, false, cell);
    return;
  }
  if (op.staged != nullptr) wrote(staging_, op, step.dst, offset, bytes);
  came(op, id, bytes);
}

// Bytes of a message are where its step wants them.
void Engine::came(Operation& op, std::uint32_t id, std::uint64_t bytes) {
  op.steps[id].value += bytes;
  if (op.steps[id].value == op.bytes_of(op.recipe->plan.steps[id])) complete(op, id);
}

}  // namespace hccomm::engine
