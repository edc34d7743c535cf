// SPDX-License-Identifier: Apache-2.0
//
// The table of defaults: which algorithm where, up to how many ranks and bytes. The first line that
// holds and whose algorithm serves the call is taken; the last of each collective and place holds
// for all. Measurement may replace any number here; nothing else knows them.
#include <climits>

#include "select/select.hpp"

namespace hccomm::select {

namespace {

using enum plan::Collective;
using enum Place;

constexpr std::uint64_t K = 1024, M = 1024 * K;
constexpr int kAny = INT_MAX;
constexpr std::uint64_t kAll = kNoLimit;

constexpr const char* kOneHop = "one hop, little to send";
constexpr const char* kTwoHops = "two hops, least bytes, every pair has its own way";
constexpr const char* kFewHops = "log2(n) hops for little data";
constexpr const char* kHalves = "log2(n) hops and least bytes";
constexpr const char* kNeighbours = "least bytes, only neighbours talk";
constexpr const char* kPipelined = "each link carries the data once, pipelined";
constexpr const char* kInsideFirst = "one copy of the data leaves each host";
constexpr const char* kAtOnce = "one hop, no byte twice";
constexpr const char* kFewestMessages = "fewest messages: whoever works keeps others waiting";
constexpr const char* kFewMessages = "few messages for small parts";

constexpr Default kDefaults[] = {
    // collective, place, ranks, bytes, share, algorithm
    {AllReduce, Shared, 2, 16 * K, kAll, "direct", kOneHop},
    {AllReduce, Shared, 2, 2 * M, kAll, "halving_doubling", kHalves},
    {AllReduce, Shared, 8, 8 * K, kAll, "direct", kOneHop},
    {AllReduce, Shared, 16, 2 * K, kAll, "direct", kOneHop},
    {AllReduce, Shared, kAny, 2 * K, kAll, "recursive_doubling", kFewHops},
    {AllReduce, Shared, 32, kAll, kAll, "scatter_gather", kTwoHops},
    {AllReduce, Shared, kAny, 256 * K, kAll, "halving_doubling", kHalves},
    {AllReduce, Shared, kAny, kAll, kAll, "ring", kNeighbours},
    {AllReduce, Crowded, 4, 2 * K, kAll, "direct", kOneHop},
    {AllReduce, Crowded, 4, 16 * K, kAll, "star", kFewestMessages},
    {AllReduce, Crowded, 4, 256 * K, kAll, "scatter_gather", kTwoHops},
    {AllReduce, Crowded, 3, kAll, kAll, "scatter_gather", kTwoHops},
    {AllReduce, Crowded, 8, 64 * K, kAll, "star", kFewestMessages},
    {AllReduce, Crowded, 16, 32 * K, kAll, "star", kFewestMessages},
    {AllReduce, Crowded, 32, 8 * K, kAll, "star", kFewestMessages},
    {AllReduce, Crowded, kAny, 4 * K, kAll, "recursive_doubling", kFewHops},
    {AllReduce, Crowded, kAny, kAll, kAll, "halving_doubling", kHalves},
    {AllReduce, Hosts, kAny, kAll, kAll, "two_level", kInsideFirst},
    {AllReduce, Network, 2, 32 * K, kAll, "direct", kOneHop},
    {AllReduce, Network, 4, 8 * K, kAll, "direct", kOneHop},
    {AllReduce, Network, 2, kAll, kAll, "scatter_gather", kTwoHops},
    {AllReduce, Network, kAny, 16 * K, kAll, "recursive_doubling", kFewHops},
    {AllReduce, Network, kAny, 512 * K, kAll, "halving_doubling", kHalves},
    {AllReduce, Network, 64, kAll, kAll, "ring", kNeighbours},
    {AllReduce, Network, kAny, 64 * M, kAll, "tree", "log2(n) hops at full bandwidth"},
    {AllReduce, Network, kAny, kAll, kAll, "ring", kNeighbours},

    {AllGather, Shared, 32, kAll, kAll, "direct", kAtOnce},
    {AllGather, Shared, kAny, kAll, 1 * K, "bruck", kFewHops},
    {AllGather, Shared, kAny, kAll, kAll, "ring", kNeighbours},
    {AllGather, Crowded, 64, kAll, kAll, "direct", kAtOnce},
    {AllGather, Crowded, kAny, kAll, 1 * K, "bruck", kFewHops},
    {AllGather, Crowded, kAny, kAll, kAll, "ring", kNeighbours},
    {AllGather, Hosts, 8, kAll, 8 * K, "direct", kAtOnce},
    {AllGather, Hosts, kAny, kAll, 8 * K, "bruck", kFewHops},
    {AllGather, Hosts, kAny, kAll, kAll, "ring", kNeighbours},
    {AllGather, Network, 4, kAll, kAll, "direct", kAtOnce},
    {AllGather, Network, 8, kAll, 8 * K, "direct", kAtOnce},
    {AllGather, Network, kAny, kAll, 8 * K, "bruck", kFewHops},
    {AllGather, Network, kAny, kAll, kAll, "ring", kNeighbours},

    {ReduceScatter, Shared, 32, kAll, kAll, "direct", kAtOnce},
    {ReduceScatter, Shared, kAny, kAll, 1 * K, "halving", kHalves},
    {ReduceScatter, Shared, kAny, kAll, kAll, "ring", kNeighbours},
    {ReduceScatter, Crowded, 4, kAll, kAll, "direct", kAtOnce},
    {ReduceScatter, Crowded, 8, kAll, 4 * K, "star", kFewestMessages},
    {ReduceScatter, Crowded, 16, kAll, 1 * K, "star", kFewestMessages},
    {ReduceScatter, Crowded, 32, kAll, 256, "star", kFewestMessages},
    {ReduceScatter, Crowded, 64, kAll, kAll, "direct", kAtOnce},
    {ReduceScatter, Crowded, kAny, kAll, 1 * K, "halving", kHalves},
    {ReduceScatter, Crowded, kAny, kAll, kAll, "ring", kNeighbours},
    {ReduceScatter, Hosts, 8, kAll, 8 * K, "direct", kAtOnce},
    {ReduceScatter, Hosts, kAny, kAll, 16 * K, "halving", kHalves},
    {ReduceScatter, Hosts, kAny, kAll, kAll, "ring", kNeighbours},
    {ReduceScatter, Network, 4, kAll, kAll, "direct", kAtOnce},
    {ReduceScatter, Network, 8, kAll, 8 * K, "direct", kAtOnce},
    {ReduceScatter, Network, kAny, kAll, 16 * K, "halving", kHalves},
    {ReduceScatter, Network, kAny, kAll, kAll, "ring", kNeighbours},

    {Broadcast, Shared, kAny, 16 * K, kAll, "binomial", kFewHops},
    {Broadcast, Shared, 8, kAll, kAll, "direct", kAtOnce},
    {Broadcast, Shared, kAny, 128 * K, kAll, "binomial", kFewHops},
    {Broadcast, Shared, 16, kAll, kAll, "chain", kPipelined},
    {Broadcast, Shared, kAny, kAll, kAll, "scatter_allgather", "twice the bytes, for any n"},
    {Broadcast, Crowded, kAny, 16 * K, kAll, "binomial", kFewHops},
    {Broadcast, Crowded, 16, kAll, kAll, "direct", kAtOnce},
    {Broadcast, Crowded, kAny, kAll, kAll, "binomial", "few hops, pipelined"},
    {Broadcast, Hosts, kAny, 64 * K, kAll, "binomial", kFewHops},
    {Broadcast, Hosts, kAny, kAll, kAll, "chain", kPipelined},
    {Broadcast, Network, kAny, 64 * K, kAll, "binomial", kFewHops},
    {Broadcast, Network, 16, kAll, kAll, "chain", kPipelined},
    {Broadcast, Network, kAny, 16 * M, kAll, "scatter_allgather", "twice the bytes, for any n"},
    {Broadcast, Network, kAny, kAll, kAll, "chain", kPipelined},

    {Reduce, Shared, 16, 32 * K, kAll, "direct", kOneHop},
    {Reduce, Shared, kAny, kAll, kAll, "binomial", "log2(n) hops, pipelined"},
    {Reduce, Crowded, 16, 256 * K, kAll, "direct", kOneHop},
    {Reduce, Crowded, kAny, kAll, kAll, "binomial", "log2(n) hops, pipelined"},
    {Reduce, Hosts, 8, 4 * K, kAll, "direct", kOneHop},
    {Reduce, Hosts, kAny, kAll, kAll, "binomial", "log2(n) hops, pipelined"},
    {Reduce, Network, 8, 4 * K, kAll, "direct", kOneHop},
    {Reduce, Network, kAny, kAll, kAll, "binomial", "log2(n) hops, pipelined"},

    {Gather, Shared, kAny, kAll, kAll, "direct", kAtOnce},
    {Gather, Crowded, kAny, kAll, kAll, "direct", kAtOnce},
    {Gather, Hosts, 32, kAll, kAll, "direct", kAtOnce},
    {Gather, Hosts, kAny, kAll, 4 * K, "binomial", kFewMessages},
    {Gather, Hosts, kAny, kAll, kAll, "direct", kAtOnce},
    {Gather, Network, 32, kAll, kAll, "direct", kAtOnce},
    {Gather, Network, kAny, kAll, 4 * K, "binomial", kFewMessages},
    {Gather, Network, kAny, kAll, kAll, "direct", kAtOnce},

    {Scatter, Shared, kAny, kAll, kAll, "direct", kAtOnce},
    {Scatter, Crowded, kAny, kAll, kAll, "direct", kAtOnce},
    {Scatter, Hosts, 32, kAll, kAll, "direct", kAtOnce},
    {Scatter, Hosts, kAny, kAll, 4 * K, "binomial", kFewMessages},
    {Scatter, Hosts, kAny, kAll, kAll, "direct", kAtOnce},
    {Scatter, Network, 32, kAll, kAll, "direct", kAtOnce},
    {Scatter, Network, kAny, kAll, 4 * K, "binomial", kFewMessages},
    {Scatter, Network, kAny, kAll, kAll, "direct", kAtOnce},

    {AllToAll, Shared, kAny, kAll, kAll, "direct", kAtOnce},
    {AllToAll, Crowded, kAny, kAll, kAll, "direct", kAtOnce},
    {AllToAll, Hosts, 16, kAll, kAll, "direct", kAtOnce},
    {AllToAll, Hosts, kAny, kAll, 256, "bruck", kFewMessages},
    {AllToAll, Hosts, kAny, kAll, kAll, "direct", kAtOnce},
    {AllToAll, Network, 16, kAll, kAll, "direct", kAtOnce},
    {AllToAll, Network, kAny, kAll, 256, "bruck", kFewMessages},
    {AllToAll, Network, kAny, kAll, kAll, "direct", kAtOnce},

    {Barrier, Shared, 16, kAll, kAll, "direct", kOneHop},
    {Barrier, Shared, kAny, kAll, kAll, "dissemination", "log2(n) rounds"},
    {Barrier, Crowded, 4, kAll, kAll, "direct", kOneHop},
    {Barrier, Crowded, 32, kAll, kAll, "star", kFewestMessages},
    {Barrier, Crowded, kAny, kAll, kAll, "dissemination", "log2(n) rounds"},
    {Barrier, Hosts, 8, kAll, kAll, "direct", kOneHop},
    {Barrier, Hosts, kAny, kAll, kAll, "dissemination", "log2(n) rounds"},
    {Barrier, Network, 8, kAll, kAll, "direct", kOneHop},
    {Barrier, Network, kAny, kAll, kAll, "dissemination", "log2(n) rounds"},
};

}  // namespace

std::span<const Default> defaults() { return kDefaults; }

}  // namespace hccomm::select
