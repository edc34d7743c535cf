// SPDX-License-Identifier: Apache-2.0
//
// Runs a wire::Handshake over a connected stream descriptor, blocking or not, within a deadline.
// It never reads past the handshake, so what follows it (frames, descriptors in SCM_RIGHTS) stays
// in the socket. Transports call greet() to dial; listener.cpp runs the answering side.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "transport/tls.hpp"
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
  std::string extra;         // the acceptor's
  std::string text;          // why, for a verdict that is not Accepted
  std::unique_ptr<Tls> tls;  // where the terms say that the connection is to be encrypted
};

// The whole handshake of the dialing side. `through_tls`: where the terms say that the job is
// encrypted TLS follows, over which all the rest goes; `fd` must outlive it.
Result<Greeting> greet(int fd, const wire::Terms& terms, Deadline deadline,
                       bool through_tls = false);

// What both sides of a proven handshake make their TLS session of.
std::string tls_secret(const wire::Handshake& handshake);
Tls::Options tls_options(const wire::Terms& terms, const wire::Handshake& handshake);

}  // namespace hccomm::transport
