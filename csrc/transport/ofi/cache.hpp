// SPDX-License-Identifier: Apache-2.0
//
// Memory of the user as the cards know it: what is in use and, where the kernel tells of unmappings
// (monitor.hpp), what was used lately. Where it does not tell, memory is registered for each use by
// providers to which that costs nothing, else not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>

#include "transport/ofi/rail.hpp"

namespace hccomm::transport::ofi {

// One registered range of whole pages. In use while `users` is not 0.
struct Entry {
  Registration memory;
  Access access = Access::Read;
  unsigned users = 0;
  int watched = -1;    // Monitor
  bool stale = false;  // no longer to be found: struck when the last user has gone
  bool on_device = false;
};

// Owns:   the entries.
// Thread: one at a time (the fabric's mutex).
// Fails:  use() gives nullptr where the memory is not to be had: the data go another way.
class Cache {
 public:
  explicit Cache(const Rails& rails) : rails_(rails) {}
  Cache(const Cache&) = delete;

  void set(std::size_t most_bytes);
  // Requires: done() for every one; data stay mapped until then.
  Entry* use(const std::byte* data, std::size_t bytes, Access access);
  void done(Entry& entry);
  // As use(), for as long as the program wants: also where nothing else stays registered. Fails:
  // System, with what refused.
  Result<Entry*> keep(const std::byte* data, std::size_t bytes);
  // Of a device, for as long as somebody uses it. Fails: with what refused.
  Result<Entry*> keep(const DeviceMemory& memory, std::string& how);
  // What is registered of a device; nullptr: it is not.
  Entry* use_on_device(const std::byte* data, std::size_t bytes);
  // From when this returns no card touches it, whoever uses it.
  void revoke(Entry& entry);
  void clear() noexcept;  // before the cards are closed
  std::size_t registered_bytes() const { return bytes_; }

 private:
  Entry* find(const std::byte* data, std::size_t bytes, Access access, bool on_device = false);
  Result<Entry*> add(const std::byte* data, std::size_t bytes, Access access, bool lasting);
  Status register_at(Entry& entry, std::byte* data, std::size_t bytes);
  Entry* taken(Entry* entry);
  bool evict();
  void drop_broken();
  void drop(std::list<Entry>::iterator entry);

  const Rails& rails_;
  std::list<Entry> entries_;                                 // used last first
  std::size_t bytes_ = 0, idle_bytes_ = 0, most_bytes_ = 0;  // of all, of what nobody uses; host's
  std::size_t refused_bytes_ = SIZE_MAX;  // in use, with what was refused though all else had gone
  Status refused_;
  bool pins_ = true;      // to register costs something
  bool may_keep_ = true;  // what nobody uses may stay registered
};

}  // namespace hccomm::transport::ofi
