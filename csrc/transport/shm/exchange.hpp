// SPDX-License-Identifier: Apache-2.0
//
// What two processes tell each other once the handshake has made them peers: here is the ring that
// I write, and can you read this number in my memory? Both sides do the same, on the Unix socket.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "base/clock.hpp"
#include "transport/shm/shm_link.hpp"

namespace hccomm::transport::shm {

struct Wishes {
  std::size_t area_bytes = std::size_t{1} << 20;  // of the ring that this process writes
  bool pull = true;                               // single copy, where a probe succeeds
  std::shared_ptr<Commons> commons = {};          // of this process; nullptr: it has none
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
  std::uint64_t exports = 0;
  std::shared_ptr<Commons> my_commons;  // nullptr where the peer has not mapped them
  Segment their_commons;
  std::string no_memory;  // empty: the rings are there
};

// Thread: any. Fails: when the peer leaves, lies or is late.
Result<Exchanged> exchange(int socket, pid_t peer, const Wishes& wishes, Deadline deadline);

// The link that this makes: rings, or where there is no memory a stream over the socket itself.
Result<std::unique_ptr<Link>> make_link(UniqueFd socket, pid_t peer, Exchanged agreed);

// The process at the other end of a Unix socket; refuses one of another user.
Result<pid_t> checked_peer(int socket);

}  // namespace hccomm::transport::shm
