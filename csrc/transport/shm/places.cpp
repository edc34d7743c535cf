// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/places.hpp"

#include <algorithm>
#include <atomic>

namespace hccomm::transport::shm {

static constexpr std::uint64_t kLeastPiece = 128 << 10, kMostPiece = 256 << 10;
static constexpr std::size_t kProbes = 4;  // lines in which a place may lie

static constexpr std::uint64_t kOne = 1;               // of the next piece
static constexpr std::uint64_t kSenders = kOne << 24;  // one that the sender has taken
static constexpr std::uint64_t kClosed = kOne << 47;
static constexpr std::uint64_t kLap = kOne << 48;
static constexpr std::uint32_t kCanBeMapped = std::uint32_t{1} << 31;  // of Place::type

static std::uint64_t next_of(std::uint64_t word) { return word % kSenders; }
static std::uint64_t senders_of(std::uint64_t word) { return word % kClosed / kSenders; }

using Word = std::atomic_ref<std::uint64_t>;

// Each field is read and written whole. The sender believes what it has read once it has taken a
// piece: the word was the same all the time, and no line changes but while its word is closed.
template <class T>
static T peek(T& field) {
  return std::atomic_ref<T>(field).load(std::memory_order_relaxed);
}
template <class T>
static void put(T& field, T value) {
  std::atomic_ref<T>(field).store(value, std::memory_order_relaxed);
}

std::uint64_t piece_bytes(std::uint64_t message_bytes) noexcept {
  return std::clamp(message_bytes / 8 & ~std::uint64_t{4095}, kLeastPiece, kMostPiece);
}

static std::uint64_t pieces_of(std::uint64_t bytes) {
  return (bytes + piece_bytes(bytes) - 1) / piece_bytes(bytes);
}

static Piece piece_at(std::uint64_t number, std::uint64_t bytes) {
  const std::uint64_t offset = number * piece_bytes(bytes);
  return {offset, std::min(piece_bytes(bytes), bytes - offset)};
}

static std::size_t line_of(const wire::Header& which) {
  const std::uint64_t mixed = (which.context ^ which.sequence * 0x9E3779B97F4A7C15ull) +
                              which.index * 0xBF58476D1CE4E5B9ull;
  return (mixed * 0x94D049BB133111EBull) >> 58;
}
static_assert(kPlaces == std::size_t{1} << 6);

static bool holds(Place& place, const wire::Header& which) {
  return peek(place.context) == which.context && peek(place.sequence) == which.sequence &&
         peek(place.index) == which.index &&
         (peek(place.type) & ~kCanBeMapped) == static_cast<std::uint32_t>(which.type);
}

// ---- the receiver -----------------------------------------------------------------------------

static bool alike(const wire::Header& one, const wire::Header& other) {
  return one.context == other.context && one.sequence == other.sequence &&
         one.index == other.index && one.type == other.type;
}

int Expected::find(const wire::Header& which) const noexcept {
  for (std::size_t probe = 0; probe < kProbes; ++probe) {
    const std::size_t line = (line_of(which) + probe) % kPlaces;
    if (mine_[line].given && alike(mine_[line].which, which)) return static_cast<int>(line);
  }
  return -1;
}

void Expected::publish(const wire::Header& which, std::byte* data, std::uint64_t bytes,
                       bool shared) noexcept {
  if (find(which) >= 0 || pieces_of(bytes) >= kSenders / 2) return;
  for (std::size_t probe = 0; probe < kProbes; ++probe) {
    const std::size_t line = (line_of(which) + probe) % kPlaces;
    if (mine_[line].given) continue;
    mine_[line] = {which, bytes, true};
    Place& place = table_[line];
    put(place.written, std::uint64_t{0});
    put(place.context, which.context);
    put(place.sequence, which.sequence);
    put(place.fingerprint, which.fingerprint);
    put(place.address, static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data)));
    put(place.bytes, bytes);
    put(place.index, which.index);
    put(place.type, static_cast<std::uint32_t>(which.type) | (shared ? kCanBeMapped : 0));
    const std::uint64_t lap = peek(place.word) / kLap + 1;
    Word(place.word).store(lap * kLap, std::memory_order_release);
    return;
  }
}

Turn Expected::claim(const wire::Header& which, Piece& piece, bool patient) noexcept {
  const int line = find(which);
  if (line < 0) return Turn::Copy;
  const std::uint64_t bytes = mine_[line].bytes, pieces = pieces_of(bytes);
  Place& place = table_[line];
  std::uint64_t word = peek(place.word);
  do {
    if (patient && next_of(word) == 0) return Turn::Wait;
    const bool last = next_of(word) + 1 == pieces;
    if (next_of(word) >= pieces || (last && senders_of(word) != 0)) return Turn::Over;
  } while (!Word(place.word).compare_exchange_weak(word, word + kOne, std::memory_order_acq_rel));
  piece = piece_at(next_of(word), bytes);
  return Turn::Copy;
}

// Closed, so that nobody takes a piece of what is being written into the line for the next message.
void Expected::settle(const wire::Header& which) noexcept {
  const int line = find(which);
  if (line < 0) return;
  Word(table_[line].word).fetch_or(kClosed, std::memory_order_acq_rel);
  mine_[line].given = false;
}

bool Expected::close(const wire::Header* of) noexcept {
  bool quiet = true;
  for (std::size_t line = 0; line < kPlaces; ++line) {
    Mine& mine = mine_[line];
    if (!mine.given) continue;
    wire::Header meant = of != nullptr ? *of : mine.which;
    if (meant.type == wire::Type::Data) meant.index = mine.which.index;  // all of an operation's
    if (!alike(meant, mine.which)) continue;
    Place& place = table_[line];
    const std::uint64_t word = Word(place.word).fetch_or(kClosed, std::memory_order_acq_rel);
    const bool still = Word(place.written).load(std::memory_order_acquire) == senders_of(word);
    mine.given = !still;
    quiet = quiet && still;
  }
  return quiet;
}

// ---- the sender -------------------------------------------------------------------------------

Place* Granted::find(const wire::Header& which, std::uint64_t bytes, std::uint64_t& word) noexcept {
  for (std::size_t probe = 0; probe < kProbes; ++probe) {
    Place& place = table_[(line_of(which) + probe) % kPlaces];
    word = Word(place.word).load(std::memory_order_acquire);
    if (word < kLap || (word & kClosed) != 0) continue;
    if (holds(place, which) && peek(place.fingerprint) == which.fingerprint &&
        peek(place.bytes) == bytes) {
      return &place;
    }
  }
  return nullptr;
}

bool Granted::waits(const wire::Header& which, std::uint64_t bytes) noexcept {
  std::uint64_t word = 0;
  return find(which, bytes, word) != nullptr && next_of(word) == 0;
}

std::uint64_t Granted::shared_at(const wire::Header& which, std::uint64_t bytes) noexcept {
  std::uint64_t word = 0;
  Place* const place = find(which, bytes, word);
  if (place == nullptr || (peek(place->type) & kCanBeMapped) == 0) return 0;
  return peek(place->address);
}

Granted::Task Granted::take(const wire::Header& which, std::uint64_t bytes) noexcept {
  std::uint64_t word = 0;
  Place* place = find(which, bytes, word);
  while (place != nullptr) {
    if (next_of(word) >= pieces_of(bytes)) return {.place = place, .piece = {}, .last = true};
    const std::uint64_t address = peek(place->address);
    const bool shared = (peek(place->type) & kCanBeMapped) != 0;
    const std::uint64_t taken = word + kOne + kSenders;
    if (Word(place->word).compare_exchange_strong(word, taken, std::memory_order_acq_rel)) {
      const Piece piece = piece_at(next_of(word), bytes);
      const bool last = next_of(taken) >= pieces_of(bytes);
      return {place, piece, address + piece.offset, last, shared};
    }
    place = find(which, bytes, word);
  }
  return {};
}

void Granted::written(const Task& task) noexcept {
  Word(task.place->written).fetch_add(1, std::memory_order_acq_rel);
}

}  // namespace hccomm::transport::shm
