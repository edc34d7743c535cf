// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/peer_memory.hpp"

#include <sys/random.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace hccomm::transport::shm {

// One call copies at most this much, as for read(2).
static constexpr std::size_t kMostBytes = 0x7ffff000;

Status read_peer(pid_t pid, void* dst, std::uint64_t address, std::size_t bytes) noexcept {
  auto* to = static_cast<std::byte*>(dst);
  while (bytes != 0) {
    const std::size_t part = bytes < kMostBytes ? bytes : kMostBytes;
    iovec here = {to, part};
    iovec there = {reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), part};
    const ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
    const int err = errno;  // before text() may change it
    if (got < 0 && err == ESRCH) {
      return {Code::PeerLost, text("shm: process ", pid, " has ended while its memory was read")};
    }
    if (got < 0 && err == EINTR) continue;
    if (got <= 0) {
      return Status::from_errno(got < 0 ? err : EFAULT,
                                text("shm: read ", bytes, " bytes of process ", pid,
                                     "'s memory (HCCOMM_CMA=off avoids this)"));
    }
    to += got;
    address += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Result<Nonce> fresh_nonce() {
  Nonce nonce;
  if (getrandom(nonce.bytes, sizeof nonce.bytes, 0) != sizeof nonce.bytes) {
    return Status::from_errno(errno, "shm: getrandom");
  }
  return nonce;
}

bool probe_peer(pid_t pid, std::uint64_t address, const Nonce& expected) noexcept {
  if (pid <= 0) return false;
  Nonce found;
  return read_peer(pid, &found, address, sizeof found).ok() &&
         std::memcmp(&found, &expected, sizeof found) == 0;
}

}  // namespace hccomm::transport::shm
