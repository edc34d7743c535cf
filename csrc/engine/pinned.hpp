// SPDX-License-Identifier: Apache-2.0
//
// The pinned host memory of one device, bounded and kept: mirrors of device buffers lie in it.
// Small pieces are cut out of slabs, large ones have a slab each; what comes back is kept for the
// next of its size, so that a call repeated pins nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "base/error.hpp"
#include "device/device.hpp"

namespace hccomm::engine {

// A piece of pinned memory; empty when data is nullptr.
struct Lease {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;  // of its size class: what give_back() goes by
};

// Owns:   what it has pinned; every lease must be back before it is destroyed, or its slab stays.
// Thread: any. The runtime is called without the lock, for pinning may take milliseconds.
// Fails:  lease() gives Unavailable where the limit leaves no room, and System where the runtime
//         cannot pin.
class PinnedPool {
 public:
  PinnedPool(device::Runtime& runtime, int index, std::uint64_t limit_bytes)
      : runtime_(runtime), index_(index), limit_(limit_bytes) {}
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  Result<Lease> lease(std::uint64_t bytes);
  void give_back(Lease& lease);
  std::uint64_t pinned_bytes() const;

 private:
  struct Slab {
    std::byte* data = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t used = 0;  // small: bytes cut off so far
    bool small = false;
    std::uint32_t leased = 0;
  };
  Result<Slab*> add_slab(std::uint64_t bytes, bool small, std::unique_lock<std::mutex>& lock);
  Lease take(std::uint64_t size);
  void evict(std::uint64_t wanted, std::vector<std::byte*>& idle);
  Slab& slab_of(const std::byte* data);

  device::Runtime& runtime_;
  const int index_;
  const std::uint64_t limit_;
  mutable std::mutex mutex_;                               // guards the rest
  std::map<std::byte*, Slab> slabs_;                       // by address
  std::map<std::uint64_t, std::vector<std::byte*>> free_;  // by size class
  std::uint64_t pinned_ = 0;
};

}  // namespace hccomm::engine
