// SPDX-License-Identifier: Apache-2.0
//
// The pinned host memory of one device, bounded and kept: mirrors of device buffers lie in it.
// Small pieces are cut out of slabs, large ones have a slab each; what comes back is kept for the
// next of its size, so that a call repeated pins nothing. Where the runtime pins memory of others,
// it is shared memory: a peer on this machine copies from it to its own device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "device/device.hpp"
#include "engine/parts.hpp"

namespace hccomm::engine {

// A piece of pinned memory; empty when data is nullptr.
struct Lease {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;  // of its size class: what give_back() goes by
  bool shared = false;      // peers may map it
};

// Owns:   what it has pinned; every lease must be back before it is destroyed, or its slab stays.
// Thread: any. The runtime is called without the lock, for pinning may take milliseconds.
// Fails:  lease() gives Unavailable where the limit leaves no room, and System where the runtime
//         cannot pin.
class PinnedPool {
 public:
  PinnedPool(device::Runtime& runtime, int index, std::uint64_t limit_bytes, Dialer& sharer);
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  Result<Lease> lease(std::uint64_t bytes);
  void give_back(Lease& lease);
  std::uint64_t pinned_bytes() const;
  std::string why_private() const;  // why peers cannot map it; "": they can

 private:
  struct Slab {
    std::byte* data = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t used = 0;  // small: bytes cut off so far
    bool small = false;
    std::uint32_t leased = 0;
    std::unique_ptr<transport::Shared> shared;  // whose memory it is; nullptr: the runtime's
  };
  Result<Slab> pin(std::uint64_t bytes);
  void unpin(Slab slab);
  Result<Slab*> add_slab(std::uint64_t bytes, bool small, std::unique_lock<std::mutex>& lock);
  Lease take(std::uint64_t size);
  void evict(std::uint64_t wanted, std::vector<Slab>& idle);
  Slab& slab_of(const std::byte* data);

  device::Runtime& runtime_;
  const int index_;
  const std::uint64_t limit_;
  Dialer& sharer_;
  mutable std::mutex mutex_;                               // guards the rest
  std::map<std::byte*, Slab> slabs_;                       // by address
  std::map<std::uint64_t, std::vector<std::byte*>> free_;  // by size class
  std::uint64_t pinned_ = 0;
  std::string why_private_;
};

}  // namespace hccomm::engine
