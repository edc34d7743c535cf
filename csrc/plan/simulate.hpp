// SPDX-License-Identifier: Apache-2.0
//
// How long would it take? Runs the plans of all ranks of one call on a model of the machine instead
// of links: a message costs alpha and beta per byte, a reduced byte gamma (Hockney's model with
// ports: a rank sends one message and receives one at a time; ranks of a host share its network
// port). For comparing algorithms and for groups larger than any machine at hand: tests/ and
// `hccomm explain --simulate`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/plan.hpp"

namespace hccomm::plan {

struct Machine {
  struct Path {
    double alpha = 0;  // seconds from the first byte sent to the first received
    double beta = 0;   // seconds a byte
  };
  Path inside{1e-6, 1.0 / 10e9};     // two ranks of one host
  Path across{10e-6, 1.0 / 3e9};     // two hosts
  double gamma = 1.0 / 10e9;         // seconds a byte that is copied, reduced or scaled
  std::uint64_t eager_bytes = 8192;  // larger messages wait for their receiver
};

// What went over one link, from one rank to another.
struct LinkLoad {
  int from = -1, to = -1;
  std::uint64_t messages = 0, bytes = 0;
};

struct Simulation {
  double seconds = 0;            // until the last rank has finished
  std::vector<double> finished;  // by rank
  std::vector<LinkLoad> links;   // in the order of ranks
  std::uint64_t messages = 0, bytes = 0;
  std::uint64_t bytes_across = 0;  // of those, between hosts
  bool complete = false;           // false: the plans never end (plan::check says why)
};

// Requires: the plans of all ranks, by rank, that plan::check finds right or that algorithm/ made.
// host_of is the Group's; empty: one host.
Simulation simulate(std::span<const Plan> plans, std::span<const int> host_of,
                    std::uint64_t element_bytes, const Machine& machine = {});

}  // namespace hccomm::plan
