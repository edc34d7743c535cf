// SPDX-License-Identifier: Apache-2.0
//
// Where large messages go: a table in shared memory by which a receiver tells the sender the place
// of each message it waits for, so that the sender writes it there (one copy, no question asked),
// and by which the two share the work: each takes the next piece, and copies it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "transport/link.hpp"

namespace hccomm::transport::shm {

// One place, one cache line. The word holds, from the low end: the next piece that nobody has taken
// (24 bits), how many the sender has taken (23), whether it is closed (1), and the lap (16), which
// changes with each message: who takes a piece for another message than it read of fails to.
struct Place {
  alignas(64) std::uint64_t word;
  std::uint64_t written;  // pieces that the sender has taken and written
  std::uint64_t context, sequence, fingerprint;
  std::uint64_t address;
  std::uint64_t bytes;
  std::uint32_t index;
  std::uint32_t type;  // its highest bit: the sender can map what lies at the address
};
static_assert(sizeof(Place) == 64);
inline constexpr std::size_t kPlaces = 64;
inline constexpr std::size_t kPlacesBytes = kPlaces * sizeof(Place);

// Pieces: large enough that the system call is cheap, small enough that two find work. Both sides
// compute it.
std::uint64_t piece_bytes(std::uint64_t message_bytes) noexcept;

// The receiver's side, of the table that it publishes.
//
// Owns:   nothing; the memory outlives it.
// Thread: one.
class Expected {
 public:
  explicit Expected(std::byte* memory) : table_(reinterpret_cast<Place*>(memory)) {}
  // Publishes a place, unless it is there already or the table has no room for it.
  // `shared`: all of it is in the table of exports (sharing.hpp).
  void publish(const wire::Header& which, std::byte* data, std::uint64_t bytes,
               bool shared = false) noexcept;
  // The next piece for the receiver to copy itself; see Link::claim(). The last piece is left to a
  // sender that has begun.
  Turn claim(const wire::Header& which, Piece& piece, bool patient) noexcept;
  // The message is whole: its place may serve another one.
  void settle(const wire::Header& which) noexcept;
  // From now on the sender takes no piece of what `of` stands for (as in Link::reclaim; nullptr:
  // anything). True once it is not writing one either, which is a matter of microseconds.
  bool close(const wire::Header* of) noexcept;

 private:
  // What stands in a line of the table. The peer can write there: we believe what we keep here.
  struct Mine {
    wire::Header which;
    std::uint64_t bytes = 0;
    bool given = false;
  };
  int find(const wire::Header& which) const noexcept;

  Place* table_;
  std::array<Mine, kPlaces> mine_;
};

// The sender's side, of its peer's table.
//
// Owns:   nothing; the memory outlives it.
// Thread: one.
class Granted {
 public:
  // A piece to write, at `address` of the peer. bytes 0: there is none.
  struct Task {
    Place* place = nullptr;
    Piece piece;
    std::uint64_t address = 0;
    bool last = false;    // the message has no further piece to take
    bool shared = false;  // the address lies in memory that can be mapped
  };

  explicit Granted(std::byte* memory) : table_(reinterpret_cast<Place*>(memory)) {}
  // Whether the receiver waits for the message with a place that is untouched.
  bool waits(const wire::Header& which, std::uint64_t bytes) noexcept;
  // Where the receiver wants it, if it says that this can be mapped; else 0.
  std::uint64_t shared_at(const wire::Header& which, std::uint64_t bytes) noexcept;
  // Takes a piece. With a place but no piece left: `last` alone.
  Task take(const wire::Header& which, std::uint64_t bytes) noexcept;
  // Says that the piece was written, well or not.
  void written(const Task& task) noexcept;

 private:
  Place* find(const wire::Header& which, std::uint64_t bytes, std::uint64_t& word) noexcept;

  Place* table_;
};

}  // namespace hccomm::transport::shm
