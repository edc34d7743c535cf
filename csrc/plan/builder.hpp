// SPDX-License-Identifier: Apache-2.0
//
// Writes plans. An algorithm lists its steps in textbook order; the builder derives which step must
// wait for which from the slices they read and write (RAW, WAR and WAW hazards), so whatever is
// independent runs at once. It is the only way to make a Plan.
//
// Reading an Output range that nothing has written yet reads the Input at the same offset, in the
// collectives whose buffers have the same shape (allreduce, reduce, broadcast): so an algorithm
// is written as if in place and is right out of place too; take() copies what was never touched.
// In a reduce, Output of a rank that is not the root is scratch: Input stays as it was.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "plan/hazards.hpp"
#include "plan/plan.hpp"

namespace hccomm::plan {

// Owns:   the plan under construction.
// Thread: one.
// Fails:  HCCOMM_CHECK on a step that sends to its own rank, lies outside its buffer or has
//         operands of unequal length: those are bugs of the algorithm. Steps of no elements vanish
//         (on both sides, as both sides compute the same counts).
class Builder {
 public:
  Builder(const Call& call, const Group& group);

  void send(int peer, Slice src);
  void recv(int peer, Slice dst);
  void recv_reduce(int peer, Slice dst);             // dst = dst op received
  void recv_reduce(int peer, Slice dst, Slice src);  // dst = src op received
  void copy(Slice dst, Slice src);                   // nothing where both are the same memory
  void reduce(Slice dst, std::vector<Slice> terms);  // in this order
  void premultiply(Slice dst);     // PREMUL_SUM: before the first use; else nothing
  Slice premultiplied(Slice src);  // the same into scratch, where src is Input
  void average(Slice dst);         // AVG: after the last reduction; else nothing
  // A message without payload, for barriers.
  void signal(int peer);
  void await(int peer);
  // Every later step waits for every earlier one.
  void fence();

  Slice scratch(std::uint64_t count);  // a fresh range of scratch

  // Requires: nothing is called afterwards.
  Plan take(const char* algorithm);

 private:
  Step message(Kind kind, int peer, Slice dst, Slice src);
  std::uint32_t add(Step step);
  Slice place(Slice slice);
  Slice source(Slice slice);
  void touch(Slice slice, bool write, std::uint32_t step);
  void copy_untouched();
  void link_edges();
  void link_messages();

  const Call call_;
  const Group group_;
  const bool aliased_, same_shape_;
  const bool output_is_scratch_;                // reduce, off the root
  const std::array<std::uint64_t, 2> extents_;  // elements of Output and Input

  Plan plan_;
  std::array<Hazards, 3> hazards_;    // by Space, in canonical slices
  std::vector<std::uint32_t> waits_;  // what each step waits for, back to back
  std::vector<std::uint32_t> now_;    // the same of the step being added
  std::vector<char> awaited_;         // by step: some later one waits for it
  std::uint32_t fence_ = 0;           // steps before the last fence
  bool fenced_ = false;
  Slice output_;  // where the Output lives that is scratch, once it is needed
  std::unordered_map<int, std::uint32_t> sent_, received_;  // messages so far, by peer
};

}  // namespace hccomm::plan
