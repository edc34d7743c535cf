// SPDX-License-Identifier: Apache-2.0
//
// What a fabric keeps of one peer: the window of frames on their way to it, those that have come
// from it in whatever order, and the control connection that tells of its end.
//
// What a peer sends is written into an inbox that it was given, with 32 bits: whose it is for the
// receiver, what it is, and its number, which restores the order that no provider has to keep.
// Large payloads go straight into memory that the receiver has advertised.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "transport/ofi/grant.hpp"
#include "transport/ofi/op.hpp"
#include "wire/frame.hpp"

namespace hccomm::transport::ofi {

// The inbox that a peer writes: a place for writes that carry nothing but their 32 bits, slots for
// small frames, and slots for the parts of large ones.
inline constexpr std::size_t kNothingBytes = 4096;
inline constexpr std::size_t kEagerBytes = 8 * 1024;  // header included
inline constexpr unsigned kEagerSlots = 16;
inline constexpr std::size_t kRingSlotBytes = 132 * 1024;  // a segment and its header
inline constexpr unsigned kRingSlots = 8;
inline constexpr std::size_t kRingAt = kNothingBytes + kEagerSlots * kEagerBytes;
inline constexpr std::size_t kInboxBytes = kRingAt + kRingSlots * kRingSlotBytes;
inline constexpr unsigned kDirectWrites = 32;          // into memory that was advertised
inline constexpr unsigned kGrants = 32;                // such pieces of memory at once
inline constexpr std::size_t kPieceBytes = 4096;       // of a frame that is injected in pieces
inline constexpr std::size_t kPiecesMost = 64 * 1024;  // payload of such a frame
inline constexpr unsigned kPieces = 1 + kPiecesMost / kPieceBytes;  // the header is one
inline constexpr unsigned kWindow = 256;  // > numbers that can be on their way at once
inline constexpr std::uint32_t kMaxPeers = 1u << 13;
static_assert(kEagerSlots * 3 + kRingSlots * kPieces + kDirectWrites <= kWindow);
static_assert(1 + kEagerBytes / kPieceBytes == 3, "the header and two pages");

enum class Kind : std::uint8_t {
  Eager,        // a frame in an eager slot
  Ring,         // a frame, or a part of one, in a ring slot
  Advert,       // in an eager slot
  Direct,       // a part of a message, in its place
  EagerCredit,  // the kinds from here on have no number
  RingCredit,
  DirectCredit,
  Hello,
};

// The 32 bits.
struct Immediate {
  std::uint32_t peer = 0;   // 13 bits: the receiver's number for the sender
  Kind kind = Kind::Hello;  // 3 bits
  // Of a frame its number; of a direct write the grant's slot and 8 bits of the number; of a credit
  // how many were taken in all; of a hello the lane, or kAsleep.
  std::uint16_t value = 0;

  std::uint32_t pack() const { return peer << 19 | static_cast<std::uint32_t>(kind) << 16 | value; }
  static Immediate unpack(std::uint64_t bits) {
    return {static_cast<std::uint32_t>(bits >> 19) & (kMaxPeers - 1),
            static_cast<Kind>(bits >> 16 & 7), static_cast<std::uint16_t>(bits)};
  }
  static std::uint16_t direct(unsigned slot, std::uint16_t number) {
    return static_cast<std::uint16_t>(slot << 8 | (number & 0xff));
  }
};

// A hello that says "I sleep: ring when you send", with 15 bits of the number of the frame awaited.
inline constexpr std::uint16_t kAsleep = 1u << 15;

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
  // Of the count its last 8 bits: more than a window.
  void credit8(std::uint8_t taken) {
    const auto ahead = static_cast<std::uint8_t>(taken - static_cast<std::uint8_t>(acked));
    if (ahead <= sent - acked) acked += ahead;
  }
};

struct Taken {
  std::uint32_t count = 0, told = 0;
};

// In the place of a grant's slot: a piece of a frame in an eager slot, or in a ring slot.
inline constexpr unsigned kPieceOfEager = 0xfe, kPieceOfRing = 0xff;

struct Arrival {
  bool here = false;
  Kind kind = Kind::Eager;
  bool piece = false;
  std::uint8_t slot = 0;  // of a direct write
};

// What the two ends say over the control connection once the link is up.
struct Note {
  // Revoke: write no more to the grant (slot and number of the advert); Revoked answers it. Ring
  // wakes a peer that sleeps.
  enum Type : std::uint32_t { Bye = 1, Taken = 2, Revoke = 3, Revoked = 4, Ring = 5 };
  std::uint32_t type = 0;
  // Bye: how many frames were sent (16 bits), kBroken where they are void. Revoked: how many direct
  // writes were made in all.
  std::uint32_t value = 0;
  std::uint32_t slot = 0;
  std::uint32_t unused = 0;
  static constexpr std::uint32_t kBroken = 1u << 16;
};

// Guarded by the fabric's mutex.
struct Peer {
  std::uint32_t id = 0, their_id = 0;
  // A lane is a rail of ours with the one of the peer's that it reaches; both number them alike.
  unsigned lanes = 1;
  std::array<std::uint8_t, kMaxRails> rail_of{};   // by lane
  std::array<std::uint64_t, kMaxRails> address{};  // by lane: fi_addr_t
  unsigned working = 1;                            // lanes over which the peer has been heard ...
  std::array<std::uint8_t, kMaxRails> works{};     // ... and these; what is small takes the first
  std::string name;                                // "ofi (net) to 10.0.0.2", for errors
  bool linked = true;                              // a link uses it
  bool in_pieces = false;                          // it takes frames in pieces; constant
  bool amid_pieces = false;                        // of the frame that begins at `frame_at`
  std::uint64_t frame_at = 0;
  unsigned met = 0;  // by lane, a bit: its hello has come through the fabric
  Status failure;

  std::uint16_t next = 0;  // number of the next frame
  Window eager, ring, direct;
  std::size_t eager_bytes = 0, slot_bytes = 0;             // of the peer's slots
  std::uint64_t eager_offset = 0, ring_offset = 0;         // in its inbox
  std::array<std::uint64_t, kMaxRails> inbox_at{}, key{};  // by lane
  std::array<Claim, kGrants> claims{};                     // what it lets us write
  std::uint32_t direct_written = 0;
  std::array<std::uint64_t, kMaxRails> sent_bytes{};  // of large messages, by lane
  unsigned in_flight = 0, borrowed = 0;

  std::uint16_t expected = 0;
  std::array<Arrival, kWindow> arrived{};
  Taken eager_in, ring_in, direct_in;
  std::uint32_t direct_arrived = 0;
  std::array<Grant, kGrants> grants{};  // what we let it write
  unsigned given = 0;                   // of them not free
  // Of the next arrivals: how many a device sees for certain, how many it will when the reads that
  // are under way have ended, and how many these are.
  unsigned settled = 0, read_back = 0, reading_back = 0;
  Block inbox;             // that the peer writes
  std::uint64_t seen = 0;  // Fabric::polls_ when it was last looked at
  bool rings = false;      // it knows how to
  bool asleep = false;     // it is rung with the next that is sent
  bool announced = false;  // it was told that we sleep until `expected` comes

  UniqueFd control;
  char note[sizeof(Note)] = {};
  std::size_t note_bytes = 0;
  bool over = false;  // the control connection has ended
  bool said_bye = false, heard_bye = false, all_taken = false, told_taken = false;
  std::uint16_t bye = 0;  // how many frames it says it has sent
  Clock::time_point left_at{};

  bool lost() const { return over || !failure.ok(); }
  // What rides in a frame: how many eager and ring slots have been taken.
  std::uint16_t credit() const {
    return static_cast<std::uint16_t>((eager_in.count & 0xff) | (ring_in.count & 0xff) << 8);
  }
  void credited(std::uint16_t said) {
    eager.credit8(static_cast<std::uint8_t>(said));
    ring.credit8(static_cast<std::uint8_t>(said >> 8));
  }
  void told() {
    eager_in.told = eager_in.count;
    ring_in.told = ring_in.count;
  }
  unsigned lane_for(std::uint32_t number) const { return works[number % working]; }
  // Where the next frame of that kind lies in the inbox.
  std::byte* next_slot(Kind kind) const {
    return kind == Kind::Ring
               ? inbox.data + kRingAt + ring_in.count % kRingSlots * kRingSlotBytes
               : inbox.data + kNothingBytes + eager_in.count % kEagerSlots * kEagerBytes;
  }
  Arrival& slot_of(std::uint16_t number) { return arrived[number % kWindow]; }
  // What a hello with kAsleep shall say; and whether something has been sent that who said it had
  // not seen: it may have come after the last look.
  std::uint16_t sleep_word() const { return static_cast<std::uint16_t>(expected | kAsleep); }
  bool overtaken(std::uint16_t sleep_word) const {
    return static_cast<std::uint16_t>(next | kAsleep) != sleep_word;
  }
};

}  // namespace hccomm::transport::ofi
