// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/cache.hpp"

#include <rdma/fi_domain.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "base/log.hpp"
#include "transport/ofi/monitor.hpp"

namespace hccomm::transport::ofi {

static constexpr std::size_t kMostEntries = 512;

// Since Linux 5.12 a fork copies pages that a card uses for the child, so that the parent's stay
// the card's. Before, what is registered while the program forks would come apart.
static bool forks_are_safe() {
  utsname system{};
  int major = 0, minor = 0;
  if (uname(&system) != 0 || std::sscanf(system.release, "%d.%d", &major, &minor) != 2) {
    return false;
  }
  return major > 5 || (major == 5 && minor >= 12);
}

// `most_bytes`: of what is registered and not in use; 0: nothing is kept.
void Cache::set(std::size_t most_bytes) {
  most_bytes_ = most_bytes;
  pins_ = std::ranges::any_of(rails_, [](const auto& rail) {
    return rail->has(FI_MR_LOCAL) || rail->has(FI_MR_ALLOCATED);
  });
  std::string why = !forks_are_safe() ? "a fork on this kernel would part the card from them"
                    : most_bytes == 0 ? "HCCOMM_OFI_CACHE is 0"
                                      : Monitor::instance().why_not();
  may_keep_ = why.empty();
  if (!may_keep_) HCCOMM_LOG(Info, "ofi: no buffers stay registered: ", why);
}

// What counts against the bound.
static std::size_t host_bytes(const Entry& entry) {
  return entry.on_device ? 0 : entry.memory.bytes;
}

// The addresses of a device may be those of something else on the host.
Entry* Cache::find(const std::byte* data, std::size_t bytes, Access access, bool on_device) {
  for (auto each = entries_.begin(); each != entries_.end();) {
    const auto entry = each++;
    const Registration& memory = entry->memory;
    if (entry->stale || data < memory.data || data + bytes > memory.data + memory.bytes) continue;
    if (entry->access < access || entry->on_device != on_device) continue;
    if (entry->watched >= 0 && !Monitor::instance().whole(entry->watched)) {
      entry->stale = true;
      if (entry->users == 0) drop(entry);
      continue;
    }
    entries_.splice(entries_.begin(), entries_, entry);
    return &*entry;
  }
  return nullptr;
}

void Cache::drop(std::list<Entry>::iterator entry) {
  if (entry->watched >= 0) Monitor::instance().forget(entry->watched);
  bytes_ -= host_bytes(*entry);
  if (entry->users == 0) idle_bytes_ -= host_bytes(*entry);
  strike(entry->memory);
  entries_.erase(entry);
}

// The one that was used longest ago. False: all are in use.
bool Cache::evict() {
  for (auto each = entries_.end(); each != entries_.begin();) {
    --each;
    if (each->users != 0) continue;
    drop(each);
    return true;
  }
  return false;
}

// What the program has given back stays locked until it is dropped.
void Cache::drop_broken() {
  for (auto each = entries_.begin(); each != entries_.end();) {
    const auto entry = each++;
    const bool idle = entry->users == 0 && entry->watched >= 0;
    if (idle && !Monitor::instance().whole(entry->watched)) drop(entry);
  }
}

// Registers, at the cost of what nobody uses if it must. Where even that was in vain, as much is
// not asked for again: it would empty the cache for each message.
Status Cache::register_at(Entry& entry, std::byte* data, std::size_t bytes) {
  const auto in_use = [&] { return bytes_ - idle_bytes_; };
  if (in_use() + bytes >= refused_bytes_) return refused_;
  auto made = enroll(rails_, data, bytes, entry.access);
  while (!made && evict()) made = enroll(rails_, data, bytes, entry.access);
  if (made) {
    entry.memory = made.value();
    return {};
  }
  refused_bytes_ = in_use() + bytes;
  return refused_ = made.status();
}

// Whole pages: two registrations of one page are no harm, half a page is none. `lasting`: not for
// one use only.
Result<Entry*> Cache::add(const std::byte* data, std::size_t bytes, Access access, bool lasting) {
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(data) & ~(page - 1);
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes + page - 1) & ~(page - 1);
  drop_broken();
  while (entries_.size() >= kMostEntries && evict()) {
  }
  std::list<Entry> made_first(1);  // so that nothing is refused once the cards know it
  Entry& entry = made_first.front();
  entry.access = access;
  auto* const start = reinterpret_cast<std::byte*>(begin);
  // Watched first: what is unmapped meanwhile must not be missed.
  if (may_keep_) entry.watched = Monitor::instance().watch(start, end - begin);
  if (lasting && entry.watched < 0) {
    return Status(Code::Unavailable, text("ofi: the kernel does not tell when ", end - begin,
                                          " bytes are unmapped (a mapping of a file?)"));
  }
  const Status made = register_at(entry, start, end - begin);
  if (!made.ok()) {
    if (entry.watched >= 0) Monitor::instance().forget(entry.watched);
    return made;
  }
  bytes_ += entry.memory.bytes;
  idle_bytes_ += entry.memory.bytes;
  entries_.splice(entries_.begin(), made_first);
  return &entries_.front();
}

Entry* Cache::use(const std::byte* data, std::size_t bytes, Access access) try {
  Entry* entry = find(data, bytes, access);
  if (entry == nullptr) {
    if (pins_ && !may_keep_) return nullptr;
    auto added = add(data, bytes, access, pins_);
    if (!added) {
      log::write_once(log::Level::Warn, "ofi/cache",
                      added.status().text() + "; large messages are copied instead");
      return nullptr;
    }
    entry = added.value();
  }
  return taken(entry);
} catch (const std::bad_alloc&) {  // as what cannot be registered
  return nullptr;
}

Result<Entry*> Cache::keep(const std::byte* data, std::size_t bytes) {
  Entry* entry = find(data, bytes, Access::Write);
  if (entry == nullptr) {
    auto added = add(data, bytes, Access::Write, false);
    if (!added) return added.status();
    entry = added.value();
  }
  return taken(entry);
}

Result<Entry*> Cache::keep(const DeviceMemory& memory, std::string& how) {
  if (Entry* const there = use_on_device(memory.data, memory.bytes)) {
    how = "as it was registered";
    return there;
  }
  auto made = enroll(rails_, memory, how);
  if (!made) return made.status();
  Entry entry;
  entry.memory = made.value();
  entry.access = Access::Write;
  entry.on_device = true;
  entries_.push_front(entry);
  return taken(&entries_.front());
}

Entry* Cache::use_on_device(const std::byte* data, std::size_t bytes) {
  Entry* const entry = find(data, bytes, Access::Write, true);
  return entry != nullptr ? taken(entry) : nullptr;
}

Entry* Cache::taken(Entry* entry) {
  if (entry->users++ == 0) idle_bytes_ -= host_bytes(*entry);
  return entry;
}

void Cache::done(Entry& entry) {
  if (--entry.users != 0) return;
  idle_bytes_ += host_bytes(entry);
  if (entry.stale || entry.watched < 0) {
    drop(std::ranges::find_if(entries_, [&](const Entry& each) { return &each == &entry; }));
  }
  while (idle_bytes_ > most_bytes_ && evict()) {
  }
}

void Cache::revoke(Entry& entry) {
  entry.stale = true;
  const std::size_t bytes = host_bytes(entry);
  strike(entry.memory);
  bytes_ -= bytes;
}

void Cache::clear() noexcept {
  while (!entries_.empty()) drop(entries_.begin());
}

}  // namespace hccomm::transport::ofi
