// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/ring.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace hccomm::transport::shm {

// Kinds of a cell, in the low byte of its control word; the lap, from 1, is in the upper half. The
// bytes between are those of a short header: its type, flags and length.
static constexpr std::uint64_t kInline = 1;  // header and payload, whole
static constexpr std::uint64_t kBlock = 2;   // header; payload or its first part in the area
static constexpr std::uint64_t kPart = 3;    // a further part of the frame begun by a kBlock
static constexpr std::uint64_t kShort = 4;   // short header and payload
static constexpr std::uint64_t kCommonBlock = 5, kCommonPart = 6;  // likewise, in the commons
static constexpr int kTypeShift = 8, kFlagsShift = 16, kLengthShift = 24, kLapShift = 32;

// The writer hears of free cells while a long poll goes on, not only at its end.
static constexpr std::uint64_t kTellEvery = kCells / 8;

static constexpr std::size_t kOwnBytes = 4096;     // what a core may well ask for at once
static constexpr std::size_t kStringBytes = 2048;  // from here on `rep movsb` pays, where it does

static constexpr std::size_t kHeaderAt = 8;
static constexpr std::size_t kPayloadAt = kHeaderAt + sizeof(wire::Header);
static constexpr std::size_t kPieceAt = kPayloadAt;  // where a piece begins in the commons
static constexpr std::size_t kFingerprintAt = 16, kShortPayloadAt = 24;  // behind the sequence

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

bool rings_are_fast() noexcept {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

static Head& head_of(std::byte* memory) { return *reinterpret_cast<Head*>(memory); }

static std::byte* cell_of(std::byte* memory, std::uint64_t number) {
  return memory + kHeadBytes + number % kCells * kCellBytes;
}

static std::byte* area_of(std::byte* memory) { return memory + kHeadBytes + kCells * kCellBytes; }

// Two laps that could be taken for each other are 2^32 laps apart.
static std::uint32_t lap_of(std::uint64_t number) {
  return static_cast<std::uint32_t>(number / kCells + 1);
}

static std::atomic_ref<std::uint64_t> control_of(std::byte* cell) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(cell));
}

std::uint64_t place(std::uint64_t after, std::size_t bytes, std::size_t circle_bytes) {
  const std::uint64_t left = circle_bytes - after % circle_bytes;
  return bytes <= left ? after : after + left;
}

std::uint64_t end_of(std::uint64_t begin, std::size_t bytes) {
  return begin + (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

RingWriter::RingWriter(std::byte* memory, std::size_t area_bytes, Commons* commons)
    : memory_(memory), area_bytes_(area_bytes), commons_(commons) {}

RingWriter::~RingWriter() {
  if (next_held_ == 0) return;
  while (first_held_ != next_held_) commons_->release(held_[first_held_++ % held_.size()].piece);
  commons_->forget(*this);
}

// Forgets the pieces that the reader has been past.
void RingWriter::let_go() noexcept {
  if (!refresh()) return;
  while (first_held_ != next_held_) {
    const Held& held = held_[first_held_ % held_.size()];
    if (held.cell >= cells_read_) return;
    commons_->release(held.piece);
    ++first_held_;
  }
}

bool RingWriter::holds(std::uint64_t piece) const noexcept {
  return first_held_ != next_held_ && held_[first_held_ % held_.size()].piece == piece;
}

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
  const wire::Header& header = frame.header;
  const std::size_t total = sizeof header + header.length;
  const bool brief = header.context == context_ && header.length <= kShortBytes &&
                     (header.address | header.index | header.check | header.source) == 0;
  if (brief || header.length <= kInlineBytes) {
    if (brief ? send_short(frame) : send_inline(frame)) return Progress::Done;
  } else {
    while (frame.sent < total && send_block(frame)) {
    }
    if (frame.sent == total) return Progress::Done;
  }
  return broken_ ? Progress::Broken : Progress::Again;
}

// Asks for lines that are about to be written. The reader has them in its cache, and stores become
// visible in order: without this each line waits for the one before.
static void own(const std::byte* from, std::size_t bytes) {
  for (std::size_t at = 0; at < std::min(bytes, kOwnBytes); at += kLineBytes) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" ::"m"(from[at]));
#else
    __builtin_prefetch(from + at, 1);
#endif
  }
}

// The microcode of AMD's `rep movsb` takes such lines without reading them, and quicker unasked:
// 4 KiB cross in 0.16 us instead of 0.20 on Zen 5, 16 KiB in 0.54 instead of 0.61. On Xeons it has
// to be asked for them, too.
void copy_over(std::byte* at, const std::byte* from, std::size_t bytes) {
#if defined(__x86_64__)
  if (bytes >= kStringBytes && rings_are_fast()) {
    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
    return;
  }
#endif
  own(at, bytes);
  std::memcpy(at, from, bytes);
}

static void put_payload(std::byte* at, const Outgoing& frame) {
  const std::size_t bytes = frame.header.length;
  if (bytes == 8) {  // the common small message, without a call
    std::memcpy(at, frame.payload, 8);
  } else if (bytes != 0) {
    std::memcpy(at, frame.payload, bytes);
  }
}

bool RingWriter::send_short(Outgoing& frame) noexcept {
  if (!room(area_)) return false;
  std::byte* cell = cell_of(memory_, cells_);
  const wire::Header& header = frame.header;
  if (kShortPayloadAt + header.length > kLineBytes) own(cell, kCellBytes);
  std::memcpy(cell + kHeaderAt, &header.sequence, sizeof header.sequence);
  std::memcpy(cell + kFingerprintAt, &header.fingerprint, sizeof header.fingerprint);
  put_payload(cell + kShortPayloadAt, frame);
  publish(cell, static_cast<std::uint64_t>(header.type) << kTypeShift |
                    static_cast<std::uint64_t>(header.flags) << kFlagsShift |
                    static_cast<std::uint64_t>(header.length) << kLengthShift | kShort);
  frame.sent = sizeof header + header.length;
  return true;
}

bool RingWriter::send_inline(Outgoing& frame) noexcept {
  if (!room(area_)) return false;
  std::byte* cell = cell_of(memory_, cells_);
  std::memcpy(cell + kHeaderAt, &frame.header, sizeof frame.header);
  put_payload(cell + kPayloadAt, frame);
  publish(cell, kInline);
  context_ = frame.header.context;
  frame.sent = sizeof frame.header + frame.header.length;
  return true;
}

bool RingWriter::send_block(Outgoing& frame) noexcept {
  const bool first = frame.sent == 0;
  const std::size_t done = first ? 0 : frame.sent - sizeof frame.header;
  const std::size_t bytes = std::min<std::size_t>(frame.header.length - done, kChunkBytes);
  const std::uint64_t begin = place(area_, bytes, area_bytes_);
  const std::uint64_t end = end_of(begin, bytes);
  const bool fans = frame.fan != 0 && commons_ != nullptr && frame.header.length >= kFanBytes;
  if (!room(fans ? area_ : end)) return false;
  const std::uint64_t piece = fans ? in_commons(frame, done, bytes) : Commons::kNowhere;
  const bool common = piece != Commons::kNowhere;
  // Full: for this reader we wait. One that keeps others waiting does not.
  if (fans && !common && (commons_->waits_for(*this) || !room(end))) return false;

  std::byte* cell = cell_of(memory_, cells_);
  own(cell, kLineBytes);
  if (common) {
    const std::uint64_t offset = commons_->offset_of(piece);
    std::memcpy(cell + kPieceAt, &offset, sizeof offset);
  } else {
    copy_over(area_of(memory_) + begin % area_bytes_, frame.payload + done, bytes);
    area_ = end;
  }
  if (first) {
    std::memcpy(cell + kHeaderAt, &frame.header, sizeof frame.header);
    context_ = frame.header.context;
  }
  publish(cell, common ? (first ? kCommonBlock : kCommonPart) : (first ? kBlock : kPart));
  frame.sent = sizeof frame.header + done + bytes;
  return true;
}

// The piece of the commons with that part of the payload, held for the cell that is next.
std::uint64_t RingWriter::in_commons(const Outgoing& frame, std::size_t done,
                                     std::size_t bytes) noexcept {
  if (next_held_ - first_held_ == held_.size()) let_go();
  if (next_held_ - first_held_ == held_.size()) return Commons::kNowhere;
  const Commons::Key key = {frame.header.context, frame.header.sequence, done, frame.fan};
  const std::uint64_t piece = commons_->put(key, frame.payload + done, bytes, *this);
  if (piece != Commons::kNowhere) held_[next_held_++ % held_.size()] = {piece, cells_};
  return piece;
}

void RingWriter::publish(std::byte* cell, std::uint64_t what) noexcept {
  const std::uint64_t lap = lap_of(cells_);
  control_of(cell).store(lap << kLapShift | what, std::memory_order_release);
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

RingReader::RingReader(std::byte* memory, std::size_t area_bytes, const std::byte* commons)
    : memory_(memory), area_bytes_(area_bytes), commons_(commons) {}

std::atomic_ref<std::uint32_t> RingReader::my_sleep() const noexcept {
  return std::atomic_ref(head_of(memory_).asleep);
}

bool RingReader::ready() const noexcept {
  const std::uint64_t control =
      control_of(cell_of(memory_, cells_)).load(std::memory_order_acquire);
  return control >> kLapShift == lap_of(cells_);
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

// A header that was written whole.
wire::Header RingReader::header_in(const std::byte* cell) {
  wire::Header header;
  std::memcpy(&header, cell + kHeaderAt, sizeof header);
  context_ = header.context;
  return header;
}

static wire::Header short_header_in(const std::byte* cell, std::uint64_t control,
                                    std::uint64_t context) {
  wire::Header header;
  header.type = static_cast<wire::Type>(control >> kTypeShift & 0xff);
  header.flags = control >> kFlagsShift & 0xff;
  header.length = control >> kLengthShift & 0xff;
  header.context = context;
  std::memcpy(&header.sequence, cell + kHeaderAt, sizeof header.sequence);
  std::memcpy(&header.fingerprint, cell + kFingerprintAt, sizeof header.fingerprint);
  return header;
}

// Takes one cell; gives the bytes it stood for, 0 when it is bad.
std::size_t RingReader::take(Inbox& inbox) {
  std::byte* cell = cell_of(memory_, cells_);
  const std::uint64_t control = control_of(cell).load(std::memory_order_acquire);
  const std::uint64_t kind = control & 0xff;
  std::size_t bytes = 0;
  if (kind == kShort && left_ == 0) {
    const wire::Header header = short_header_in(cell, control, context_);
    if (header.length > kShortBytes)
      return bad("a short cell claims payload bytes:", header.length);
    inbox.deliver(header, cell + kShortPayloadAt);
    bytes = header.length;
  } else if (kind == kInline && left_ == 0) {
    const wire::Header header = header_in(cell);
    if (header.length > kInlineBytes) return bad("a cell claims payload bytes:", header.length);
    inbox.deliver(header, cell + kPayloadAt);
    bytes = header.length;
  } else if (((kind == kBlock || kind == kCommonBlock) && left_ == 0) ||
             ((kind == kPart || kind == kCommonPart) && left_ != 0)) {
    bytes = take_block(inbox, cell, left_ == 0, kind == kCommonBlock || kind == kCommonPart);
    if (bytes == 0) return 0;
  } else {
    return bad("a cell is out of place, kind", kind);
  }
  ++cells_;
  return sizeof(wire::Header) + bytes;
}

std::size_t RingReader::take_block(Inbox& inbox, const std::byte* cell, bool first, bool common) {
  wire::Header header;
  if (first) {
    header = header_in(cell);
    if (header.length <= kInlineBytes) return bad("a block claims payload bytes:", header.length);
    left_ = header.length;
    discarded_ = false;
  }
  // Parts are cut at a full chunk, so all but the last are multiples of 16 bytes.
  const std::size_t bytes = std::min<std::uint64_t>(left_, kChunkBytes);
  const std::uint64_t begin = place(area_, bytes, area_bytes_);
  const std::byte* piece = area_of(memory_) + begin % area_bytes_;
  if (common) {
    std::uint64_t offset = 0;
    std::memcpy(&offset, cell + kPieceAt, sizeof offset);
    const bool inside = commons_ != nullptr && offset <= kCommonsBytes - bytes;
    if (!inside || offset % kLineBytes != 0)
      return bad("a piece lies outside of the commons:", offset);
    piece = commons_ + offset;
  }
  if (first && bytes == left_) {
    inbox.deliver(header, piece);
    left_ = 0;
  } else {
    if (first) direct_ = inbox.begin(header).direct;
    hand_over(inbox, piece, bytes);
  }
  if (common) return bytes;
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
