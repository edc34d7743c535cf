// SPDX-License-Identifier: Apache-2.0
#include "transport/handshake_io.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace hccomm::transport {

static Status wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const int ready = poll(&entry, 1, deadline.left_ms());
    if (const int err = errno; ready < 0) {
      if (err != EINTR) return Status::from_errno(err, "handshake: poll");
    } else if (ready > 0) {
      return {};  // errors too: the send or receive that follows names them
    }
    if (deadline.passed()) return {Code::Timeout, "handshake: the peer did not answer in time"};
  }
}

Status send_all(int fd, const void* data, std::size_t bytes, Deadline deadline) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (const int err = errno; sent < 0) {
      if (err == EINTR) continue;
      if (err != EAGAIN && err != EWOULDBLOCK) return Status::from_errno(err, "handshake: send");
      if (Status status = wait_for(fd, POLLOUT, deadline); !status.ok()) return status;
      continue;
    }
    at += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return {};
}

// One receive of at least one byte.
static Result<std::size_t> receive_some(int fd, void* data, std::size_t most, Deadline deadline) {
  for (;;) {
    const ssize_t got = recv(fd, data, most, MSG_DONTWAIT);
    if (const int err = errno; got < 0) {
      if (err == EINTR) continue;
      if (err != EAGAIN && err != EWOULDBLOCK) return Status::from_errno(err, "handshake: receive");
      if (Status status = wait_for(fd, POLLIN, deadline); !status.ok()) return status;
      continue;
    }
    if (got == 0) return Status(Code::PeerLost, "handshake: the peer closed the connection");
    // A peer that drips bytes must not outlive the deadline.
    if (deadline.passed()) return Status(Code::Timeout, "handshake: the peer is too slow");
    return static_cast<std::size_t>(got);
  }
}

Status receive_all(int fd, void* data, std::size_t bytes, Deadline deadline) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    auto got = receive_some(fd, at, bytes, deadline);
    if (!got) return got.status();
    at += got.value();
    bytes -= got.value();
  }
  return {};
}

Status run_handshake(int fd, wire::Handshake& handshake, Deadline deadline) {
  char buffer[1024];
  for (;;) {
    const std::string out = handshake.output();
    if (Status status = send_all(fd, out.data(), out.size(), deadline); !status.ok()) return status;
    const std::size_t wanted = std::min(handshake.wants(), sizeof buffer);
    if (wanted == 0) return {};
    auto got = receive_some(fd, buffer, wanted, deadline);
    if (!got) return got.status();
    std::size_t used = 0;
    if (Status status = handshake.feed({buffer, got.value()}, used); !status.ok()) {
      const std::string refusal = handshake.output();  // a courtesy: one attempt
      if (!refusal.empty()) {
        [[maybe_unused]] const auto sent =
            send(fd, refusal.data(), refusal.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      return status;
    }
  }
}

std::string tls_secret(const wire::Handshake& handshake) { return handshake.secret("tls"); }

Tls::Options tls_options(const wire::Terms& terms, const wire::Handshake& handshake) {
  Tls::Options options;
  options.kernel = terms.kernel_tls;
  if (terms.kernel_tls || handshake.peer_kernel_tls()) options.records_per_key = 0;
  return options;
}

Result<Greeting> greet(int fd, const wire::Terms& terms, Deadline deadline, bool through_tls) {
  if (Status status = wire::usable(terms); !status.ok()) return status;
  if (terms.peer_uuid.size() != terms.uuid.size()) {
    return Status(Code::InvalidArgument, "handshake: the peer's card has no valid uuid");
  }
  wire::Handshake handshake(wire::Role::Initiator, terms);
  if (Status status = run_handshake(fd, handshake, deadline); !status.ok()) return status;
  Greeting greeting{handshake.verdict(), handshake.peer_extra(), handshake.verdict_text(), nullptr};
  if (through_tls && terms.encrypts && greeting.verdict == wire::Verdict::Accepted) {
    auto tls = Tls::open(fd, wire::Role::Initiator, tls_secret(handshake),
                         tls_options(terms, handshake), deadline);
    if (!tls) return tls.status();
    greeting.tls = std::move(tls).value();
  }
  return greeting;
}

}  // namespace hccomm::transport
