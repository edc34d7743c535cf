// SPDX-License-Identifier: Apache-2.0
//
// Which algorithm, cut how: the user's rules first (rules.hpp), then a measured table (table.hpp),
// then the table of defaults (defaults.cpp). It looks at nothing that may differ between ranks, so
// all of them choose alike without a word; and it says why, for `hccomm explain`.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "algorithm/algorithms.hpp"
#include "select/rules.hpp"
#include "select/table.hpp"

namespace hccomm::select {

// What the choice depends on besides the call and the group. The same on all ranks: agreed upon
// when the group is made.
struct Facts {
  int cores = 0;                    // of the host that has the fewest; 0: unknown, taken as enough
  bool shm_intra_host = true;       // every two ranks of a host share memory
  std::uint64_t segment_bytes = 0;  // HCCOMM_SEGMENT; 0: auto
};

struct Choice {
  const algorithm::Algorithm* algorithm = nullptr;
  algorithm::Tuning tuning;
  std::string why;  // "one host with shared memory, 4K: one hop"
};

// Throws Error(InvalidArgument) when a rule names an algorithm that does not serve the call.
// Requires: collective::check passed.
Choice choose(const plan::Call& call, const plan::Group& group, const Facts& facts,
              const Rules& rules = {}, const Table& table = {});

// Where the ranks of a group are, as far as algorithms care.
enum class Place : std::uint8_t {
  Shared,   // one host with shared memory, a core for every rank
  Crowded,  // the same with more ranks than cores: every hop waits for the scheduler
  Hosts,    // several hosts, at least one with several ranks
  Network,  // every two ranks by network
};

// One line of the table of defaults: the first that holds for a call is taken.
struct Default {
  plan::Collective collective;
  Place place;
  int most_ranks;
  std::uint64_t most_bytes;  // of the large buffer
  std::uint64_t most_share;  // of that, divided by the ranks
  const char* algorithm;
  const char* why;
};

std::span<const Default> defaults();

Place place_of(const plan::Group& group, const Facts& facts);
const char* name(Place place) noexcept;

}  // namespace hccomm::select
