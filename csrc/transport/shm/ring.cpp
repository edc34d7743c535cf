// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/ring.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace hccomm::transport::shm {

// Kinds of a cell, in the low byte of its control word; the lap, from 1, is above.
static constexpr std::uint64_t kInline = 1;  // header and payload, whole
static constexpr std::uint64_t kBlock = 2;   // header; payload or its first part in the area
static constexpr std::uint64_t kPart = 3;    // a further part of the frame begun by a kBlock

// The writer hears of free cells while a long poll goes on, not only at its end.
static constexpr std::uint64_t kTellEvery = kCells / 8;

static constexpr std::size_t kHeaderAt = 8;
static constexpr std::size_t kPayloadAt = kHeaderAt + sizeof(wire::Header);

bool valid_area(std::uint64_t area_bytes) {
  return std::has_single_bit(area_bytes) && area_bytes >= kMinAreaBytes &&
         area_bytes <= kMaxAreaBytes;
}

std::size_t area_for(std::uint64_t wanted_bytes) {
  return std::bit_ceil(std::clamp<std::uint64_t>(wanted_bytes, kMinAreaBytes, kMaxAreaBytes));
}

void full_fence() noexcept {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"  // clang's name of the same
#pragma GCC diagnostic ignored "-Wtsan"  // it orders atomics only, so nothing is hidden from tsan
  std::atomic_thread_fence(std::memory_order_seq_cst);
#pragma GCC diagnostic pop
}

static Head& head_of(std::byte* memory) { return *reinterpret_cast<Head*>(memory); }

static std::byte* cell_of(std::byte* memory, std::uint64_t number) {
  return memory + kHeadBytes + number % kCells * kCellBytes;
}

static std::byte* area_of(std::byte* memory) { return memory + kHeadBytes + kCells * kCellBytes; }

static std::uint64_t lap_of(std::uint64_t number) { return number / kCells + 1; }

static std::atomic_ref<std::uint64_t> control_of(std::byte* cell) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(cell));
}

// Where the next payload begins: after the last one, or at the start when it would be cut in two.
static std::uint64_t place(std::uint64_t after, std::size_t bytes, std::size_t area_bytes) {
  const std::uint64_t left = area_bytes - after % area_bytes;
  return bytes <= left ? after : after + left;
}

static std::uint64_t end_of(std::uint64_t begin, std::size_t bytes) {
  return begin + (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

RingWriter::RingWriter(std::byte* memory, std::size_t area_bytes)
    : memory_(memory), area_bytes_(area_bytes) {}

void RingWriter::withdraw(std::uint64_t key) noexcept {
  Head& head = head_of(memory_);
  const std::atomic_ref<std::uint64_t> count(head.withdrawn);
  const std::uint64_t number = count.load(std::memory_order_relaxed);
  std::atomic_ref(head.keys[number % kWithdrawnKept]).store(key, std::memory_order_relaxed);
  count.store(number + 1, std::memory_order_release);
  full_fence();
}

bool RingReader::withdrawn(std::uint64_t key) const noexcept {
  full_fence();  // what was pulled was read before this
  Head& head = head_of(memory_);
  const std::uint64_t count =
      std::atomic_ref<std::uint64_t>(head.withdrawn).load(std::memory_order_acquire);
  for (std::uint64_t each = 0; each < std::min<std::uint64_t>(count, kWithdrawnKept); ++each) {
    if (std::atomic_ref(head.keys[each]).load(std::memory_order_relaxed) == key) return true;
  }
  return false;
}

std::atomic_ref<std::uint32_t> RingWriter::reader_sleep() const noexcept {
  return std::atomic_ref(head_of(memory_).asleep);
}

Progress RingWriter::send(Outgoing& frame) noexcept {
  const std::size_t total = sizeof frame.header + frame.header.length;
  if (frame.header.length <= kInlineBytes) {
    if (send_inline(frame)) return Progress::Done;
  } else {
    while (frame.sent < total && send_block(frame)) {
    }
    if (frame.sent == total) return Progress::Done;
  }
  return broken_ ? Progress::Broken : Progress::Again;
}

bool RingWriter::send_inline(Outgoing& frame) noexcept {
  if (!room(area_)) return false;
  std::byte* cell = cell_of(memory_, cells_);
  const std::size_t bytes = frame.header.length;
  std::memcpy(cell + kHeaderAt, &frame.header, sizeof frame.header);
  if (bytes == 8) {  // the common small message, without a call
    std::memcpy(cell + kPayloadAt, frame.payload, 8);
  } else if (bytes != 0) {
    std::memcpy(cell + kPayloadAt, frame.payload, bytes);
  }
  publish(cell, kInline);
  frame.sent = sizeof frame.header + bytes;
  return true;
}

bool RingWriter::send_block(Outgoing& frame) noexcept {
  const bool first = frame.sent == 0;
  const std::size_t done = first ? 0 : frame.sent - sizeof frame.header;
  const std::size_t bytes = std::min<std::size_t>(frame.header.length - done, kChunkBytes);
  const std::uint64_t begin = place(area_, bytes, area_bytes_);
  const std::uint64_t end = end_of(begin, bytes);
  if (!room(end)) return false;

  std::memcpy(area_of(memory_) + begin % area_bytes_, frame.payload + done, bytes);
  std::byte* cell = cell_of(memory_, cells_);
  if (first) std::memcpy(cell + kHeaderAt, &frame.header, sizeof frame.header);
  publish(cell, first ? kBlock : kPart);
  area_ = end;
  frame.sent = sizeof frame.header + done + bytes;
  return true;
}

void RingWriter::publish(std::byte* cell, std::uint64_t kind) noexcept {
  control_of(cell).store(lap_of(cells_) << 8 | kind, std::memory_order_release);
  ++cells_;
}

// Whether one more cell, and the area up to `area_end`, are free.
bool RingWriter::room(std::uint64_t area_end) noexcept {
  const auto fits = [&] {
    return cells_ - cells_read_ < kCells && area_end - area_read_ <= area_bytes_;
  };
  return fits() || (refresh() && fits());
}

bool RingWriter::refresh() noexcept {
  Head& head = head_of(memory_);
  const std::uint64_t cells = std::atomic_ref(head.cells_read).load(std::memory_order_acquire);
  const std::uint64_t area = std::atomic_ref(head.bytes_read).load(std::memory_order_acquire);
  // The reader's memory is its own: what it says must lie between its last word and our position.
  if (cells < cells_read_ || cells > cells_ || area < area_read_ || area > area_) broken_ = true;
  if (broken_) return false;
  cells_read_ = cells;
  area_read_ = area;
  return true;
}

bool RingWriter::moved() const noexcept {
  Head& head = head_of(memory_);
  return std::atomic_ref(head.cells_read).load(std::memory_order_acquire) != cells_read_ ||
         std::atomic_ref(head.bytes_read).load(std::memory_order_acquire) != area_read_;
}

RingReader::RingReader(std::byte* memory, std::size_t area_bytes)
    : memory_(memory), area_bytes_(area_bytes) {}

std::atomic_ref<std::uint32_t> RingReader::my_sleep() const noexcept {
  return std::atomic_ref(head_of(memory_).asleep);
}

bool RingReader::ready() const noexcept {
  const std::uint64_t control =
      control_of(cell_of(memory_, cells_)).load(std::memory_order_acquire);
  return control >> 8 == lap_of(cells_);
}

RingReader::Taken RingReader::poll(Inbox& inbox, std::size_t budget) noexcept {
  std::size_t taken = 0;
  const std::uint64_t before = cells_;
  while (taken < budget && ready()) {
    const std::size_t bytes = take(inbox);
    if (bytes == 0) return Taken::Bad;
    taken += bytes;
    if (cells_ % kTellEvery == 0) tell_cells();
  }
  if (cells_ == before) return Taken::Nothing;
  tell_cells();
  return Taken::Some;
}

void RingReader::tell_cells() noexcept {
  std::atomic_ref(head_of(memory_).cells_read).store(cells_, std::memory_order_release);
}

// Takes one cell; gives the bytes it stood for, 0 when it is bad.
std::size_t RingReader::take(Inbox& inbox) {
  std::byte* cell = cell_of(memory_, cells_);
  const std::uint64_t kind = control_of(cell).load(std::memory_order_acquire) & 0xff;
  std::size_t bytes = 0;
  if (kind == kInline && left_ == 0) {
    wire::Header header;
    std::memcpy(&header, cell + kHeaderAt, sizeof header);
    if (header.length > kInlineBytes) return bad("a cell claims payload bytes:", header.length);
    inbox.deliver(header, cell + kPayloadAt);
    bytes = header.length;
  } else if ((kind == kBlock && left_ == 0) || (kind == kPart && left_ != 0)) {
    bytes = take_block(inbox, cell, kind == kBlock);
    if (bytes == 0) return 0;
  } else {
    return bad("a cell is out of place, kind", kind);
  }
  ++cells_;
  return sizeof(wire::Header) + bytes;
}

std::size_t RingReader::take_block(Inbox& inbox, const std::byte* cell, bool first) {
  wire::Header header;
  if (first) {
    std::memcpy(&header, cell + kHeaderAt, sizeof header);
    if (header.length <= kInlineBytes) return bad("a block claims payload bytes:", header.length);
    left_ = header.length;
    discarded_ = false;
  }
  // Parts are cut at a full chunk, so all but the last are multiples of 16 bytes.
  const std::size_t bytes = std::min<std::uint64_t>(left_, kChunkBytes);
  const std::uint64_t begin = place(area_, bytes, area_bytes_);
  const std::byte* piece = area_of(memory_) + begin % area_bytes_;
  if (first && bytes == left_) {
    inbox.deliver(header, piece);
    left_ = 0;
  } else {
    if (first) direct_ = inbox.begin(header).direct;
    hand_over(inbox, piece, bytes);
  }
  area_ = end_of(begin, bytes);
  std::atomic_ref(head_of(memory_).bytes_read).store(area_, std::memory_order_release);
  return bytes;
}

void RingReader::hand_over(Inbox& inbox, const std::byte* piece, std::size_t bytes) {
  if (discarded_) {
    // taken out of the ring, no more
  } else if (direct_ != nullptr) {
    std::memcpy(direct_, piece, bytes);
    direct_ += bytes;
  } else {
    inbox.consume(piece, bytes);
  }
  left_ -= bytes;
  if (left_ == 0) inbox.end();
}

std::size_t RingReader::bad(const char* what, std::uint64_t value) {
  fault_ = text(what, " ", value);
  return 0;
}

}  // namespace hccomm::transport::shm
