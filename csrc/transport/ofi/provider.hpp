// SPDX-License-Identifier: Apache-2.0
//
// Which of libfabric's providers, and which card, carries the links: the user's list
// (HCCOMM_OFI_PROVIDER) where there is one, else a real fabric. The providers over plain sockets
// and shared memory exist for tests; they are taken only when they are asked for.
#pragma once

#include <string>
#include <vector>

#include "transport/ofi/library.hpp"
#include "transport/tcp/interface.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport::ofi {

inline constexpr unsigned kMaxRails = 4;

// What will be opened. The info belongs to the library.
struct Choice {
  const Library* library = nullptr;
  Info info;
  Info with_devices;     // the same card with FI_HMEM, where it offers that; else nullptr
  std::string provider;  // "verbs;ofi_rxm"
  std::string domain;    // "mlx5_0", "eth0"
};

// Every card of every provider, and whether choose() takes it.
// Fails: with why there is no list.
Result<std::vector<Finding>> survey();

// The cards to open, nearest first: one, or the rails over which what is large is striped.
// `near`: where there are several cards with Internet addresses, the one of this address.
// Fails: Unavailable with the reason; InvalidArgument when HCCOMM_OFI_PROVIDER names none there is.
Result<std::vector<Choice>> choose(const tcp::Ip& near);

// Where the peer is, as far as it decides whether a provider serves.
enum class Distance { SameProcess, SameMachine, Apart };

// Why a process with provider `mine` cannot talk to one with `theirs`, or "".
std::string mismatch(const Library& library, const std::string& mine, const std::string& theirs,
                     Distance distance);

}  // namespace hccomm::transport::ofi
