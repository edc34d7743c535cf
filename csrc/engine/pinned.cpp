// SPDX-License-Identifier: Apache-2.0
#include "engine/pinned.hpp"

#include <algorithm>
#include <bit>
#include <utility>

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

PinnedPool::PinnedPool(device::Runtime& runtime, int index, std::uint64_t limit_bytes,
                       Dialer& sharer)
    : runtime_(runtime),
      index_(index),
      limit_(limit_bytes),
      sharer_(sharer),
      why_private_(runtime.lacks(device::Feature::HostRegister)) {}

PinnedPool::~PinnedPool() {
  for (auto& [data, slab] : slabs_) {
    if (slab.leased == 0) {
      unpin(std::move(slab));
    } else {
      static_cast<void>(slab.shared.release());  // whoever has leased it may still write there
    }
  }
}

// Shared memory if that can be had and pinned, else the runtime's own.
Result<PinnedPool::Slab> PinnedPool::pin(std::uint64_t bytes) {
  if (why_private().empty()) {
    auto shared = sharer_.share(bytes);
    Status status = shared.ok() ? runtime_.host_register(index_, shared.value()->data(), bytes)
                                : shared.status();
    if (status.ok()) {
      std::byte* const data = shared.value()->data();
      return Slab{.data = data, .bytes = bytes, .shared = std::move(shared).value()};
    }
    if (shared.ok() || status.code() == Code::Unavailable) {  // else another time, maybe
      const std::lock_guard lock(mutex_);
      why_private_ = status.text();
    }
  }
  Result<void*> made = runtime_.host_allocate(index_, bytes);
  if (!made.ok()) return made.status();
  return Slab{.data = static_cast<std::byte*>(made.value()), .bytes = bytes};
}

void PinnedPool::unpin(Slab slab) {
  if (slab.shared != nullptr) {
    runtime_.host_unregister(index_, slab.data);
  } else {
    runtime_.host_free(index_, slab.data);
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
    Slab& slab = slab_of(data);
    ++slab.leased;
    return {data, at->first, slab.shared != nullptr};
  }
  return {};
}

// Frees idle large slabs until `wanted` more bytes are within the limit.
void PinnedPool::evict(std::uint64_t wanted, std::vector<Slab>& idle) {
  for (auto& [size, pieces] : free_) {
    while (size > kLargestSmall && !pieces.empty() && pinned_ + wanted > limit_) {
      pinned_ -= size;
      idle.push_back(std::move(slabs_.extract(pieces.back()).mapped()));
      pieces.pop_back();
    }
  }
}

Result<PinnedPool::Slab*> PinnedPool::add_slab(std::uint64_t bytes, bool small,
                                               std::unique_lock<std::mutex>& lock) {
  std::vector<Slab> idle;
  if (pinned_ + bytes > limit_) evict(bytes, idle);
  if (pinned_ + bytes > limit_) {
    return Status(Code::Unavailable,
                  text(pinned_, " bytes of ", limit_, " are in use; raise HCCOMM_STAGING"));
  }
  pinned_ += bytes;
  lock.unlock();
  for (Slab& each : idle) unpin(std::move(each));
  Result<Slab> made = pin(bytes);
  lock.lock();
  if (!made.ok()) {
    pinned_ -= bytes;
    return made.status();
  }
  Slab slab = std::move(made).value();
  slab.small = small;
  std::byte* const data = slab.data;
  return &(slabs_[data] = std::move(slab));
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
  const Lease lease{slab->data + slab->used, size, slab->shared != nullptr};
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

std::string PinnedPool::why_private() const {
  const std::lock_guard lock(mutex_);
  return why_private_;
}

std::uint64_t PinnedPool::pinned_bytes() const {
  const std::lock_guard lock(mutex_);
  return pinned_;
}

}  // namespace hccomm::engine
