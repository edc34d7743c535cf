// SPDX-License-Identifier: Apache-2.0
//
// Parts of algorithms that other algorithms are made of, written for a team: some ranks of the
// group in some order. Each stands in the file of the algorithm it comes from, as noted.
// They work on a slice of Output as if in place, and average where they complete the reduction.
#pragma once

#include <cstdint>
#include <vector>

#include "algorithm/pieces.hpp"

namespace hccomm::algorithm {

// Some ranks of a group; this rank is number `me` of `size`.
struct Team {
  int size = 1;
  int me = 0;
  std::vector<int> ranks;  // in the team's order; empty: all of the group, from rank `first` on
  int first = 0;

  // The rank with this number, counted round the team.
  int at(int number) const {
    const int i = ((number % size) + size) % size;
    return ranks.empty() ? (i + first) % size : ranks[static_cast<std::size_t>(i)];
  }
};

inline Team everyone(const plan::Group& group) { return {group.size, group.rank, {}, 0}; }
inline Team everyone_from(const plan::Group& group, int root) {
  return {group.size, (group.rank - root + group.size) % group.size, {}, root};
}

// A binomial tree over a team: the parent of a number is the number without its lowest bit, and the
// branch of a number is itself and the branch - 1 that follow it.
inline int branch(int number, int size) {
  return number == 0 ? size : std::min(number & -number, size - number);
}

// Scratch for what the others of a team send, for a few segments at a time: segment i may arrive
// once segment i - kDepth is reduced.
class Slots {
 public:
  Slots(plan::Builder& steps, const Team& team, plan::Slice longest, const Tuning& tuning);
  plan::Slice at(std::uint64_t index, int number, std::uint64_t count) const;

 private:
  static constexpr std::uint64_t kDepth = 4;
  std::uint64_t depth_, stride_;
  plan::Slice all_;
};

// dst = the team's segments in the team's order, of which this rank's own is `own`. For more than
// two, half types are rounded once. (slots.cpp)
void collect(plan::Builder& steps, const Team& team, plan::Slice dst, plan::Slice own,
             const Slots& slots, std::uint64_t index);

// Segment `index` of the one-hop reduce-scatter over all chunks of `data`, and of the allgather
// that follows it. (allreduce_scatter_gather.cpp)
void scatter_segment(plan::Builder& steps, const Team& team, plan::Slice data, const Slots& slots,
                     std::uint64_t index, const Tuning& tuning);
void gather_segment(plan::Builder& steps, const Team& team, plan::Slice data, std::uint64_t index,
                    const Tuning& tuning);

// Whole allreduces. (allreduce_ring.cpp, allreduce_recursive_doubling.cpp)
void ring(plan::Builder& steps, const Team& team, plan::Slice data, const Tuning& tuning);
void recursive_doubling(plan::Builder& steps, const Team& team, plan::Slice data);

// A team whose size is no power of two: fold() adds the data of the ranks beyond one into their
// neighbours and gives the team of the rest, in which `me` is -1 for a rank that is folded away;
// unfold() hands those the result. (fold.cpp)
Team fold(plan::Builder& steps, const Team& team, plan::Slice data);
void unfold(plan::Builder& steps, const Team& team, plan::Slice data);

// The `count` numbers from `first` on, as ranges whose ranks follow each other too.
struct Run {
  int first, count;
};
std::vector<Run> runs(const Team& team, int first, int count);

// To and from number 0 of the team. (reduce_binomial.cpp, broadcast_binomial.cpp)
void binomial_reduce(plan::Builder& steps, const Team& team, plan::Slice data,
                     const Tuning& tuning);
void binomial_broadcast(plan::Builder& steps, const Team& team, plan::Slice data,
                        const Tuning& tuning);

}  // namespace hccomm::algorithm
