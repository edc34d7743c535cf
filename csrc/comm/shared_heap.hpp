// SPDX-License-Identifier: Apache-2.0
//
// Buffers of users that peers of the machine can map, so that a byte is copied, or reduced, plainly
// and not by the kernel. What a transport shares is few large blocks, since each is a descriptor
// and a line in a table that peers read; all but large buffers are cut from common ones.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "transport/transport.hpp"

namespace hccomm::comm {

// Owns:   the blocks; one whose buffers have all been given back is returned to the system, but for
//         the smallest.
// Thread: any.
// Fails:  take() with what the source says. A forked child takes nothing, and what it gives back is
//         not touched: the memory is its parent's.
class SharedHeap {
 public:
  using Source = std::function<Result<std::unique_ptr<transport::Shared>>(std::size_t bytes)>;
  struct Usage {
    std::uint64_t buffers = 0, bytes = 0;  // taken and not given back
    std::string refused;                   // why the last refusal; empty: there was none
  };

  explicit SharedHeap(Source source) : source_(std::move(source)) {}
  // That of the process, from the transports that HCCOMM_TRANSPORTS allows. It is never destroyed.
  static SharedHeap& of_process();

  // Whole pages, from 2 MiB on where a huge page can begin, all of them there; the content is
  // unspecified.
  Result<std::byte*> take(std::uint64_t bytes);
  // False: it was not taken here, or has been given back.
  bool give_back(std::byte* data);
  Usage usage() const;

 private:
  struct Slab {
    std::unique_ptr<transport::Shared> memory;
    std::uint64_t bytes = 0;
    std::map<std::uint64_t, std::uint64_t> free;  // bytes by offset; neighbours are joined
    bool idle() const { return free.size() == 1 && free.begin()->second == bytes; }
  };
  using Slabs = std::map<std::byte*, Slab>;  // by address

  std::byte* cut(std::uint64_t size);
  Slabs::node_type let_go(Slabs::iterator slab);

  const Source source_;
  mutable std::mutex mutex_;  // guards the rest
  Slabs slabs_;
  std::map<std::byte*, std::uint64_t> taken_;  // bytes by address
  std::uint64_t slab_bytes_ = 0, taken_bytes_ = 0;
  std::string refused_;
};

}  // namespace hccomm::comm
