// SPDX-License-Identifier: Apache-2.0
//
// What a fabric keeps of one peer: the window of frames on their way to it, those that have come
// from it in whatever order, and the control connection that tells of its end.
//
// Everything a peer sends is written into an inbox that it was given, and carries 32 bits: whose it
// is for the receiver, what it is, and its number, by which the receiver restores the order that no
// provider has to keep.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "transport/ofi/pool.hpp"

namespace hccomm::transport::ofi {

// The inbox that a peer writes: a place for writes that carry nothing but their 32 bits, slots for
// small frames, and slots for the parts of large ones.
inline constexpr std::size_t kNothingBytes = 4096;
inline constexpr std::size_t kEagerBytes = 8 * 1024;  // header included
inline constexpr unsigned kEagerSlots = 16;
inline constexpr std::size_t kRingSlotBytes = 128 * 1024;
inline constexpr unsigned kRingSlots = 8;
inline constexpr std::size_t kRingAt = kNothingBytes + kEagerSlots * kEagerBytes;
inline constexpr std::size_t kInboxBytes = kRingAt + kRingSlots * kRingSlotBytes;
inline constexpr unsigned kWindow = 32;  // > frames that can be on their way at once
inline constexpr std::uint32_t kMaxPeers = 1u << 13;
static_assert(kEagerSlots + kRingSlots <= kWindow);

enum class Kind : std::uint8_t { Eager, Ring, EagerCredit, RingCredit, Hello };

// The 32 bits.
struct Immediate {
  std::uint32_t peer = 0;   // 13 bits: the receiver's number for the sender
  Kind kind = Kind::Hello;  // 3 bits
  std::uint16_t value = 0;  // of a frame its number; of a credit how many were taken in all

  std::uint32_t pack() const { return peer << 19 | static_cast<std::uint32_t>(kind) << 16 | value; }
  static Immediate unpack(std::uint64_t bits) {
    return {static_cast<std::uint32_t>(bits >> 19) & (kMaxPeers - 1),
            static_cast<Kind>(bits >> 16 & 7), static_cast<std::uint16_t>(bits)};
  }
};

struct Peer;

// One write under way. libfabric may use the first 64 bytes until it has completed.
struct Op {
  std::uint64_t context[8] = {};
  Peer* peer = nullptr;              // to whom; nullptr once nobody cares
  Block block;                       // where what is copied lies
  std::vector<Op*>* home = nullptr;  // the list it returns to
  bool borrows = false;              // it reads memory of the user
};

// How many may be sent, and how many have been taken at the other end. Counts for ever, modulo 2^16
// on the wire.
struct Window {
  std::uint32_t sent = 0, acked = 0, limit = 0;
  bool open() const { return sent - acked < limit; }
  // Credits may overtake each other: an older one says nothing new.
  void credit(std::uint16_t taken) {
    const auto ahead = static_cast<std::uint16_t>(taken - static_cast<std::uint16_t>(acked));
    if (ahead <= sent - acked) acked += ahead;
  }
};

struct Taken {
  std::uint32_t count = 0, told = 0;
};

struct Arrival {
  bool here = false;
  Kind kind = Kind::Eager;
};

// What the two ends say over the control connection once the link is up.
struct Note {
  enum Type : std::uint32_t { Bye = 1, Taken = 2 };
  std::uint32_t type = 0;
  std::uint32_t value = 0;  // Bye: how many frames were sent (16 bits), kBroken where they are void
  static constexpr std::uint32_t kBroken = 1u << 16;
};

// Guarded by the fabric's mutex.
struct Peer {
  std::uint32_t id = 0, their_id = 0;
  std::uint64_t address = 0;  // fi_addr_t
  std::string name;           // "ofi (net) to 10.0.0.2", for errors
  bool linked = true;         // a link uses it
  bool met = false;           // its hello has come through the fabric
  Status failure;

  std::uint16_t next = 0;  // number of the next frame
  Window eager, ring;
  std::size_t eager_bytes = 0, slot_bytes = 0;                       // of the peer's slots
  std::uint64_t nothing_at = 0, eager_at = 0, ring_at = 0, key = 0;  // of its inbox
  unsigned in_flight = 0, borrowed = 0;

  std::uint16_t expected = 0;
  std::array<Arrival, kWindow> arrived{};
  Taken eager_in, ring_in;
  Block inbox;             // that the peer writes
  std::uint64_t seen = 0;  // Fabric::polls_ when it was last looked at

  UniqueFd control;
  char note[sizeof(Note)] = {};
  std::size_t note_bytes = 0;
  bool over = false;  // the control connection has ended
  bool said_bye = false, heard_bye = false, all_taken = false, told_taken = false;
  std::uint16_t bye = 0;  // how many frames it says it has sent
  Clock::time_point left_at{};

  Arrival& slot_of(std::uint16_t number) { return arrived[number % kWindow]; }
};

}  // namespace hccomm::transport::ofi
