// SPDX-License-Identifier: Apache-2.0
//
// One call in flight on this rank: a plan being run, or one point-to-point message. Made by
// Engine::start, driven by Engine::progress, waited for through Engine::wait.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "dtype/reduce.hpp"
#include "engine/blocks.hpp"
#include "plan/plan.hpp"

namespace hccomm::engine {

struct Buffers;
struct Context;
struct StagePlan;
struct Staged;
class Engine;

// Where one step stands. Copied from Recipe::initial when an operation starts.
struct StepState {
  std::uint32_t waiting = 0;  // steps that must complete first
  bool announced = false;     // the peer's Ready has come (`value` is its address), or Stream
  // That is in memory that can be mapped. Of a send: ours has gone, and we write nothing ourselves.
  bool shared = false;
  bool done = false;
  std::uint64_t value = 0;  // bytes received, or the address to pull from
};

// Everything about a call that does not change from one use to the next: made once by comm/, kept
// in its plan cache, shared by the operations that use it.
struct Recipe {
  plan::Plan plan;
  std::size_t element_bytes = 1;  // a power of two
  dtype::DType type = dtype::DType::U8;
  dtype::RedOp op = dtype::RedOp::Sum;
  dtype::Reduce reduce = nullptr;
  dtype::ReduceMany reduce_many = nullptr;
  dtype::Scale multiply = nullptr, divide = nullptr;
  std::uint64_t fingerprint = 0;
  bool rooted = false;                       // some of its ranks may only send
  bool moves = false;                        // no rank reduces
  std::string what;                          // "allreduce(count=4, f32, sum)", for messages
  std::vector<StepState> initial;            // one per step
  std::vector<std::uint32_t> roots;          // steps but receives without dependencies, last first
  std::vector<std::uint64_t> inlet_largest;  // per inlet: bytes of its largest message
  bool brief = false;                        // no message is larger than kBriefBytes
  std::uint64_t sent_count = 0;              // elements sent by this rank, in all
  // Like Plan::inlets and recv_steps, for what we send: outlets[i] is of peer Plan::outlets[i].
  std::vector<plan::Inlet> outlets;
  std::vector<std::uint32_t> send_steps;
  // By step: a number that sends of the same bytes to several peers have in common, or 0. Empty
  // where there are none.
  std::vector<std::uint32_t> fans;
  std::uint64_t extent[2] = {};  // bytes of Output and Input that the plan touches
  // How it runs over device buffers, as far as that has been asked; kept by engine/staging.
  mutable std::vector<std::shared_ptr<const StagePlan>> stages;
};

inline constexpr std::uint64_t kBriefBytes = 4096;

// Fills the derived members from plan and element_bytes.
void finish_recipe(Recipe& recipe);

// A collective on host memory without lists of counts, as the caller gave it: numbers that may mean
// nothing, and buffers with the elements they hold. Equal ones are the same call.
struct Simple {
  int collective = 0, type = 0, op = 0, root = 0;
  std::uint64_t count = 0;
  const std::byte *input = nullptr, *output = nullptr;
  std::uint64_t input_count = 0, output_count = 0;
  friend bool operator==(const Simple&, const Simple&) = default;
};

// What the caller brings to one use of a recipe.
struct Job {
  std::shared_ptr<const Recipe> recipe;
  std::byte* input = nullptr;
  std::byte* output = nullptr;
  double factor = 1.0;  // PREMUL_SUM
  Seconds timeout{300};
  const Buffers* device = nullptr;    // where not both lie in host memory; read by start() only
  std::optional<Simple> simple = {};  // run(): if the call comes again, repeat() shall know it
};

// A part of a message that came before its step (or its operation) was ready for it.
struct Stashed {
  std::uint32_t step = 0;
  std::uint64_t offset = 0, bytes = 0;
  Blocks::Block data;
};

enum class OperationKind : std::uint8_t { Collective, Send, Recv };

// Owns:   its scratch, its stash, and a share of the recipe.
// Thread: state is atomic; everything else is guarded by the engine's lock.
// Fails:  status holds the first failure; read it once state is Done.
struct Operation {
  // Ending: it has failed, and who works on its buffers (copies, a holder) has still to end.
  enum State : int { Free, Running, Ending, Done };

  OperationKind kind = OperationKind::Collective;
  std::atomic<int> state{Free};
  int references = 0;                        // of the engine while running, and of each handle
  std::size_t position = 0;                  // in Engine::running_
  Engine* engine = nullptr;                  // whose it is, for handles
  Context* context = nullptr;                // valid until Done
  std::uint64_t sequence = 0;                // collectives: number within the context
  std::uint64_t record = ~std::uint64_t{0};  // number in the flight recorder
  Status status;
  // The clock is not read when an operation starts: whoever drives sets the deadline at its first
  // look at the clock, milliseconds later at most.
  Seconds timeout{300};
  Clock::time_point deadline = Clock::time_point::max();
  Status doubt;                // a failure whose true reason may still come; raised at the deadline
  Clock::time_point probe_at;  // when to ask the peers we wait for; unset before the first look

  Staged* staged = nullptr;  // where buffers lie on a device
  bool held = false;         // something outside of the engine works on its buffers (hold)

  // collectives
  std::shared_ptr<const Recipe> recipe;
  std::byte* base[3] = {};  // by plan::Space
  double factor = 1.0;
  std::uint32_t left = 0;  // steps to do
  std::vector<StepState> steps;
  bool confirms = false;               // even small messages wait for their Open (begin_collective)
  std::vector<std::uint8_t> opened;    // by rank: Open has come
  std::vector<std::uint32_t> blocked;  // send steps that wait for an Open
  std::vector<std::uint32_t> released;  // empty; its memory is used again
  std::vector<Stashed> stash;
  // Where peers have on their devices what steps receive: (step, as the peer says it).
  std::vector<std::pair<std::uint32_t, std::string>> abroad;
  // What peers offer while it still leaves their devices: where, how much is there by now, and
  // whether ours copies it.
  struct Growing {
    std::uint32_t step = 0;
    std::uint64_t address = 0, here = 0;
    bool fetched = false;
  };
  std::vector<Growing> growing;
  std::set<std::uint32_t> absent;  // ranks that have not called yet, as far as we were told
  std::unique_ptr<std::byte[]> scratch;
  std::size_t scratch_bytes = 0;

  // point-to-point
  int peer = -1;  // -1: any source, until matched
  std::uint64_t tag = 0;
  std::uint32_t index = 0;  // of a large message, given by the sender
  bool listed = false;      // in Matching::sending or receiving
  std::uint8_t element_kind = 0;
  std::byte* data = nullptr;
  std::uint64_t bytes = 0, moved = 0;
  // A large message that comes from a device, and is pulled: the receiver has asked for it (one
  // that asks again cannot take it from the device itself); where
  // it begins in the sender's memory, and how much of it lies there, as has been told.
  bool asked = false;
  std::uint64_t source_address = 0, here = 0;
  std::uint64_t order = 0;  // of posting, to match in order

  bool unattended = false;  // the service thread has not been told, though nobody may wait
  void (*on_done)(void* context, int code) = nullptr;
  void* on_done_context = nullptr;

  std::byte* at(const plan::Slice& slice) const {
    return base[static_cast<int>(slice.space)] + slice.offset * recipe->element_bytes;
  }
  std::uint64_t bytes_of(const plan::Step& step) const {
    return (step.kind == plan::Kind::Send ? step.src.count : step.dst.count) *
           recipe->element_bytes;
  }
  std::uint32_t fan(std::uint32_t step) const {
    return recipe == nullptr || recipe->fans.empty() ? 0 : recipe->fans[step];
  }
  bool running() const { return state.load(std::memory_order_relaxed) == Running; }
  bool done() const { return state.load(std::memory_order_acquire) == Done; }
};

}  // namespace hccomm::engine
