// SPDX-License-Identifier: Apache-2.0
//
// How a collective enters the engine: started with a handle, run to its end, or run again as the
// last one was, which skips all that cannot have changed. comm/ calls these; the plan's steps are
// run by collective.cpp.
#include <algorithm>

#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

// Of the larger buffer.
static std::uint64_t bytes_of(const Job& job) {
  return std::max(job.recipe->extent[0], job.recipe->extent[1]);
}

Operation* Engine::start(Context& context, Job job, Follow follow) {
  Result<Staged*> staged = nullptr;
  if (job.device != nullptr) {  // outside the lock: a device is opened at its first use
    const auto& where = job.device->where;
    staged = staging_.prepare(*job.recipe, *job.device,
                              reach(context, bytes_of(job), where[0], where[1]));
  }
  Guard guard(*this);
  const Leftover leftover(staging_, staged);
  Operation* op = nullptr;
  if (!context.poison.ok()) {
    op = &fresh();
    enlist(*op, context, OperationKind::Send, job.timeout);
    surely([&] { finish(*op, context.poison); });
  } else {
    op = handle(begin_collective(context, job, &staged), follow);
  }
  call_back(guard);
  return op;
}

Status Engine::run(Context& context, Job job) {
  Result<Staged*> staged = nullptr;
  if (job.device != nullptr) {  // outside the lock: a device is opened at its first use
    const auto& where = job.device->where;
    staged = staging_.prepare(*job.recipe, *job.device,
                              reach(context, bytes_of(job), where[0], where[1]));
  }
  Guard guard(*this);
  const Leftover leftover(staging_, staged);
  if (!context.poison.ok()) return context.poison;
  context.last = job.simple ? job : Job();
  return run_here(guard, context, job, &staged);
}

Status Engine::run_here(Guard& guard, Context& context, const Job& job, Result<Staged*>* staged) {
  Operation& op = begin_collective(context, job, staged);
  if (!op.done()) drive(guard, &op, Deadline::never());
  flush();
  Status status = std::move(op.status);
  drop_reference(op);
  if (!callbacks_.empty()) call_back(guard);
  return status;
}

bool Engine::repeat(Context& context, const Simple& call, double factor, Seconds timeout,
                    Status& outcome) {
  Guard guard(*this);
  Job& last = context.last;
  if (!(last.simple == call) || !context.poison.ok()) return false;
  last.factor = factor;
  last.timeout = timeout;
  outcome = run_here(guard, context, last, nullptr);
  return true;
}

void Engine::forget_last(Context& context) {
  Guard guard(*this);
  context.last = {};
}

}  // namespace hccomm::engine
