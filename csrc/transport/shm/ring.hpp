// SPDX-License-Identifier: Apache-2.0
//
// One direction of a shared-memory link: a queue in memory that exactly one process writes and one
// reads. It knows frames and memory; no descriptors, no sleeping (shm_link adds those).
//
//   head page   what the reader says: how far it has read (line 1), whether it sleeps (line 2);
//               what the writer says beside the queue: offers that it has withdrawn
//   places      what the writer expects, and where (places.hpp)
//   cells       512 of 128 bytes: control word, header, 72 bytes of payload or more
//   area        payloads that do not fit a cell, in the order of their cells
//
// What goes to several peers lies in the writer's commons (commons.hpp) instead of in the area.
//
// The control word is the readiness flag: it holds the lap of the queue, so a cell needs no
// clearing, and it shares its cache line with the header and the first bytes of payload, so a
// small message is one line that moves from core to core. A header that says nothing new but its
// sequence and fingerprint is written short: then 40 bytes of payload fit that line, else 8. How a
// payload is cut and where it lies in the area follow from its length and the payloads before it:
// both sides compute it, so the reader uses no offset and no part size that the peer wrote, and the
// header only as a copy of its own. Of a piece in the commons the cell says where it begins; that
// is looked at before it is used.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "transport/shm/commons.hpp"
#include "transport/shm/places.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport::shm {

inline constexpr std::size_t kLineBytes = 64;
inline constexpr std::size_t kHeadBytes = 4096 + kPlacesBytes;
inline constexpr std::size_t kPlacesAt = 4096;
inline constexpr std::size_t kCells = 512;
inline constexpr std::size_t kCellBytes = 128;
inline constexpr std::size_t kInlineBytes = kCellBytes - 8 - sizeof(wire::Header);
inline constexpr std::size_t kShortBytes = kCellBytes - 24;  // likewise, after a short header
inline constexpr std::size_t kChunkBytes = 32 * 1024;        // largest payload of one cell
inline constexpr std::size_t kMinAreaBytes = 4 * kChunkBytes;
inline constexpr std::size_t kMaxAreaBytes = std::size_t{1} << 30;

// The size of a ring, whole: what is mapped. `area_bytes` is a power of two within the limits.
constexpr std::size_t ring_bytes(std::size_t area_bytes) {
  return kHeadBytes + kCells * kCellBytes + area_bytes;
}
bool valid_area(std::uint64_t area_bytes);
// The nearest valid size that holds `wanted_bytes`.
std::size_t area_for(std::uint64_t wanted_bytes);

// Whether a copy through the ring runs several times as fast as one by the kernel: 30 and 8 GB/s on
// Zen 5. The same to both processes.
bool rings_are_fast() noexcept;

// Where the next payload begins in a circle of memory: after the last one, or at the start when it
// would be cut in two; and where it ends.
std::uint64_t place(std::uint64_t after, std::size_t bytes, std::size_t circle_bytes);
std::uint64_t end_of(std::uint64_t begin, std::size_t bytes);
// Copies into lines that readers have in their caches.
void copy_over(std::byte* at, const std::byte* from, std::size_t bytes);

// Orders every store before it against every load after it, on both sides of a sleep.
void full_fence() noexcept;

inline constexpr std::size_t kWithdrawnKept = 448;  // the last ones; who fails more has no readers

// What the two tell each other beside the queue. Each line has one usual writer.
struct Head {
  alignas(kLineBytes) std::uint64_t withdrawn;   // writer: how many offers it has withdrawn
  alignas(kLineBytes) std::uint64_t cells_read;  // reader: cells it is done with
  std::uint64_t bytes_read;                      // reader: area it is done with, gaps included
  alignas(kLineBytes) std::uint32_t asleep;      // a Sleep; reader sets, writer clears
  alignas(kLineBytes) std::uint64_t keys[kWithdrawnKept];  // writer: of those, in turn
};
static_assert(sizeof(Head) <= kPlacesAt);

enum Sleep : std::uint32_t {
  kAwake = 0,
  kForFrames = 1,         // ring me when you have sent
  kForFramesAndRoom = 2,  // ring me also when you have read
};

// Owns:   nothing; the memory and the commons outlive it. Holds pieces in the commons.
// Thread: one.
// Fails:  send() gives Broken when the reader's counters are impossible.
class RingWriter final : private Commons::Ring {
 public:
  // `commons` nullptr: there are none.
  RingWriter(std::byte* memory, std::size_t area_bytes, Commons* commons = nullptr);
  RingWriter(const RingWriter&) = delete;
  ~RingWriter();
  // Takes as much of the frame as there is room for.
  Progress send(Outgoing& frame) noexcept;
  // See Link::withdraw(). Visible before any later store of this thread.
  void withdraw(std::uint64_t key) noexcept;
  // Whether the reader has moved on since send() answered Again.
  bool moved() const noexcept;
  std::atomic_ref<std::uint32_t> reader_sleep() const noexcept;

 private:
  bool send_short(Outgoing& frame) noexcept;
  bool send_inline(Outgoing& frame) noexcept;
  bool send_block(Outgoing& frame) noexcept;
  std::uint64_t in_commons(const Outgoing& frame, std::size_t done, std::size_t bytes) noexcept;
  void let_go() noexcept override;
  bool holds(std::uint64_t piece) const noexcept override;
  bool room(std::uint64_t area_end) noexcept;
  bool refresh() noexcept;
  void publish(std::byte* cell, std::uint64_t what) noexcept;

  std::byte* memory_;
  std::size_t area_bytes_;
  std::uint64_t context_ = 0;     // of the last header written whole
  std::uint64_t cells_ = 0;       // cells written
  std::uint64_t area_ = 0;        // area used, gaps included
  std::uint64_t cells_read_ = 0;  // the reader's, as last seen
  std::uint64_t area_read_ = 0;
  bool broken_ = false;
  struct Held {
    std::uint64_t piece = 0, cell = 0;
  };
  Commons* commons_;
  std::array<Held, Commons::kPieces> held_;  // a circle
  std::uint64_t first_held_ = 0, next_held_ = 0;
};

// Owns:   nothing; the memory outlives it.
// Thread: one.
// Fails:  poll() gives Bad when a cell holds what no writer writes; fault() says what.
class RingReader {
 public:
  enum class Taken : std::uint8_t { Nothing, Some, Bad };

  // `commons`: the writer's, or nullptr.
  RingReader(std::byte* memory, std::size_t area_bytes, const std::byte* commons = nullptr);
  bool ready() const noexcept;
  // Hands over what has arrived, about `budget` bytes at most.
  Taken poll(Inbox& inbox, std::size_t budget) noexcept;
  const std::string& fault() const noexcept { return fault_; }
  bool withdrawn(std::uint64_t key) const noexcept;
  bool inside_frame() const noexcept { return left_ != 0; }
  // The rest of the frame that is arriving in parts goes nowhere; Inbox::end() still comes.
  void discard() noexcept { discarded_ = left_ != 0; }
  std::atomic_ref<std::uint32_t> my_sleep() const noexcept;
  // Whether a quarter of the ring has come free since told(). A writer that waits for room while
  // less than that is free has left us a quarter to read, at the least.
  bool owes_much() const noexcept {
    return cells_ - told_cells_ >= kCells / 4 || area_ - told_area_ >= area_bytes_ / 4;
  }
  void told() noexcept {
    told_cells_ = cells_;
    told_area_ = area_;
  }

 private:
  std::size_t take(Inbox& inbox);
  wire::Header header_in(const std::byte* cell);
  std::size_t take_block(Inbox& inbox, const std::byte* cell, bool first, bool common);
  std::size_t bad(const char* what, std::uint64_t value);
  void tell_cells() noexcept;
  void hand_over(Inbox& inbox, const std::byte* piece, std::size_t bytes);

  std::byte* memory_;
  std::size_t area_bytes_;
  const std::byte* commons_;
  std::uint64_t context_ = 0;  // of the last header read whole
  std::uint64_t cells_ = 0;    // cells read
  std::uint64_t area_ = 0;     // area read, gaps included
  std::uint64_t told_cells_ = 0, told_area_ = 0;
  std::uint64_t left_ = 0;  // payload still to come of the frame in hand
  std::byte* direct_ = nullptr;
  bool discarded_ = false;
  std::string fault_;
};

}  // namespace hccomm::transport::shm
