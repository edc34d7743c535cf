// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_heap.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/log.hpp"
#include "base/machine.hpp"
#include "comm/endpoint.hpp"

namespace hccomm::comm {

static constexpr std::uint64_t kPage = 4096, kHuge = 2 << 20;
static constexpr std::uint64_t kOwn = 16 << 20;  // such buffers have a block of their own
static constexpr std::uint64_t kMostSlab = 128 << 20;
static constexpr std::uint64_t kMost = std::uint64_t{1} << 60;

static std::atomic<bool> in_child{false};

static bool forked() { return in_child.load(std::memory_order_relaxed) || Endpoint::forked(); }

static std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

static Result<std::unique_ptr<transport::Shared>> share(std::size_t bytes) {
  Status status(Code::Unavailable, "no transport that is allowed shares memory");
  for (const transport::Builtin* each : allowed_transports()) {
    if (each->share == nullptr) continue;
    auto shared = each->share(bytes);
    if (shared.ok()) return shared;
    status = shared.status();
  }
  return status;
}

SharedHeap& SharedHeap::of_process() {
  static auto* const heap = [] {
    if (pthread_atfork(nullptr, nullptr, [] { in_child.store(true); }) != 0) {
      throw Error(Code::System, "alloc: pthread_atfork failed");
    }
    return new SharedHeap(share);
  }();
  return *heap;
}

// All of it is touched at once, and the kernel would rather end a process than refuse a page.
static Result<std::unique_ptr<transport::Shared>> whole(const SharedHeap::Source& source,
                                                        std::uint64_t bytes) {
  const std::uint64_t left = available_memory();
  if (bytes <= left) return source(bytes);
  return Status(Code::System, text("there are no ", bytes, " bytes: the system, or a limit of the ",
                                   "control group, leaves ", left));
}

// From the first range that is large enough; nullptr: there is none.
std::byte* SharedHeap::cut(std::uint64_t size) {
  const std::uint64_t unit = size >= kHuge ? kHuge : kPage;
  for (auto& [data, slab] : slabs_) {
    for (auto range = slab.free.begin(); range != slab.free.end(); ++range) {
      const auto [begin, bytes] = *range;
      const std::uint64_t at = round_up(begin, unit);  // blocks of 2 MiB and more lie like that
      if (at + size > begin + bytes) continue;
      taken_[data + at] = size;
      taken_bytes_ += size;
      slab.free.erase(range);
      if (at > begin) slab.free[begin] = at - begin;
      if (at + size < begin + bytes) slab.free[at + size] = begin + bytes - at - size;
      return data + at;
    }
  }
  return nullptr;
}

Result<std::byte*> SharedHeap::take(std::uint64_t bytes) {
  if (forked()) {
    return Status(Code::Unavailable, "a forked child shares no memory");
  }
  if (bytes > kMost) return Status(Code::System, text("there are no ", bytes, " bytes"));
  const std::uint64_t size = round_up(std::max<std::uint64_t>(bytes, 1), kPage);
  std::unique_lock lock(mutex_);
  if (std::byte* const found = size < kOwn ? cut(size) : nullptr) return found;
  // Half of what there is: so blocks are few, and at most a third of the memory is idle.
  const std::uint64_t usual = std::clamp(round_up(slab_bytes_ / 2, kHuge), kHuge, kMostSlab);
  const std::uint64_t wanted = size < kOwn ? std::max(usual, round_up(size, kHuge)) : size;
  lock.unlock();
  auto made = whole(source_, wanted);
  lock.lock();
  if (!made.ok()) {
    refused_ = made.status().text();
    HCCOMM_LOG(Info, "memory: ", bytes, " bytes are not shared: ", refused_);
    return made.status();
  }
  std::byte* const data = made.value()->data();
  Slab& slab = slabs_[data];
  slab.memory = std::move(made).value();
  slab.bytes = wanted;
  slab_bytes_ += wanted;
  slab.free[size] = wanted - size;
  if (size == wanted) slab.free.clear();
  taken_[data] = size;
  taken_bytes_ += size;
  return data;
}

// The smallest stays, for the next one.
SharedHeap::Slabs::node_type SharedHeap::let_go(Slabs::iterator slab) {
  const bool spare =
      slab->second.bytes == kHuge && std::ranges::count_if(slabs_, [](const auto& each) {
                                       return each.second.bytes == kHuge && each.second.idle();
                                     }) == 1;
  if (spare) return {};
  slab_bytes_ -= slab->second.bytes;
  return slabs_.extract(slab);
}

bool SharedHeap::give_back(std::byte* data) {
  if (forked()) return true;
  Slabs::node_type idle;  // unmapped without the lock
  const std::lock_guard lock(mutex_);
  const auto taken = taken_.find(data);
  if (taken == taken_.end()) return false;
  const auto slab = std::prev(slabs_.upper_bound(data));
  auto& free = slab->second.free;
  std::uint64_t begin = static_cast<std::uint64_t>(data - slab->first);
  std::uint64_t end = begin + taken->second;
  taken_bytes_ -= taken->second;
  taken_.erase(taken);
  if (const auto next = free.find(end); next != free.end()) {
    end += next->second;
    free.erase(next);
  }
  if (auto before = free.lower_bound(begin); before != free.begin()) {
    --before;
    if (before->first + before->second == begin) begin = before->first;
  }
  free[begin] = end - begin;
  if (slab->second.idle()) idle = let_go(slab);
  return true;
}

SharedHeap::Usage SharedHeap::usage() const {
  if (forked()) return {};
  const std::lock_guard lock(mutex_);
  return {taken_.size(), taken_bytes_, refused_};
}

}  // namespace hccomm::comm
