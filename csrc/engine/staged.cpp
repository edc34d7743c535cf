// SPDX-License-Identifier: Apache-2.0
//
// Operations whose buffers lie on a device. They run over mirrors; copies to the mirrors are
// dependencies of the steps that read them, and an operation ends when what it wrote has been
// copied back. One that fails ends when no copy of it is in flight any more: its buffers are the
// caller's again then, whatever went wrong.
#include <cstring>
#include <utility>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

using plan::Space;

static constexpr auto kLastCopies = std::chrono::seconds(5);  // for copies of a failed operation

// False when the operation has failed at once.
bool Engine::begin_staged(Operation& op, Result<Staged*>& staged) {
  Status status = staged.ok() ? Status() : staged.status();
  if (status.ok()) {
    Staged& mine = *staged.value();
    op.staged = &mine;
    staged = nullptr;  // taken
    if (op.kind == OperationKind::Collective) {
      const StagePlan& plan = *mine.plan;
      op.steps.assign(plan.initial.begin(), plan.initial.end());
      mine.sends.assign(plan.streamed.size(), {});
      for (const Space space : {Space::Output, Space::Input}) {
        const auto at = static_cast<int>(space);
        std::byte* const mirror = mine.memory[plan.memory_of(space)].mirror;
        if (mirror != nullptr) op.base[at] = mirror + plan.base[at];
      }
    } else {
      op.data = mine.memory[0].mirror;
    }
    tell_devices(*op.context);
    status = staging_.begin(mine, op);
    mine.begun = true;
  }
  if (!status.ok()) device_failed(op, status);
  return op.running();
}

// Everybody is told which rank's device it was.
void Engine::device_failed(Operation& op, const Status& why) {
  Context& context = *op.context;
  poison_locked(context,
                Status(why.code(), text(context.who[context.rank], ": ", why.text()), context.rank),
                true);
}

bool stores(const Operation& op, std::uint32_t step) {
  return op.recipe->plan.steps[step].kind == plan::Kind::Recv ||
         (op.staged != nullptr && op.staged->plan->sums(step));
}

// Every step, or the whole message, is done: so is the operation, unless copies are left.
void Engine::end(Operation& op) {
  if (op.staged == nullptr || staging_.copied_back(*op.staged)) finish(op);
}

// False while copies are in flight: finish() is called again when they are over.
bool Engine::leave_device(Operation& op, const Status& status) {
  if (staging_.cancel(*op.staged)) {
    staging_.recycle(*std::exchange(op.staged, nullptr));
    return true;
  }
  linger(op, status);
  return false;
}

// The operation has failed, but others still work on its buffers.
void Engine::linger(Operation& op, const Status& status) {
  if (!op.running()) return;
  HCCOMM_CHECK(!status.ok(), "an operation that succeeds has no copies in flight");
  op.status = status;
  detach(op);
  op.state.store(Operation::Ending, std::memory_order_relaxed);
  op.deadline = Clock::now() + kLastCopies;
  ring_service();
}

void Engine::hold(Operation& op) {
  Guard guard(*this);
  op.held = true;
  ++op.references;
}

void Engine::let_go(Operation& op) {
  Guard guard(*this);
  op.held = false;
  if (!op.running()) finish(op, {});
  drop_reference(op);
  call_back(guard);
}

// A failed operation whose copies do not end is over nonetheless. Its mirrors stay where they are.
void Engine::give_up(Operation& op) {
  op.status = Status(op.status.code(),
                     text(op.status.text(), "; its copies have not ended within ",
                          kLastCopies.count(), " s: the device may still use its buffers"),
                     op.status.rank());
  op.held = false;
  if (op.staged != nullptr) staging_.abandon(*std::exchange(op.staged, nullptr));
  finish(op, {});
}

// More of a step's source is here. Whether it is to be issued: what is sent unasked must be whole,
// and what is pulled by who does not map it; what is copied goes on piece by piece before.
static bool leaves(Staging& staging, const Operation& op, std::uint32_t id, const Cell& landed) {
  const plan::Step& step = op.recipe->plan.steps[id];
  Staged::Leaving& mine = op.staged->sends[id];
  const std::uint64_t element = op.recipe->element_bytes, bytes = step.src.count * element;
  const std::uint64_t begin =
      op.staged->plan->base[static_cast<int>(step.src.space)] + step.src.offset * element;
  const bool whole = op.steps[id].waiting == 0;
  if (landed.offset <= begin + mine.here) {
    mine.here = std::max(mine.here, landed.offset + landed.bytes - begin);
  }
  if (whole || mine.here > bytes) mine.here = bytes;
  if (step.kind == plan::Kind::Copy && mine.here > mine.told) {
    const std::uint64_t from = std::exchange(mine.told, mine.here), more = mine.here - from;
    std::memcpy(op.at(step.dst) + from, op.at(step.src) + from, more);
    if (step.dst.space == Space::Output) {
      staging.written(*op.staged, step.dst.offset * element + from, more);
    }
  }
  if (step.kind == plan::Kind::Copy) return whole;
  if (mine.issued) return false;
  const Channel& channel = *op.context->channels[static_cast<std::size_t>(step.peer)];
  const bool asked = channel.up() && bytes > channel.eager_bytes();
  const bool in_parts = !channel.pulls() || (channel.devices.grows && in_shared_memory(op, id));
  return mine.issued = whole || (asked && in_parts && mine.here > 0);
}

// ---- what staging tells -------------------------------------------------------------------------

void Engine::copied_in(Staged& staged, const Cell& cell) {
  Operation& op = *staged.operation;
  if (op.kind == OperationKind::Send) {
    Channel* const channel = op.context->channels[op.peer];
    if (op.asked) tell_here(op);
    if (!send_held(op) && channel != nullptr && channel->up()) channel->pump();
    return;
  }
  for (std::uint32_t k = cell.gates; k > 0; --k) {
    const std::uint32_t step = staged.plan->gates[cell.first_gate + k - 1];
    const bool whole = --op.steps[step].waiting == 0;
    const bool streams = staged.plan->streams(step);
    const bool sends = op.recipe->plan.steps[step].kind == plan::Kind::Send;
    if (streams ? leaves(staging_, op, step, cell) : whole) {
      ready_.emplace_back(&op, step);
    } else if (streams && sends && staged.sends[step].told > 0) {
      tell_growth(op, step);
    }
  }
}

void Engine::copied_out(Staged& staged) {
  Operation& op = *staged.operation;
  if (op.kind != OperationKind::Collective || op.left == 0) finish(op, {});
}

void Engine::copy_failed(Staged& staged, const Status& why) {
  Operation& op = *staged.operation;
  device_failed(op, why);
}

void Engine::copies_over(Staged& staged) { finish(*staged.operation, {}); }

}  // namespace hccomm::engine
