// SPDX-License-Identifier: Apache-2.0
//
// A plan: what one rank does in one collective, as data. algorithm/ makes plans through
// plan/builder.hpp, engine/ runs them, plan/check.hpp proves them, plan/print.hpp shows them.
// Everything is in elements and relative to the buffers of the call, so one plan serves every call
// of the same shape.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dtype/dtype.hpp"

namespace hccomm::plan {

// Which collective. The numbers are the C ABI's and travel in the fingerprint.
enum class Collective : std::uint8_t {
  AllReduce = 1,
  AllGather,
  ReduceScatter,
  Broadcast,
  Reduce,
  Gather,
  Scatter,
  AllToAll,
  Barrier,
};
inline constexpr int kCollectives = 9;

// What the caller asked for. `count` is elements, by collective:
//   allreduce, broadcast, reduce   of the whole buffer
//   allgather, gather              of one rank's input (output holds size * count)
//   reducescatter, scatter         of one rank's output (input holds size * count)
//   alltoall                       of the part for one peer (both buffers hold size * count)
//   barrier                        0
// The v-forms give one entry per rank in counts (allgatherv, gatherv: what rank r contributes;
// reducescatterv, scatterv: what rank r receives; alltoallv: what I send to r) and, for alltoallv,
// recv_counts (what I receive from r). Offsets are where that part lies in the large buffer
// (input for reducescatterv, scatterv and alltoallv; output for allgatherv and gatherv), and
// recv_offsets where alltoallv puts what it receives. Empty counts mean the uniform form;
// `count` is then used. Counts are the same on all ranks except in alltoallv.
struct Call {
  Collective collective = Collective::Barrier;
  dtype::DType type = dtype::DType::U8;
  dtype::RedOp op = dtype::RedOp::Sum;
  int root = 0;
  std::uint64_t count = 0;
  bool in_place =
      false;  // the small buffer lies in its place inside the large one, or they are one
  std::vector<std::uint64_t> counts, offsets, recv_counts, recv_offsets;

  friend bool operator==(const Call&, const Call&) = default;
};

// Who takes part. host_of[r] numbers the hosts (islands later) from 0 in order of first rank.
struct Group {
  int rank = 0;
  int size = 1;
  std::vector<int> host_of;  // size entries, or empty: all on one host
  int hosts = 1;
};

enum class Space : std::uint8_t { Output, Input, Scratch };

// A range of elements of one of the call's buffers.
struct Slice {
  std::uint64_t offset = 0;
  std::uint64_t count = 0;
  Space space = Space::Output;
  friend bool operator==(const Slice&, const Slice&) = default;
};

enum class Kind : std::uint8_t {
  Send,        // src -> peer
  Recv,        // peer -> dst
  RecvReduce,  // dst = src op received, or received op src where received_first
  Copy,        // dst = src; one of no elements only orders the steps before and after it
  Reduce,      // dst = terms[0] op terms[1] op ...; half types accumulate in f32
  Multiply,    // dst = src * the call's factor   (PREMUL_SUM)
  Divide,      // dst = src / group size          (AVG)
};

// Thread: immutable once built.
struct Step {
  Kind kind = Kind::Copy;
  bool received_first = false;  // RecvReduce: the lower rank's operand is always the left one
  std::int32_t peer = -1;       // Send, Recv, RecvReduce
  std::uint32_t index = 0;      // Send: the how-manieth message to this peer; Recv*: from this peer
  Slice dst, src;
  std::uint32_t first_term = 0, terms = 0;            // Reduce: range in Plan::terms
  std::uint32_t dependencies = 0;                     // steps that must complete before
  std::uint32_t first_dependent = 0, dependents = 0;  // range in Plan::edges: steps waiting for me
};

// What one rank expects from one peer: recv_steps[first + k] is the step that takes its k-th
// message.
struct Inlet {
  std::int32_t peer = -1;
  std::uint32_t first = 0, count = 0;
};

struct Plan {
  std::string algorithm;  // "ring", for people
  std::vector<Step> steps;
  std::vector<std::uint32_t> edges;  // dependents of all steps, back to back
  std::vector<Slice> terms;          // operands of the Reduce steps
  std::vector<std::uint32_t> recv_steps;
  std::vector<Inlet> inlets;          // sorted by peer
  std::vector<std::int32_t> outlets;  // peers this rank sends to, sorted
  std::uint64_t scratch_count = 0;    // elements of scratch it needs
};

const char* name(Collective collective) noexcept;  // "allreduce"
// Whether the word means the collective: its name, with or without underscores ("all_reduce").
bool means(std::string_view word, Collective collective) noexcept;

}  // namespace hccomm::plan
