// SPDX-License-Identifier: Apache-2.0
//
// One write under way, as a fabric keeps it until libfabric says that it has completed.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/ofi/cache.hpp"
#include "transport/ofi/pool.hpp"

namespace hccomm::transport::ofi {

struct Peer;

// Guarded by the fabric's mutex. libfabric may use the first 64 bytes until it has completed.
struct Op {
  std::uint64_t context[8] = {};
  Peer* peer = nullptr;              // to whom; nullptr once nobody cares
  Block block;                       // where what is copied lies
  Entry* entry = nullptr;            // memory of the user that it reads, where cards must know it
  std::vector<Op*>* home = nullptr;  // the list it returns to
  bool borrows = false;              // it reads memory of the user
  bool reads_back = false;           // what has been written to a device
  bool untold = false;               // `immediate` goes apart, and has not gone
  bool confirmed = false;            // untold, but the peer's side has confirmed the data
  unsigned posts = 1, lane = 0;      // posts: of them, those that have not completed
  std::uint64_t immediate = 0;
  // Of what goes without its immediate: what is written, and where to.
  std::array<iovec, 2> parts{};
  std::array<void*, 2> descriptors{};
  std::size_t count = 0;
  std::uint64_t at = 0, key = 0;
};

}  // namespace hccomm::transport::ofi
