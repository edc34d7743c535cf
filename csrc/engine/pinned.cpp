// SPDX-License-Identifier: Apache-2.0
#include "engine/pinned.hpp"

#include <algorithm>
#include <bit>

namespace hccomm::engine {

static constexpr std::uint64_t kSmallest = 4 << 10, kLargestSmall = 512 << 10;
static constexpr std::uint64_t kSlab = 4 << 20;

// Small ones to a power of two, large ones to an eighth of one: at most an eighth is wasted.
static std::uint64_t size_class(std::uint64_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  if (bytes <= kLargestSmall) return std::bit_ceil(bytes);
  const std::uint64_t unit = std::bit_floor(bytes) / 8;
  return (bytes + unit - 1) / unit * unit;
}

PinnedPool::~PinnedPool() {
  for (const auto& [data, slab] : slabs_) {
    if (slab.leased == 0) runtime_.host_free(index_, data);
  }
}

PinnedPool::Slab& PinnedPool::slab_of(const std::byte* data) {
  return std::prev(slabs_.upper_bound(const_cast<std::byte*>(data)))->second;
}

// From what is there: of this size, or, for want of that, up to twice (small ones: any) larger.
Lease PinnedPool::take(std::uint64_t size) {
  const std::uint64_t largest = size <= kLargestSmall ? kLargestSmall : 2 * size;
  for (auto at = free_.lower_bound(size); at != free_.end() && at->first <= largest; ++at) {
    if (at->second.empty()) continue;
    std::byte* const data = at->second.back();
    at->second.pop_back();
    ++slab_of(data).leased;
    return {data, at->first};
  }
  return {};
}

// Frees idle large slabs until `wanted` more bytes are within the limit.
void PinnedPool::evict(std::uint64_t wanted, std::vector<std::byte*>& idle) {
  for (auto& [size, pieces] : free_) {
    while (size > kLargestSmall && !pieces.empty() && pinned_ + wanted > limit_) {
      pinned_ -= size;
      slabs_.erase(pieces.back());
      idle.push_back(pieces.back());
      pieces.pop_back();
    }
  }
}

Result<PinnedPool::Slab*> PinnedPool::add_slab(std::uint64_t bytes, bool small,
                                               std::unique_lock<std::mutex>& lock) {
  std::vector<std::byte*> idle;
  if (pinned_ + bytes > limit_) evict(bytes, idle);
  if (pinned_ + bytes > limit_) {
    return Status(Code::Unavailable,
                  text(pinned_, " bytes of ", limit_, " are in use; raise HCCOMM_STAGING"));
  }
  pinned_ += bytes;
  lock.unlock();
  for (std::byte* each : idle) runtime_.host_free(index_, each);
  Result<void*> made = runtime_.host_allocate(index_, bytes);
  lock.lock();
  if (!made.ok()) {
    pinned_ -= bytes;
    return made.status();
  }
  auto* const data = static_cast<std::byte*>(made.value());
  return &(slabs_[data] = Slab{data, bytes, 0, small, 0});
}

Result<Lease> PinnedPool::lease(std::uint64_t bytes) {
  const std::uint64_t size = size_class(bytes);
  std::unique_lock lock(mutex_);
  if (const Lease found = take(size); found.data != nullptr) return found;
  const bool small = size <= kLargestSmall;
  Slab* slab = nullptr;
  if (small) {
    for (auto& [data, each] : slabs_) {
      if (each.small && each.used + size <= each.bytes) slab = &each;
    }
  }
  if (slab == nullptr) {
    const std::uint64_t left = limit_ > pinned_ ? limit_ - pinned_ : 0;
    const std::uint64_t wanted = small ? std::clamp(left, size, std::max(size, kSlab)) : size;
    Result<Slab*> made = add_slab(wanted, small, lock);
    if (!made.ok()) return made.status();
    slab = made.value();
  }
  const Lease lease{slab->data + slab->used, size};
  slab->used += size;
  ++slab->leased;
  return lease;
}

void PinnedPool::give_back(Lease& lease) {
  if (lease.data == nullptr) return;
  const std::lock_guard lock(mutex_);
  --slab_of(lease.data).leased;
  free_[lease.bytes].push_back(lease.data);
  lease = {};
}

std::uint64_t PinnedPool::pinned_bytes() const {
  const std::lock_guard lock(mutex_);
  return pinned_;
}

}  // namespace hccomm::engine
