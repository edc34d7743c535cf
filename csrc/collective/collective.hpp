// SPDX-License-Identifier: Apache-2.0
//
// What each collective means: what a legal call is, how large its buffers are, how bus bandwidth is
// counted, and what the result must be. One file per collective; builtins.inc lists them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plan/plan.hpp"

namespace hccomm::collective {

// A range of the output of one rank and what it must hold: for reductions the sum over all
// contributions, for the others the one contribution.
struct Expectation {
  plan::Slice output;
  struct Contribution {
    int rank = 0;
    std::uint64_t offset = 0;  // in that rank's input
  };
  std::vector<Contribution> contributions;
};

struct Descriptor {
  plan::Collective id;
  const char* name;
  // Throws Error(InvalidArgument) naming the argument, its value and the remedy.
  void (*check)(const plan::Call&, const plan::Group&);
  // Elements that this rank's input and output must hold.
  std::uint64_t (*input_count)(const plan::Call&, const plan::Group&);
  std::uint64_t (*output_count)(const plan::Call&, const plan::Group&);
  // busbw = algbw * factor, as nccl-tests defines it.
  double (*bus_factor)(int size);
  std::vector<Expectation> (*expect)(const plan::Call&, const plan::Group&);
};

std::span<const Descriptor> collectives();
const Descriptor& descriptor(plan::Collective id);

// What must be equal on all ranks, in 64 bits: collective, dtype, op, root and count. Never 0.
std::uint64_t fingerprint(const plan::Call& call);
std::string describe(const plan::Call& call);  // "allreduce(count=4, f32, sum)"
std::string describe_fingerprint(std::uint64_t fingerprint);

}  // namespace hccomm::collective
