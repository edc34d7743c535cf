// SPDX-License-Identifier: Apache-2.0
//
// Double binary tree: two trees over the same ranks, in which the inner ranks of one are leaves of
// the other; each reduces half of the data to its root and hands it down again (Sanders, Speck and
// Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009). The hops
// grow with log2(n) and every link is used both ways: for medium and large data among many ranks.
//
// select/ picks it, engine/ runs the plan it returns. Pure: it touches no buffer and no socket.
#include <array>
#include <bit>

#include "algorithm/phases.hpp"

namespace hccomm::algorithm {

namespace {

constexpr int kNone = -1;

struct Node {
  int parent = kNone;
  std::array<int, 2> children{kNone, kNone};
};

// The in-order tree over 0..n-1 whose leaves are the odd ranks: a rank's height is the number of
// its trailing zero bits, and rank 0 stands above all. A missing right child is replaced by the
// nearest rank below it that exists.
Node in_order(int rank, int n) {
  Node node;
  const int bit =
      rank == 0 ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(n))) : rank & -rank;
  if (rank != 0) {
    const int up = (rank ^ bit) | (bit << 1);
    node.parent = up < n ? up : rank ^ bit;
  }
  int below = bit / 2;
  if (rank != 0 && below != 0) node.children[0] = rank - below;
  while (below != 0 && rank + below >= n) below /= 2;
  if (below != 0) node.children[1] = rank + below;
  return node;
}

// The same tree mirrored, or turned by one where n is odd: its leaves are the first tree's inner
// ranks.
Node other(int rank, int n) {
  const auto turn = [n](int r) { return n % 2 == 0 ? n - 1 - r : (r + 1) % n; };
  const auto back = [n](int r) { return n % 2 == 0 ? n - 1 - r : (r + n - 1) % n; };
  Node node = in_order(turn(rank), n);
  if (node.parent != kNone) node.parent = back(node.parent);
  for (int& child : node.children) {
    if (child != kNone) child = back(child);
  }
  return node;
}

void reduce_up(plan::Builder& steps, const Node& node, plan::Slice piece) {
  for (const int child : node.children) {
    if (child != kNone) steps.recv_reduce(child, piece);
  }
  if (node.parent != kNone) steps.send(node.parent, piece);
  if (node.parent == kNone) steps.average(piece);
}

void hand_down(plan::Builder& steps, const Node& node, plan::Slice piece) {
  if (node.parent != kNone) steps.recv(node.parent, piece);
  for (const int child : node.children) {
    if (child != kNone) steps.send(child, piece);
  }
}

}  // namespace

static plan::Plan tree(const plan::Call& call, const plan::Group& group, const Tuning& tuning) {
  plan::Builder steps(call, group);
  const plan::Slice all = whole(call);
  const std::array<Node, 2> nodes{in_order(group.rank, group.size), other(group.rank, group.size)};
  steps.premultiply(all);
  const std::uint64_t last = segments(chunk(all, 0, 2).count, tuning);
  for (std::uint64_t index = 0; index < last; ++index) {
    const std::array<plan::Slice, 2> pieces{segment(chunk(all, 0, 2), index, tuning),
                                            segment(chunk(all, 1, 2), index, tuning)};
    for (std::size_t t = 0; t < 2; ++t) reduce_up(steps, nodes[t], pieces[t]);
    for (std::size_t t = 0; t < 2; ++t) hand_down(steps, nodes[t], pieces[t]);
  }
  return steps.take("tree");
}

Algorithm allreduce_tree() {
  return {plan::Collective::AllReduce, "tree",
          "double binary tree, pipelined: log2(n) hops at full bandwidth", tree};
}

}  // namespace hccomm::algorithm
