// SPDX-License-Identifier: Apache-2.0
//
// Memory of our own that the cards may use: registered once, in regions that live as long as the
// fabric, so no small frame waits for a registration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "transport/ofi/rail.hpp"

namespace hccomm::transport::ofi {

// A part of a region. Value type.
struct Block {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  const Registration* memory = nullptr;  // of the region
};

// Owns:   the regions.
// Thread: one at a time (the fabric's mutex).
// Fails:  take() gives System when the card or the limit on locked memory refuses; it says which.
class Pool {
 public:
  explicit Pool(const Rails& rails) : rails_(rails) {}
  Pool(const Pool&) = delete;

  // Multiples of the page size.
  Result<Block> take(std::size_t bytes);
  void give_back(const Block& block) noexcept;
  // Before the domain is closed; no operation may be under way.
  void clear() noexcept;

 private:
  struct Region {
    Registration memory;
    std::size_t used = 0;
  };
  Status grow(std::size_t bytes);

  const Rails& rails_;
  std::deque<Region> regions_;
  struct Kind {
    std::size_t made = 0;
    std::vector<Block> spare;  // with room for all that were made
  };
  std::map<std::size_t, Kind> kinds_;  // by size
};

}  // namespace hccomm::transport::ofi
