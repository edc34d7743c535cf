// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/peer_memory.hpp"

#include <sys/random.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "base/worded.hpp"

namespace hccomm::transport::shm {

// One call copies at most this much, as for read(2).
static constexpr std::size_t kMostBytes = 0x7ffff000;

using Call = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long,
                         unsigned long);

static Status copy(Call call, const char* verb, pid_t pid, std::byte* ours, std::uint64_t address,
                   std::size_t bytes) noexcept {
  while (bytes != 0) {
    const std::size_t part = bytes < kMostBytes ? bytes : kMostBytes;
    iovec here = {ours, part};
    iovec there = {reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)), part};
    const ssize_t got = call(pid, &here, 1, &there, 1, 0);
    const int err = errno;  // before text() may change it
    if (got < 0 && err == ESRCH) {
      return worded(Code::PeerLost, [&]() -> Status {
        return {Code::PeerLost,
                text("shm: process ", pid, " has ended while its memory was ", verb)};
      });
    }
    if (got < 0 && err == EINTR) continue;
    if (got <= 0) {
      return worded(Code::System, [&] {
        return Status::from_errno(got < 0 ? err : EFAULT, text("shm: ", bytes, " bytes of process ",
                                                               pid, "'s memory cannot be ", verb,
                                                               " (HCCOMM_CMA=off avoids this)"));
      });
    }
    ours += got;
    address += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Status read_peer(pid_t pid, void* dst, std::uint64_t address, std::size_t bytes) noexcept {
  return copy(process_vm_readv, "read", pid, static_cast<std::byte*>(dst), address, bytes);
}

Status write_peer(pid_t pid, const void* src, std::uint64_t address, std::size_t bytes) noexcept {
  auto* ours = const_cast<std::byte*>(static_cast<const std::byte*>(src));  // only read
  return copy(process_vm_writev, "written", pid, ours, address, bytes);
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
         std::memcmp(&found, &expected, sizeof found) == 0 &&
         write_peer(pid, &found, address + sizeof found, sizeof found).ok();
}

}  // namespace hccomm::transport::shm
