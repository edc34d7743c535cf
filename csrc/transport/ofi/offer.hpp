// SPDX-License-Identifier: Apache-2.0
//
// What two processes tell each other over the control connection before they meet on the fabric.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "transport/ofi/provider.hpp"

namespace hccomm::transport::ofi {

// Abilities: rings the bell of a peer that says it sleeps; takes frames in pieces.
inline constexpr std::uint32_t kRings = 1, kTakesPieces = 2;

// What one process tells the other about itself before they meet on the fabric.
struct Offer {
  std::uint32_t layout;  // of this struct and of peer.hpp
  std::uint32_t id;      // what the other's messages shall carry
  std::uint32_t eager_bytes, eager_slots;
  std::uint32_t slot_bytes, ring_slots;
  std::uint64_t eager_offset, ring_offset;
  std::uint32_t rails, abilities;
  struct {
    std::uint64_t inbox_address, key;
    std::uint32_t name_bytes;
    char name[260];    // the endpoint's
    char domain[32];   // of the card, and what it is connected to (network_of): both cut short
    char network[96];  // where they must be
  } rail[kMaxRails];
};

// Lanes between two processes: (rail of one, rail of the other), in an order that is the same at
// both ends. Those on networks of one name; where there are none, the first with the first and so
// on: names need not be alike where packets are routed.
std::vector<std::pair<unsigned, unsigned>> lanes_of(const Offer& one, const Offer& other);
// "mlx5_0 (IB-0xfe80000000000000), mlx5_1 (...)"
std::string cards_of(const Offer& offer);

}  // namespace hccomm::transport::ofi
