// SPDX-License-Identifier: Apache-2.0
//
// How islands divide a block of data among their ranks, and which ranks therefore exchange what: a
// rail joins, across islands, the owners of the same elements. Pure: all ranks compute alike.
#pragma once

#include <cstdint>
#include <vector>

namespace hccomm::native {

// What each rank of an island takes of a block, relative to the others; 0: nothing.
using Shares = std::vector<std::uint32_t>;

// A range of a block and, by island, the place of its owner there.
struct Rail {
  std::uint64_t begin = 0, end = 0;
  std::vector<int> owners;
  friend bool operator==(const Rail&, const Rail&) = default;
};

// Where the parts of a block of `count` elements begin, and at the end `count`.
std::vector<std::uint64_t> part_begins(std::uint64_t count, const Shares& shares);

// The rails of a block in order; every element is in one. Requires: some share of each island is
// not 0.
std::vector<Rail> rails_of(std::uint64_t count, const std::vector<Shares>& islands);

// All to one rank.
Shares only(std::size_t ranks, int place);

// Who of an island serves the n-th of `many` pieces that each go to one rank: as often as its
// share says, and neighbours by different ranks.
int owner_of_piece(std::size_t n, const Shares& shares);

// What each rank measured, by island and place, made alike at both ends of a rail: it is as fast as
// its slower end. Islands of one size have rails between equal places; others are left alone.
void settle_ends(std::vector<std::vector<double>>& rates);

// New shares after measuring, by rank, how fast its parts crossed (bytes per second; 0: unknown):
// slow ranks get less, at least a quarter of an equal share. The old ones where they differ by less
// than a fifth, so that noise changes nothing.
Shares reshare(const Shares& old, const std::vector<double>& rates);

}  // namespace hccomm::native
