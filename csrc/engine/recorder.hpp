// SPDX-License-Identifier: Apache-2.0
//
// The flight recorder: what the last operations of a communicator were, when they began and ended
// and how, in a ring that is allocated once. Engine::dump() tells it as JSON; `hccomm doctor` reads
// the dumps of all ranks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/operation.hpp"

namespace hccomm::engine {

// A clock of a few nanoseconds: the processor's counter where it has one. recorded_ns() converts.
std::uint64_t ticks_now() noexcept;
// Nanoseconds since the epoch of a tick.
std::int64_t recorded_ns(std::uint64_t ticks) noexcept;

// Asks every engine of the process to write its dumps soon. Async-signal-safe.
void request_dumps() noexcept;
bool take_dump_request() noexcept;
// Makes SIGUSR1 do so.
void dump_on_sigusr1();

struct Record {
  std::uint64_t sequence = 0;  // of a collective, else the tag
  std::uint64_t fingerprint = 0, bytes = 0;
  std::uint64_t began = 0, ended = 0;  // ticks; ended 0: in flight
  std::int32_t peer = -1;              // of a message
  OperationKind kind = OperationKind::Collective;
  Code code = Code::Ok;
  std::uint32_t steps = 0, done = 0;  // as it ended
  std::uint8_t waits = 0;             // how many of waits_for are set
  std::array<std::int32_t, 8> waits_for;
};

// Owns:   the ring.
// Thread: guarded by the engine's lock.
// Fails:  never; the constructor may be out of memory.
class Recorder {
 public:
  static constexpr std::size_t kRecords = 1000;

  void begin(Operation& operation) noexcept;
  void end(const Operation& operation) noexcept;
  // A message that left at once, without an operation.
  void sent(int peer, std::uint64_t tag, std::uint64_t bytes, std::uint64_t began) noexcept;
  // The record of an operation, or nothing once it has been overwritten.
  Record* find(std::uint64_t number) noexcept;
  // Numbers of the records held: first() <= number < next().
  std::uint64_t first() const noexcept { return next_ < kRecords ? 0 : next_ - kRecords; }
  std::uint64_t next() const noexcept { return next_; }

 private:
  Record& next_record() noexcept;

  std::unique_ptr<Record[]> ring_ = std::make_unique_for_overwrite<Record[]>(kRecords);
  std::uint64_t next_ = 0;
  std::size_t at_ = 0;  // next_ % kRecords
};

}  // namespace hccomm::engine
