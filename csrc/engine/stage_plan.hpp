// SPDX-License-Identifier: Apache-2.0
//
// How a plan runs over buffers that lie on a device: which bytes are copied to the mirrors and
// which steps wait for them, and which bytes go back once they are final. Pure data derived from a
// plan; staging.hpp moves the bytes. Only what the plan reads before it writes is copied in, and
// only what it writes is copied back, so a mirror needs no defined content. Where cards reach the
// device, or the peer's device does, steps that only move data run in place: their bytes have no
// mirror at all. Where a peer's
// memory is seen from here, what nothing reads again on the host goes from there to the device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/operation.hpp"
#include "engine/parts.hpp"
#include "plan/plan.hpp"

namespace hccomm::engine {

// What a stage plan depends on besides the recipe. Memory 0 holds Output; memory 1 holds Input,
// unless the two are `one` memory: then Input begins `shift` bytes behind Output.
struct StageKey {
  bool staged[2] = {};
  bool one = false;
  std::int64_t shift = 0;
  std::uint64_t segment = 0;   // bytes of one copy, at most
  bool sums = false;           // the device reduces what it can
  Reach cards, opened, opens;  // no ranks: everything is staged
  Reach views;                 // whose mirrors are seen, maybe

  bool places(int peer, std::uint64_t size, bool sent) const {
    return cards.has(peer, size) || (sent ? opened : opens).has(peer, size);
  }
  bool places_any() const {
    return !cards.ranks.empty() || !opened.ranks.empty() || !opens.ranks.empty();
  }
  friend bool operator==(const StageKey&, const StageKey&) = default;
};

// One copy between a device buffer and its mirror.
struct Cell {
  std::uint64_t offset = 0, bytes = 0;  // in its memory
  std::uint32_t memory = 0;             // 0 or 1
  std::uint32_t first = 0;  // to the mirror: the first step that reads it; else that which receives
  std::uint32_t first_gate = 0, gates = 0;  // to the mirror: range in StagePlan::gates
  std::uint64_t writes = 0;                 // to the device: bytes written into it in all
  // To the device: it is reduced there with what lies at `source` of that memory.
  bool sums = false, mirror_first = false;
  bool across = false;  // to the device: from a peer's device
  std::uint32_t source_memory = 0;
  std::uint64_t source = 0;
};

// Thread: immutable once built, but for a message's, which its operation makes anew.
struct StagePlan {
  StageKey key;
  std::uint64_t base[2] = {};        // by plan::Space: where that buffer begins in its memory
  std::uint64_t bytes[2] = {};       // by memory
  std::vector<Cell> in;              // to the mirrors, in the order of first use
  std::vector<std::uint32_t> gates;  // steps that wait for a cell, back to back
  std::vector<Cell> out;             // to the device, by offset; all of memory 0
  std::vector<StepState> initial;    // Recipe::initial and roots, with the copies as dependencies
  std::vector<std::uint32_t> roots;
  // By step: it runs in place. Such a step waits for the caller's stream, too. Empty: none does.
  std::vector<std::uint8_t> in_place;
  std::vector<std::uint32_t> placed;  // those steps
  // By step: the device reduces what it receives. Empty: none does.
  std::vector<std::uint8_t> summed;
  // By step: nothing on the host reads what it receives, and its cells are its own, so that the
  // device may copy them from where the peer has them. Empty: no step is such.
  std::vector<std::uint8_t> viewed;
  // By step: it sends or copies what the caller left on the device alone, in several cells, so that
  // the first may go on while others are still to come. Empty: no step is such.
  std::vector<std::uint8_t> streamed;
  std::size_t element_bytes = 1;
  device::Reduction reduction;

  bool runs_in_place(std::uint32_t step) const { return !in_place.empty() && in_place[step] != 0; }
  bool sums(std::uint32_t step) const { return !summed.empty() && summed[step] != 0; }
  bool may_view(std::uint32_t step) const { return !viewed.empty() && viewed[step] != 0; }
  bool streams(std::uint32_t step) const { return !streamed.empty() && streamed[step] != 0; }
  std::uint32_t memory_of(plan::Space space) const {
    return space == plan::Space::Input && !key.one ? 1 : 0;
  }
};

device::Reduction reduction_of(const Recipe& recipe);
std::shared_ptr<const StagePlan> make_stage_plan(const Recipe& recipe, const StageKey& key);
// A message of `bytes` in memory 0: copied to the mirror where it is sent, else to the device.
// Where it moves in place (step 0), there is nothing to copy.
void plan_message(StagePlan& plan, std::uint64_t bytes, bool sent, std::uint64_t segment);

}  // namespace hccomm::engine
