// SPDX-License-Identifier: Apache-2.0
//
// Reading another process's memory in a single copy (process_vm_readv). Containers, Yama and
// seccomp may each forbid it, and no file says so reliably: only a real read does.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/error.hpp"

namespace hccomm::transport::shm {

// Copies `bytes` at `address` of the process `pid`. PeerLost when there is no such process.
Status read_peer(pid_t pid, void* dst, std::uint64_t address, std::size_t bytes) noexcept;

// 16 random bytes for a peer to find: proof that it reads this process's memory and no other's.
struct Nonce {
  unsigned char bytes[16];
};
Result<Nonce> fresh_nonce();

// Whether `expected` lies at `address` of the process `pid`.
bool probe_peer(pid_t pid, std::uint64_t address, const Nonce& expected) noexcept;

}  // namespace hccomm::transport::shm
