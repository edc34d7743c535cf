// SPDX-License-Identifier: Apache-2.0
//
// Memory shared with one other process: a memfd, so it has no name that a crash could leave behind
// and needs no room in /dev/shm. The maker seals its size and passes the descriptor on.
#pragma once

#include <cstddef>

#include "base/error.hpp"
#include "base/unique_fd.hpp"

namespace hccomm::transport::shm {

// A mapping. The descriptor may be closed once the peer has it.
//
// Owns:   the mapping.
// Thread: any; what lies in it has its own rules.
// Fails:  make() and map() give the reason; afterwards access never faults: the size is sealed and
//         every page is there.
class Segment {
 public:
  Segment() = default;
  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  ~Segment();

  // New zeroed memory, from 2 MiB on where a huge page can begin; `fd` receives the descriptor to
  // pass on.
  static Result<Segment> make(std::size_t bytes, UniqueFd& fd);
  // Memory that a peer made. Refuses what is not sealed or not of that size.
  static Result<Segment> map(const UniqueFd& fd, std::size_t bytes);
  // Likewise; its pages are looked up as they are used. They are there.
  static Result<Segment> map_as_used(const UniqueFd& fd, std::size_t bytes) {
    return map(fd, bytes, 0);
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return bytes_; }

 private:
  static Result<Segment> map(const UniqueFd& fd, std::size_t bytes, std::size_t populated);

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace hccomm::transport::shm
