// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/pool.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

namespace hccomm::transport::ofi {

static constexpr std::size_t kRegionBytes = std::size_t{4} << 20;

Status Pool::grow(std::size_t bytes) {
  const std::size_t size = std::max(bytes, kRegionBytes);
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) return Status::from_errno(errno, "ofi: memory for the fabric");
  // A child would make the card's pages copies of ours: it gets none of them.
  madvise(data, size, MADV_DONTFORK);
  auto memory = enroll(rails_, static_cast<std::byte*>(data), size, Access::Write);
  if (!memory) {
    munmap(data, size);
    return memory.status();
  }
  regions_.push_back({memory.value(), 0});
  return {};
}

Result<Block> Pool::take(std::size_t bytes) {
  Kind& kind = kinds_[bytes];
  if (!kind.spare.empty()) {
    const Block block = kind.spare.back();
    kind.spare.pop_back();
    return block;
  }
  if (kind.made == kind.spare.capacity()) kind.spare.reserve(2 * kind.made + 8);
  const auto fits = [bytes](const Region& each) { return each.memory.bytes - each.used >= bytes; };
  auto found = std::ranges::find_if(regions_, fits);
  if (found == regions_.end()) {
    if (Status status = grow(bytes); !status.ok()) return status;
    found = std::prev(regions_.end());
  }
  const Block block{found->memory.data + found->used, bytes, &found->memory};
  found->used += bytes;
  ++kind.made;
  return block;
}

void Pool::give_back(const Block& block) noexcept { kinds_[block.bytes].spare.push_back(block); }

void Pool::clear() noexcept {
  for (Region& each : regions_) {
    std::byte* const data = each.memory.data;
    const std::size_t bytes = each.memory.bytes;
    strike(each.memory);
    munmap(data, bytes);
  }
  regions_.clear();
  kinds_.clear();
}

}  // namespace hccomm::transport::ofi
