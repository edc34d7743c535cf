// SPDX-License-Identifier: Apache-2.0
//
// HCCOMM_ENCRYPT=1: TLS 1.3 over a connection whose two ends have just proved to each other that
// they hold the job key. The pre-shared key is derived from the job key and from everything that
// the two said in that handshake, so it serves one connection once; an ephemeral exchange on top
// (psk_dhe_ke) keeps what was recorded secret even from who learns the job key later. There are no
// certificates, no tickets, and one cipher: AES-128-GCM.
//
// ByteStream uses it; it works on the socket itself, so the kernel may take the records over where
// it offers that (kernel TLS).
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "wire/handshake.hpp"

namespace hccomm::transport {

// Ok, or Code::Unavailable with the reason why there is no TLS here. Thread: any.
Status tls_available();

// Whether this kernel would do the records itself (TCP_ULP "tls"). Asked once. Thread: any.
bool kernel_tls() noexcept;

// One end of a TLS session over a socket that it does not own.
//
// Owns:   the session's keys and buffers.
// Thread: one at a time.
// Fails:  -1 with errno EPROTO when what arrives is not what the peer sealed; why() says more.
class Tls {
 public:
  struct Options {
    bool kernel = false;  // the kernel may do the records
    // A sender takes a new key after so many records: AES-GCM is good for 2^24 of them. 0: never,
    // as the kernel on either side cannot follow.
    std::uint64_t records_per_key = std::uint64_t{1} << 22;
  };

  // Requires: tls_available(); the socket outlives the session. Makes the socket non-blocking.
  static Result<std::unique_ptr<Tls>> make(int fd, wire::Role role, const std::string& secret,
                                           const Options& options);
  // The same, and shakes hands within the deadline.
  static Result<std::unique_ptr<Tls>> open(int fd, wire::Role role, const std::string& secret,
                                           const Options& options, Deadline deadline);
  ~Tls();
  Tls(const Tls&) = delete;
  Tls& operator=(const Tls&) = delete;

  enum class Step : std::uint8_t { Done, WantsRead, WantsWrite, Failed };
  // A part of the handshake, without waiting.
  Step shake() noexcept;

  // As sendmsg(2) and readv(2) on a non-blocking socket. What send() takes is copied; while
  // unsent(), a further send(), of no bytes if there are none, passes on what it could not.
  ssize_t send(const iovec* parts, std::size_t count) noexcept;
  ssize_t receive(const iovec* parts, std::size_t count) noexcept;
  bool unsent() const noexcept;
  // Something may have come that does not make the socket readable.
  bool holds() const noexcept;
  std::string why() const;  // the last failure, in OpenSSL's words

 private:
  struct State;
  explicit Tls(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace hccomm::transport
