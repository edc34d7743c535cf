// SPDX-License-Identifier: Apache-2.0
//
// Runs a wire::Handshake over a connected stream descriptor, blocking or not, within a deadline.
// It never reads past the handshake, so what follows it (frames, descriptors in SCM_RIGHTS) stays
// in the socket. Transports call greet() to dial; listener.cpp runs the answering side.
#pragma once

#include <cstddef>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "wire/handshake.hpp"

namespace hccomm::transport {

// All of `bytes`, or why not: Timeout, PeerLost when the peer closed, System. Thread: any.
Status send_all(int fd, const void* data, std::size_t bytes, Deadline deadline);
Status receive_all(int fd, void* data, std::size_t bytes, Deadline deadline);

// Until the handshake is done, or (acceptor) until the peer is proven and the verdict is due.
Status run_handshake(int fd, wire::Handshake& handshake, Deadline deadline);

// How the dialing side was received.
struct Greeting {
  wire::Verdict verdict = wire::Verdict::Refused;
  std::string extra;  // the acceptor's
  std::string text;   // why, for a verdict that is not Accepted
};

// The whole handshake of the dialing side.
Result<Greeting> greet(int fd, const wire::Terms& terms, Deadline deadline);

}  // namespace hccomm::transport
