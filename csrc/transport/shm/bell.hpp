// SPDX-License-Identifier: Apache-2.0
//
// How two processes that share memory wake each other, and learn of each other's death: the Unix
// socket of the handshake carries one byte per ring of the bell, and a pidfd tells when the process
// itself has ended, since its forked children may keep the socket open for ever.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/error.hpp"
#include "base/unique_fd.hpp"

namespace hccomm::transport::shm {

// Owns:   the socket, the pidfd and the epoll that joins them.
// Thread: one at a time.
// Fails:  make() gives the reason; later failures of the socket mean that the peer is gone.
class Bell {
 public:
  // Without a pid (0), or where the kernel has no pidfd, only the socket tells of the peer's end.
  static Result<Bell> make(UniqueFd socket, pid_t peer);

  // Readable when the peer rang or is gone.
  int fd() const noexcept { return epoll_.get(); }
  void ring() noexcept;
  // Takes what has been rung so far; true when there was something.
  bool drain() noexcept;
  // One system call: whether the peer has ended. Drains rings on the way.
  bool listen() noexcept;
  bool gone() const noexcept { return gone_; }
  const std::string& why() const noexcept { return why_.text(); }
  pid_t peer() const noexcept { return peer_; }

 private:
  void lose(const char* how, int err = 0) noexcept;

  UniqueFd socket_;
  UniqueFd process_;
  UniqueFd epoll_;
  pid_t peer_ = 0;
  bool gone_ = false;
  Status why_;
};

}  // namespace hccomm::transport::shm
