// SPDX-License-Identifier: Apache-2.0
//
// The callbacks. They run with the GIL released; a store written in Python takes it itself.
#include "store.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <vector>

namespace hccomm::glue {

// A get of so little time asks whether the key is there and waits for nothing.
static constexpr std::chrono::milliseconds kLook(10);
// TCPStore warns of a timeout on standard error each time; for less than this we poll instead.
static constexpr std::chrono::milliseconds kShort(100);

static int store_set(void* context, const char* key, const void* value, size_t bytes) {
  auto* store = static_cast<c10d::Store*>(context);
  const auto* first = static_cast<const std::uint8_t*>(value);
  try {
    store->set(key, std::vector<std::uint8_t>(first, first + bytes));
    return 0;
  } catch (...) {
    return -1;
  }
}

static int64_t store_get(void* context, const char* key, double timeout, void* value,
                         size_t capacity) {
  using Clock = std::chrono::steady_clock;
  auto* store = static_cast<c10d::Store*>(context);
  const std::chrono::milliseconds limit(std::max<int64_t>(1, static_cast<int64_t>(timeout * 1e3)));
  const auto started = Clock::now();
  try {
    while (limit < kShort && !store->check({key})) {
      if (limit <= kLook || Clock::now() - started >= limit) return -1;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (limit >= kShort) store->wait({key}, limit);
    const std::vector<std::uint8_t> got = store->get(key);
    std::memcpy(value, got.data(), std::min(capacity, got.size()));
    return static_cast<int64_t>(got.size());
  } catch (...) {
    // Each store has its own way to say that the time is over; all of them use it up.
    return Clock::now() - started >= limit ? -1 : -2;
  }
}

StoreAdapter::StoreAdapter(const c10::intrusive_ptr<c10d::Store>& store, int rank) {
  const int64_t generation = store->add("hccomm/generation/" + std::to_string(rank), 1);
  store_ = c10::make_intrusive<c10d::PrefixStore>("hccomm/" + std::to_string(generation), store);
  callbacks_ = {store_.get(), store_set, store_get};
}

}  // namespace hccomm::glue
