// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/shm_link.hpp"

#include <sched.h>

#include <cstring>
#include <utility>

#include "base/worded.hpp"
#include "transport/shm/peer_memory.hpp"

namespace hccomm::transport::shm {

// Up to here two copies through the ring, one by each core, beat the round trip that asks for a
// single one by the kernel: that costs 1 us at its beginning, and more for each page. How far
// depends on how fast lines go from core to core: seen on Zen 5, and on Xeons of Sapphire Rapids.
static constexpr std::size_t kEagerBytes = 16 * 1024, kEagerBytesOfZen = 64 * 1024;
// Where there are no such reads, a larger message may still go unasked.
static constexpr std::size_t kEagerRingBytes = 64 * 1024;
static constexpr std::size_t kFrameBytes = 256 * 1024;
// A spinning waiter looks whether the peer still lives: the clock every so many empty polls, the
// kernel when so much time has passed.
static constexpr unsigned kPollsPerClock = 16;
static constexpr std::chrono::milliseconds kListenEvery{1};
// What the peer shares no longer is let go of after so long: to look costs 2 us.
static constexpr std::chrono::seconds kTidyEvery{1};
// A piece that the peer writes takes 0.1 ms, several where it has to wait for a core, 100 where its
// group's share of the cores is used up. Who takes longer was stopped: nearly always before it
// began or after it ended, but the one piece (256 KiB at most) may still come when it goes on.
static constexpr Seconds kWriteEnds{0.5};

ShmLink::ShmLink(Parts parts)
    : parts_(std::move(parts)),
      writer_(parts_.mine.data(), parts_.my_area_bytes, parts_.my_commons.get()),
      reader_(parts_.theirs.data(), parts_.their_area_bytes, parts_.their_commons.data()),
      expected_(parts_.mine.data() + kPlacesAt),
      granted_(parts_.theirs.data() + kPlacesAt),
      views_(parts_.bell.peer(), parts_.exports) {}

ShmLink::~ShmLink() {
  if (parts_.mine.size() != 0) take_back(nullptr);
}

std::size_t ShmLink::eager_bytes() const noexcept {
  if (!parts_.pulls) return kEagerRingBytes;
  return rings_are_fast() ? kEagerBytesOfZen : kEagerBytes;
}

// Where a ring is fast a sum, too, comes quicker through it, as the sender's core copies and the
// receiver's reduces, than by a receiver that does both.
bool ShmLink::streams_sums() const noexcept { return rings_are_fast(); }

std::size_t ShmLink::frame_bytes() const noexcept { return kFrameBytes; }

std::string ShmLink::describe() const { return parts_.pulls ? "shm (single copy)" : "shm (ring)"; }

// `why` gives the words.
bool ShmLink::fail(Code code, auto&& why) noexcept {
  if (status_.ok()) {
    status_ = worded(code, [&]() -> Status { return {code, "shm: " + why()}; });
  }
  return false;
}

Progress ShmLink::send(Outgoing& frame) noexcept {
  if (!status_.ok() && status_.code() != Code::Integrity) return Progress::Broken;
  const std::size_t before = frame.sent;
  const Progress progress = writer_.send(frame);
  owes_frames_ |= frame.sent != before;
  blocked_ = progress == Progress::Again;
  if (progress == Progress::Broken) {
    fail(Code::Integrity,
         [this] { return text("process ", parts_.bell.peer(), " has overwritten the ring"); });
  }
  return progress;
}

bool ShmLink::poll(Inbox& inbox, std::size_t budget) noexcept {
  if (!status_.ok()) return false;
  // Gone is read before the ring: what the peer wrote before its end is then in the ring.
  const bool gone = parts_.bell.gone();
  switch (reader_.poll(inbox, budget)) {
    case RingReader::Taken::Some:
      owes_room_ = true;
      // A cheap look, for a peer that waits for room; idle() and flush() look without fail.
      if (peer_waits_for_room()) ring_if_asleep();
      return true;
    case RingReader::Taken::Nothing:
      if (gone) return fail(Code::PeerLost, [this] { return parts_.bell.why(); });
      idle();
      return true;
    case RingReader::Taken::Bad: break;
  }
  return fail(Code::Integrity, [this] {
    return text("the ring of process ", parts_.bell.peer(), " is damaged: ", reader_.fault());
  });
}

bool ShmLink::pending() noexcept {
  if (reader_.ready() || parts_.bell.gone() || !status_.ok()) return true;
  idle();
  return parts_.bell.gone();
}

// Nothing has come: the time for what must not delay a message.
void ShmLink::idle() noexcept {
  if (owes_room_) ring_if_asleep();
  if (++idle_polls_ % kPollsPerClock == 0) listen_now_and_then();
}

// Whether the peer has ended, as of a millisecond ago.
bool ShmLink::listen_now_and_then() noexcept {
  const Clock::time_point now = Clock::now();
  if (now >= next_listen_) {
    next_listen_ = now + kListenEvery;
    parts_.bell.listen();
    tidy_now_and_then(now);
  }
  return parts_.bell.gone();
}

void ShmLink::tidy_now_and_then(Clock::time_point now) noexcept {
  if (now < next_tidy_ || parts_.bell.gone()) return;
  next_tidy_ = now + kTidyEvery;
  views_.tidy();
}

bool ShmLink::peer_waits_for_room() const noexcept {
  return writer_.reader_sleep().load(std::memory_order_relaxed) == kForFramesAndRoom;
}

// To look costs a fence on the way back to the caller.
void ShmLink::flush() noexcept {
  if (owes_frames_ || (owes_room_ && reader_.owes_much())) ring_if_asleep();
}

// The peer stores its sleep, then looks at the ring; we wrote the ring, now look at its sleep. With
// a fence between on both sides at least one of us sees the other.
void ShmLink::ring_if_asleep() noexcept {
  full_fence();
  const auto sleep = writer_.reader_sleep();
  const std::uint32_t found = sleep.load(std::memory_order_relaxed);
  const bool wanted = found != kAwake && (owes_frames_ || found != kForFrames);
  owes_frames_ = owes_room_ = false;
  reader_.told();
  if (wanted && sleep.exchange(kAwake, std::memory_order_acq_rel) != kAwake) parts_.bell.ring();
}

bool ShmLink::sleeping(bool asleep) noexcept {
  if (asleep) return fall_asleep();
  wake_up();
  return true;
}

bool ShmLink::fall_asleep() noexcept {
  if (owes_frames_ || owes_room_) ring_if_asleep();
  asleep_ = true;
  reader_.my_sleep().store(blocked_ ? kForFramesAndRoom : kForFrames, std::memory_order_relaxed);
  full_fence();
  const bool come = reader_.ready() || parts_.bell.gone() || !status_.ok();
  if (!come && !(blocked_ && writer_.moved())) return true;
  wake_up();
  return false;
}

void ShmLink::wake_up() noexcept {
  if (!std::exchange(asleep_, false)) return;
  // Who finds the sleep cleared knows that a byte was sent or will be at once; only then does it
  // cost a system call to take it.
  if (reader_.my_sleep().exchange(kAwake, std::memory_order_acq_rel) == kAwake) ring_due_ = true;
  if (ring_due_) ring_due_ = !parts_.bell.drain();
  parts_.bell.listen();  // it may be the peer's end that woke us
  tidy_now_and_then(Clock::now());
}

void ShmLink::expect(const wire::Header& which, std::byte* data, std::size_t bytes) noexcept {
  if (parts_.pulls && status_.ok()) expected_.publish(which, data, bytes, shares(data, bytes));
}

bool ShmLink::maps(const wire::Header& which, std::uint64_t bytes) noexcept {
  const std::uint64_t address = granted_.shared_at(which, bytes);
  return address != 0 && view(address, bytes) != nullptr;
}

void ShmLink::take_back(const wire::Header* of) noexcept {
  const Deadline deadline = Deadline::after(kWriteEnds);
  while (!expected_.close(of) && !parts_.bell.listen() && !deadline.passed()) sched_yield();
}

Result<Progress> ShmLink::write(const wire::Header& which, const std::byte* data,
                                std::uint64_t bytes, std::uint64_t& wrote) noexcept {
  wrote = 0;
  // The number of a process that has ended may pass to another one.
  if (!status_.ok() || listen_now_and_then()) return Progress::Again;
  const Granted::Task task = granted_.take(which, bytes);
  if (task.piece.bytes != 0) {
    const std::byte* const from = data + task.piece.offset;
    Status written;
    if (const ViewPtr there = task.shared ? view(task.address, task.piece.bytes) : nullptr) {
      std::memcpy(there->at(task.address), from, task.piece.bytes);
    } else {
      written = write_peer(parts_.bell.peer(), from, task.address, task.piece.bytes);
    }
    granted_.written(task);
    if (!written.ok()) return written;
    wrote = task.piece.bytes;
  }
  return task.last ? Progress::Done : Progress::Again;
}

Status ShmLink::pull(std::uint64_t, void* dst, std::uint64_t address, std::size_t bytes) noexcept {
  Status read = read_peer(parts_.bell.peer(), dst, address, bytes);
  // The number may have passed to another process; while ours lives it has not.
  if (read.ok() && parts_.bell.listen()) {
    read = worded(Code::PeerLost, [this]() -> Status {
      return {Code::PeerLost, text("shm: ", parts_.bell.why(), " while its memory was read")};
    });
  }
  return read;
}

}  // namespace hccomm::transport::shm
