// SPDX-License-Identifier: Apache-2.0
//
// Between devices of one machine: what one rank's runtime has copied to its mirror, that of the
// other copies from there to its device, if the mirror is in memory that can be mapped. So a byte
// is copied once on each side. The sender says where its bytes lie; the receiver alone decides
// whether it maps them, or pulls as it would otherwise, and tells when it is done with them.
#include <algorithm>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using plan::Space;
using plan::Step;
using wire::Type;

static bool in_shared_memory(const Staged& staged, std::uint32_t memory) {
  return staged.memory[memory].mirror != nullptr && staged.memory[memory].lease.shared;
}

bool in_shared_memory(const Operation& op, std::uint32_t id) {
  const bool message = op.kind != OperationKind::Collective;
  if (op.staged == nullptr) {  // a message says so itself, as it is announced
    if (message) return false;
    const plan::Step& step = op.recipe->plan.steps[id];
    const Channel& channel = *op.context->channels[static_cast<std::size_t>(step.peer)];
    return channel.up() && channel.link()->shows(op.at(step.src), op.bytes_of(step));
  }
  if (message) return in_shared_memory(*op.staged, 0);
  const Space space = op.recipe->plan.steps[id].src.space;
  return space != Space::Scratch && in_shared_memory(*op.staged, op.staged->plan->memory_of(space));
}

// Has the device copy what the step receives from where the peer has it, once that is written
// (Staging::written). False: it is to be pulled.
bool Engine::fetch(Operation& op, std::uint32_t id, const transport::ViewPtr& view,
                   std::uint64_t address) {
  if (op.staged == nullptr) return false;
  Staged& staged = *op.staged;
  if (op.kind != OperationKind::Collective) {
    return staging_.fetch(staged, 0, op.bytes, view, view->at(address));
  }
  if (!staged.plan->may_view(id)) return false;
  const plan::Step& step = op.recipe->plan.steps[id];
  const std::uint64_t at = step.dst.offset * op.recipe->element_bytes, bytes = op.bytes_of(step);
  const std::uint64_t begin = staged.plan->base[static_cast<int>(Space::Output)] + at;
  return staging_.fetch(staged, begin, bytes, view, view->at(address));
}

// Offers what the step sends while it still leaves the device: where, then how much is there.
void tell_growth(Operation& op, std::uint32_t id) {
  const Step& step = op.recipe->plan.steps[id];
  Channel& channel = *op.context->channels[static_cast<std::size_t>(step.peer)];
  Staged::Leaving& mine = op.staged->sends[id];
  if (mine.here == mine.told) return;
  Header ready = message_of(op, id);
  ready.type = Type::Ready;
  ready.flags = wire::kShared | wire::kGrowing;
  ready.address = reinterpret_cast<std::uintptr_t>(op.at(step.src));
  if (mine.told == 0) channel.send(ready, nullptr);
  op.steps[id].shared = true;
  ready.address = mine.told = mine.here;
  channel.send(ready, nullptr);
}

// More of what is so offered is there. Our device copies it, or the message is taken as others are,
// once it is whole.
void Engine::grown(Context& context, Operation& op, std::uint32_t id, int source,
                   const Header& header) {
  Channel& channel = *context.channels[source];
  if (!channel.up()) return lost(context, source);  // it has left since, and its memory with it
  const std::uint64_t bytes = op.bytes_of(op.recipe->plan.steps[id]);
  const auto mine = std::ranges::find(op.growing, id, &Operation::Growing::step);
  if (mine == op.growing.end()) return op.growing.push_back({id, header.address});
  if (header.address <= mine->here || header.address > bytes) {
    poison_locked(context,
                  Status(Code::Integrity,
                         text(context.who[source], " says that ", header.address, " of ", bytes,
                              " bytes are there, after ", mine->here),
                         source),
                  true);
    return;
  }
  StepState& state = op.steps[id];
  const std::uint64_t before = std::exchange(mine->here, header.address);
  if (before == 0 && state.waiting == 0) {
    const auto view = channel.link()->view(mine->address, bytes);
    const bool pinned = view != nullptr && view->bytes <= settings_.staging_bytes;
    mine->fetched = pinned && fetch(op, id, view, mine->address);
  }
  if (mine->fetched) {
    const std::uint64_t at = op.recipe->plan.steps[id].dst.offset * op.recipe->element_bytes;
    staging_.written(*op.staged, at + before, mine->here - before);
  } else if (mine->here == bytes) {
    state.announced = state.shared = true;
    state.value = mine->address;
    if (state.waiting == 0) start_pull(channel, op, id, mine->address, true);
  }
}

// A copy from the peer's memory has ended.
void Engine::fetched(Staged& staged, const Cell& cell) {
  Operation& op = *staged.operation;
  const bool message = op.kind != OperationKind::Collective;
  const std::uint32_t id = message ? 0 : cell.first;
  const int peer = message ? op.peer : op.recipe->plan.steps[id].peer;
  Channel& channel = *op.context->channels[static_cast<std::size_t>(peer)];
  if (!pulled(channel, op, id, cell.bytes)) return;
  if (!message) return came(op, id, cell.bytes);
  op.moved += cell.bytes;
  if (op.moved == op.bytes) end(op);
}

void tell_here(Operation& op) {
  const std::uint64_t more = op.staged->available - op.here;
  if (more == 0) return;
  Header header;
  header.type = Type::TaggedHere;
  header.context = op.context->id;
  header.sequence = op.tag;
  header.index = op.index;
  header.fingerprint = more;
  header.address = reinterpret_cast<std::uintptr_t>(op.data) + op.here;
  if (in_shared_memory(op, 0)) header.flags = wire::kShared;
  op.here += more;
  op.context->channels[static_cast<std::size_t>(op.peer)]->send(header, nullptr);
}

void Engine::more_here(Context& context, Operation& op, int source, const Header& header) {
  Channel& channel = *context.channels[static_cast<std::size_t>(source)];
  const std::uint64_t begin = op.here, more = header.fingerprint;
  const bool follows = begin == 0 || header.address == op.source_address + begin;
  if (!channel.pulls() || more == 0 || more > op.bytes - begin || !follows) {
    poison_locked(context,
                  Status(Code::Integrity,
                         text(context.who[source], " says that ", more, " bytes from ", begin,
                              " of a message of ", op.bytes, " lie elsewhere, or are none"),
                         source),
                  true);
    return;
  }
  if (begin == 0) op.source_address = header.address;
  op.here += more;
  const bool shared = (header.flags & wire::kShared) != 0;
  auto view = shared ? channel.link()->view(op.source_address, op.bytes) : nullptr;
  const bool first = begin == 0 && view != nullptr;
  if (first ? fetch(op, 0, view, op.source_address)
            : op.staged != nullptr && !op.staged->from.empty()) {
    staging_.written(*op.staged, begin, more);
  } else {
    pulls_.push_back(
        {&channel, &op, 0, 0, op.source_address, begin, op.here, true, std::move(view)});
  }
}

}  // namespace hccomm::engine
