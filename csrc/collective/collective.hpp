// SPDX-License-Identifier: Apache-2.0
//
// What each collective means: which calls are right, how long its buffers are, what its result is
// made of, how its bandwidth counts, and the fingerprint by which ranks notice that they called
// different things. One file per collective; builtins.inc lists them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "plan/check.hpp"
#include "plan/plan.hpp"
#include "plan/shape.hpp"

namespace hccomm::collective {

struct Descriptor {
  plan::Collective id;
  const char* name;
  const char* summary;  // one line for `hccomm info`
  bool reduces;         // `op` counts
  bool rooted;          // `root` counts
  // Throws Error(InvalidArgument) naming the argument, its value and the remedy.
  void (*check)(const plan::Call&, const plan::Group&);
  // busbw = algbw * bus_factor(size), as nccl-tests define it.
  double (*bus_factor)(int size);
  // What the result is made of, for plan::check.
  plan::Reference reference;
};

std::span<const Descriptor> collectives();
const Descriptor& find(plan::Collective id);

// The check of the call's own collective.
void check(const plan::Call& call, const plan::Group& group);

// Elements of this rank's buffers.
using plan::input_count;
using plan::output_count;

// Whether all ranks know all counts of the v-form: not so in alltoallv, nor, off the root, in
// gatherv and scatterv.
bool counts_agree(plan::Collective collective) noexcept;

// Elements by which algbw counts and select/ chooses: of the large buffer, where there is one. Of a
// v-form whose counts do not agree, 0.
std::uint64_t total_count(const plan::Call& call, const plan::Group& group);

// The call in 64 bits, never 0 and equal on all ranks that called the same: what may differ between
// ranks (place, offsets, the counts of alltoallv, gatherv and scatterv) is left out. A uniform call
// and a v-form one differ, even where the counts are equal.
std::uint64_t fingerprint(const plan::Call& call);

// "allreduce(count=1024, f32, sum)"
std::string describe(const plan::Call& call);
// The same of another rank's call, as far as 64 bits tell.
std::string describe_fingerprint(std::uint64_t fingerprint);

}  // namespace hccomm::collective
