// SPDX-License-Identifier: Apache-2.0
//
// The store for jobs that have nothing but a network: rank 0 serves it at an address that all ranks
// were given. For up to 4096 ranks; above, use a launcher's own store.
#pragma once

#include <memory>

#include "rendezvous/store.hpp"
#include "rendezvous/tcp_protocol.hpp"

namespace hccomm::rendezvous {

// Connects, again and again until the deadline while nobody answers. Rank 0 serves first.
// Unavailable: who answers is no such store, or does not hold the same key.
Result<std::unique_ptr<Store>> open_tcp_store(const Endpoint& at, int rank, Deadline deadline,
                                              const Credentials& with = {});

}  // namespace hccomm::rendezvous
