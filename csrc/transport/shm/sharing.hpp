// SPDX-License-Identifier: Apache-2.0
//
// Memory that peers of this machine may map: what device buffers are staged in, so that the runtime
// of one process copies out of what that of another has copied to, and buffers of users who asked
// for it, which peers copy and reduce without the kernel. A process keeps a table of what
// it shares, and tells where the table lies when a link is made; a peer reads it as it reads all
// memory (peer_memory.hpp), and opens the descriptor that it finds there.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "transport/transport.hpp"

namespace hccomm::transport::shm {

// One line of the table. `number` 0: it is free. Numbers are not used twice, so whoever has read a
// line knows it again.
struct Export {
  std::uint64_t number = 0;
  std::uint64_t address = 0, bytes = 0;
  std::uint64_t inode = 0;  // of the memory: a descriptor's number may stand for another by now
  std::int64_t descriptor = -1;

  friend bool operator==(const Export&, const Export&) = default;
};

inline constexpr std::size_t kExports = 512;  // a peer reads all of them in 2 us

// Where this process's table lies.
std::uint64_t exports_address() noexcept;

// New memory in the table of this process. System while that is full.
Result<std::unique_ptr<Shared>> share(std::size_t bytes);

// Whether all of it is in the table: a few loads and no lock. Memory of a block that is made or
// given back at the same time may be mistaken for the other; a peer looks anyway.
bool shares(const std::byte* data, std::uint64_t bytes) noexcept;

// What this process has mapped of a peer's exports.
//
// Owns:   the mappings, together with who holds them.
// Thread: one.
class Views {
 public:
  // `table` 0: the peer shares nothing.
  Views(pid_t peer, std::uint64_t table) : peer_(peer), table_(table) {}
  // As Link::view(). Reads one line of the table where it knows the memory, else all of it.
  ViewPtr find(std::uint64_t address, std::uint64_t bytes) noexcept;
  // Lets go of what the peer shares no longer.
  void tidy() noexcept;

 private:
  struct Known {
    std::size_t line = 0;
    Export what;
    ViewPtr view;  // nullptr: it cannot be mapped
  };
  bool read(std::size_t line, std::size_t count, Export* lines) const noexcept;
  const Known* known(std::uint64_t address, std::uint64_t bytes);

  void keep_what_is_in(const Export* lines);

  const pid_t peer_;
  const std::uint64_t table_;
  std::vector<Known> known_;
};

}  // namespace hccomm::transport::shm
