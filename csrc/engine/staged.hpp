// SPDX-License-Identifier: Apache-2.0
//
// The record of one operation whose buffers lie on a device: its mirrors, and how far its copies
// are. staging.hpp works on it.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "device/device.hpp"
#include "engine/pinned.hpp"
#include "engine/stage_plan.hpp"
#include "transport/transport.hpp"

namespace hccomm::engine {

struct Device;

// The device side of one operation.
//
// Owns:   its mirrors and events.
// Thread: guarded by the engine's lock, once prepare() has returned it.
struct Staged {
  struct Memory {
    Device* device = nullptr;  // nullptr: host memory
    device::Place place;
    bool opaque = false;    // its handle is no address
    device::Stream stream;  // the caller's
    std::byte* mirror = nullptr;
    Lease lease;                            // where the mirror is pinned
    std::unique_ptr<std::byte[]> pageable;  // where the pool was full, or no mirror is wanted
    transport::DeviceMemory enrolled;       // what cards were told of; no bytes: nothing
    device::Export exported;                // what peers' devices may open; no handle: nothing
  };
  Operation* operation = nullptr;  // nullptr: it has failed, and copies would not end
  Memory memory[2];
  device::Stream other_stream;  // the caller's for Input, where memory 0 holds both
  std::shared_ptr<const StagePlan> plan;
  StagePlan message;                                     // what `plan` points at for a message
  std::vector<std::pair<Device*, device::Event>> gates;  // the caller's streams at the call
  std::vector<std::uint64_t> left;                       // by out cell: bytes to be written
  std::vector<std::uint32_t> due;                        // out cells that may leave, from next_due
  std::uint32_t next_in = 0, landed_in = 0, next_due = 0, landed_out = 0;
  // Copies that the plan has not: of messages that were to move in place, and did not. Their number
  // follows those of the plan's; `first` is their step.
  std::vector<Cell> late_in, late_out;
  // By step, where some stream (StagePlan): how much of its source has been copied, from its
  // beginning, how much of that a peer that pulls has been told, or has been copied on, and whether
  // it has been issued.
  struct Leaving {
    std::uint64_t here = 0, told = 0;
    bool issued = false;
  };
  std::vector<Leaving> sends;
  // By out cell: where its bytes lie if not in the mirror, and what keeps them there.
  std::vector<const std::byte*> from;
  std::vector<transport::ViewPtr> views;
  Reach might_open;  // whose memory was expected, had the plan or the buffers allowed it
  std::uint32_t flying = 0;
  std::uint64_t available = 0;  // a message to be sent: bytes from its beginning that are here
  bool open = false;            // the caller's streams have reached the call
  bool over = false;            // failed: nothing is enqueued any more
  bool leaving = false;         // in the lane to the device
  bool begun = false;           // the engine has seen `open` if it was so at once
  bool unanswered = false;      // a message that its sender waits to be asked for

  Cell cell(bool in, std::uint32_t index) const {
    const std::vector<Cell>& planned = in ? plan->in : plan->out;
    return index < planned.size() ? planned[index]
                                  : (in ? late_in : late_out)[index - planned.size()];
  }
  // Where a peer has the bytes of an out cell; nullptr: they are in the mirror.
  const std::byte* seen_at(std::uint32_t index) const {
    return index < from.size() ? from[index] : nullptr;
  }
  // Where the device has what lies there in the mirror.
  std::byte* on_device(std::uint32_t memory_index, std::uint64_t offset) const {
    const device::Place& place = memory[memory_index].place;
    return static_cast<std::byte*>(place.handle) + place.offset + offset;
  }
};

}  // namespace hccomm::engine
