// SPDX-License-Identifier: Apache-2.0
//
// What two processes tell each other once the handshake has made them peers: here is the ring that
// I write, and can you read this number in my memory? Both sides do the same, on the Unix socket.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/clock.hpp"
#include "transport/shm/shm_link.hpp"

namespace hccomm::transport::shm {

struct Wishes {
  std::size_t area_bytes = std::size_t{1} << 20;  // of the ring that this process writes
  bool pull = true;                               // single copy, where a probe succeeds
};
// From HCCOMM_SHM_BYTES and HCCOMM_CMA; throws InvalidArgument where they cannot be read.
Wishes configured_wishes();

// The rings and what works between the two, or why there is no shared memory. Both sides get the
// same kind of answer.
struct Exchanged {
  Segment mine;
  Segment theirs;
  std::size_t their_area_bytes = 0;
  bool pulls = false;
  std::string no_memory;  // empty: the rings are there
};

// Thread: any. Fails: when the peer leaves, lies or is late.
Result<Exchanged> exchange(int socket, pid_t peer, const Wishes& wishes, Deadline deadline);

// The process and the user at the other end of a Unix socket.
Result<pid_t> checked_peer(int socket);

}  // namespace hccomm::transport::shm
