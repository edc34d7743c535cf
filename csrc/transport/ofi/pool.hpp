// SPDX-License-Identifier: Apache-2.0
//
// Memory that the network card may use: registered once, in regions that live as long as the
// fabric, so no frame waits for a registration and nothing a user frees is ever registered here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "transport/ofi/library.hpp"

struct fid_domain;
struct fid_ep;
struct fid_mr;

namespace hccomm::transport::ofi {

// A part of a region. Value type.
struct Block {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  void* descriptor = nullptr;        // for operations of this process
  std::uint64_t key = 0;             // for those of a peer ...
  std::uint64_t remote_address = 0;  // ... and how it names the first byte
};

// Owns:   the regions.
// Thread: one at a time (the fabric's mutex).
// Fails:  take() gives System when the card or the limit on locked memory refuses; it says which.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  ~Pool() { clear(); }

  // Before anything else. The endpoint is needed where registrations belong to one
  // (FI_MR_ENDPOINT).
  void set(const Library* library, fid_domain* domain, fid_ep* endpoint, int mr_mode);
  // Multiples of the page size.
  Result<Block> take(std::size_t bytes);
  void give_back(const Block& block) { free_[block.bytes].push_back(block); }
  // Before the domain is closed; no operation may be under way.
  void clear() noexcept;

 private:
  struct Region {
    std::byte* data = nullptr;
    std::size_t bytes = 0, used = 0;
    fid_mr* registration = nullptr;
    void* descriptor = nullptr;
    std::uint64_t key = 0;
  };
  Status grow(std::size_t bytes);
  Status enroll(Region& region);

  const Library* library_ = nullptr;
  fid_domain* domain_ = nullptr;
  fid_ep* endpoint_ = nullptr;
  int mr_mode_ = 0;
  std::uint64_t next_key_ = 1;
  std::size_t registered_ = 0;
  std::vector<Region> regions_;
  std::map<std::size_t, std::vector<Block>> free_;
};

}  // namespace hccomm::transport::ofi
