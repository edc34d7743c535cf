// SPDX-License-Identifier: Apache-2.0
//
// One device as staging sees it: its pinned memory and its two lanes, which carry the copies of all
// operations to the mirrors and back. Plain records; staging.cpp works on them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "device/device.hpp"
#include "engine/pinned.hpp"
#include "engine/sums.hpp"

namespace hccomm::engine {

struct Staged;

// A copy that has been enqueued.
struct Copy {
  Staged* staged = nullptr;
  std::uint32_t cell = 0;
  device::Event event;
  std::byte* block = nullptr;  // what it goes through where the mirror is not pinned
  std::byte* again = nullptr;  // what the device has, read once more, where copies are checked
};

// The copies of one device in one direction, in one stream.
struct Lane {
  device::Stream stream;
  bool in = false;              // to the mirrors
  std::deque<Copy> flying;      // in order
  std::deque<Staged*> waiting;  // with cells to copy; they take turns
  std::uint64_t flying_bytes = 0;
  // The present stretch of copies without a gap, and what stretches have shown so far.
  Clock::time_point busy_since;
  std::uint64_t busy_bytes = 0;
  std::uint32_t busy_copies = 0;
  bool busy_others = false;  // some were no mere copies from or to the host
  double latency = 10e-6;    // seconds of a copy, whatever its size; a guess until measured
  double rate = 12e9;        // bytes per second; likewise
  bool measured_latency = false, measured_rate = false;
};

// One device, from its first use on.
struct Device {
  device::Runtime* runtime = nullptr;
  int index = 0;
  std::string name;  // "cuda:0"
  std::unique_ptr<PinnedPool> pool;
  Lane lanes[2];  // to the mirrors, to the device
  std::vector<device::Event> events;
  Lease reserve;                   // what blocks and proofs are cut from
  std::vector<std::byte*> blocks;  // free ones
  std::uint64_t block_bytes = 0;
  std::vector<std::byte*> proofs;  // free ones; what is read again goes there
  std::uint64_t proof_bytes = 0;   // the largest copy that can be checked; 0: none is
  // Memory of peers that the runtime has been told of, or refuses.
  struct Seen {
    transport::ViewPtr view;
    bool pinned = false;
  };
  std::vector<Seen> seen;
  // What peers must have in common with it for IPC: the kind and the version of its runtime, and
  // that they see its address on the bus. `passport` is what they are told: family and addresses.
  std::string family, bus, passport;
  std::string why_no_ipc;  // constant; "": it could be
  // Allocations of peers that have been opened here, the last one used last.
  struct Opened {
    const void* peer = nullptr;  // its channel
    std::string handle;
    transport::ViewPtr view;
    Clock::time_point used;
  };
  std::vector<Opened> opened;
  std::string why_not_exported;          // the last buffer that was to be
  std::atomic<std::uint64_t> across{0};  // messages copied from peers' devices
  // Buffers that found the pool full, and those that cards have reached; messages that were copied
  // from where the peer had staged them.
  std::atomic<std::uint64_t> bounced{0}, in_place{0}, fetched{0};
  std::string why_staged;  // the last one that cards were told of
  // Sums that could be made here, and whether they are, by type and operation; what was so made.
  std::string why_no_sums;  // constant; "": the adapter offers some
  std::map<std::pair<dtype::DType, dtype::RedOp>, SumTrial> trials;
  // Of the last call that asked: were they made here? No trial: why not even that.
  struct {
    const SumTrial* trial = nullptr;
    bool there = false;
    std::string why;
  } last_sums;
  std::atomic<std::uint64_t> sums{0};
};

}  // namespace hccomm::engine
