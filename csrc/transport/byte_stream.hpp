// SPDX-License-Identifier: Apache-2.0
//
// A connected socket, in clear or inside TLS: what is above it (links, the store) sends and
// receives as with system calls and need not know.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <memory>
#include <string>

#include "base/unique_fd.hpp"
#include "transport/tls.hpp"

namespace hccomm::transport {

// Owns:   the descriptor and the TLS session, if there is one.
// Thread: one at a time.
// Fails:  as system calls do, with errno; EPROTO is for failed() to explain.
class ByteStream {
 public:
  ByteStream() = default;
  explicit ByteStream(UniqueFd fd, std::unique_ptr<Tls> tls = nullptr)
      : fd_(std::move(fd)), tls_(std::move(tls)) {}

  int fd() const noexcept { return fd_.get(); }
  bool encrypted() const noexcept { return tls_ != nullptr; }
  void encrypt(std::unique_ptr<Tls> tls) noexcept { tls_ = std::move(tls); }
  Tls* tls() noexcept { return tls_.get(); }

  // Never waits. What it took is the stream's, whatever becomes of the caller's memory.
  ssize_t send(const iovec* parts, std::size_t count) noexcept;
  // Never waits. 0: the peer has closed. Non-blocking: the descriptor is.
  ssize_t receive(const iovec* parts, std::size_t count) noexcept;
  // It has taken bytes that it could not pass on: send again when the descriptor is writable.
  bool unsent() const noexcept { return tls_ != nullptr && tls_->unsent(); }
  // Something may have come that does not make the descriptor readable: receive until EAGAIN.
  bool holds() const noexcept { return tls_ != nullptr && tls_->holds(); }
  // What `err` of a call means, with `what` before it.
  Status failed(int err, const std::string& what) const;

 private:
  UniqueFd fd_;
  std::unique_ptr<Tls> tls_;  // its socket is fd_: gone before it
};

}  // namespace hccomm::transport
