// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing another process's memory in a single copy (process_vm_readv, _writev).
// Containers, Yama and seccomp may each forbid it, and no file says so reliably: only trying does.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/error.hpp"

namespace hccomm::transport::shm {

// Copies `bytes` at `address` of the process `pid`. PeerLost when there is no such process.
Status read_peer(pid_t pid, void* dst, std::uint64_t address, std::size_t bytes) noexcept;

// Copies `bytes` to `address` of the process `pid`.
Status write_peer(pid_t pid, const void* src, std::uint64_t address, std::size_t bytes) noexcept;

// 16 random bytes for a peer to find: proof that it reads this process's memory and no other's.
struct Nonce {
  unsigned char bytes[16];
};
Result<Nonce> fresh_nonce();

// Whether `expected` lies at `address` of the process `pid`; if so it is copied behind itself, for
// the peer to see.
bool probe_peer(pid_t pid, std::uint64_t address, const Nonce& expected) noexcept;

}  // namespace hccomm::transport::shm
