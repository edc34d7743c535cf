// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/ofi_link.hpp"

#include <sched.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/worded.hpp"

namespace hccomm::transport::ofi {

// Sent unasked. Over sockets a copy costs less than to be told of a place.
static constexpr std::size_t kEagerPayload = 64 * 1024, kEagerOverSockets = 128 * 1024;
static constexpr std::size_t kFramePayload = 4 << 20;
static_assert(kEagerOverSockets + sizeof(wire::Header) <= kRingSlotBytes, "one slot holds it");
static constexpr std::size_t kPollFrames = 8;  // slots handed over in one look
static constexpr Seconds kRecall{0.5};
// A spinning waiter looks at the control connection: the clock every so many empty polls, the
// kernel when so much time has passed.
static constexpr unsigned kPollsPerClock = 16;
static constexpr std::chrono::milliseconds kLookEvery{1};

static bool watch(int poller, int fd) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0;
}

OfiLink::OfiLink(std::shared_ptr<Fabric> fabric, Peer& peer, std::string description)
    : fabric_(std::move(fabric)),
      peer_(peer),
      description_(std::move(description)),
      poller_(epoll_create1(EPOLL_CLOEXEC)) {}

Result<std::unique_ptr<Link>> OfiLink::make(std::shared_ptr<Fabric> fabric, Peer& peer, int control,
                                            std::string description) {
  const int bell = fabric->fd();
  std::unique_ptr<OfiLink> link(new OfiLink(std::move(fabric), peer, std::move(description)));
  if (!link->poller_ || !watch(link->poller_.get(), control) || !watch(link->poller_.get(), bell)) {
    return Status::from_errno(errno, "ofi: epoll");
  }
  return std::unique_ptr<Link>(std::move(link));
}

OfiLink::~OfiLink() {
  recall();
  fabric_->leave(peer_);
}

std::size_t OfiLink::eager_bytes() const noexcept {
  return fabric_->over_sockets() ? kEagerOverSockets : kEagerPayload;
}
std::size_t OfiLink::frame_bytes() const noexcept { return kFramePayload; }

bool OfiLink::end(Status why) {
  if (status_.ok()) status_ = worded(why.code(), [&] { return why; });
  fabric_->fail(peer_, std::move(why));
  return false;
}

// Messages that may be advertised. What is sealed is checked frame by frame, and stays in frames.
static bool is_data(const wire::Header& header) {
  const bool data = header.type == wire::Type::Data || header.type == wire::Type::TaggedData;
  return data && (header.flags & wire::kSealed) == 0;
}

// ---- sending ------------------------------------------------------------------------------------

Progress OfiLink::send(Outgoing& frame) noexcept {
  if (!status_.ok()) return Progress::Broken;
  const std::size_t total = sizeof frame.header + frame.header.length;
  Progress outcome;
  if (frame.on_device) {
    if (frame.sent == 0) {
      posted_ = 0;
      grant_ = fabric_->claim(peer_, frame);
    }
    // Without a grant the receiver has taken it back, and wants no more.
    if (grant_ < 0) frame.sent = total;
    outcome = grant_ < 0 ? Progress::Done : send_direct(frame);
  } else if (total <= peer_.eager_bytes && goes_in_pieces(frame)) {
    outcome = send_pieces(frame);
  } else if (total <= peer_.eager_bytes) {
    outcome = fabric_->send_eager(peer_, frame.header, frame.payload);
    if (outcome == Progress::Done) frame.sent = total;
  } else {
    if (frame.sent == 0) {
      posted_ = 0;
      grant_ = is_data(frame.header) ? fabric_->claim(peer_, frame) : -1;
    }
    outcome = grant_ >= 0             ? send_direct(frame)
              : goes_in_pieces(frame) ? send_pieces(frame)
                                      : send_parts(frame);
  }
  return outcome;
}

// Larger than what is injected whole. A sealed frame has its seal where pieces are counted.
bool OfiLink::goes_in_pieces(const Outgoing& frame) const {
  return peer_.in_pieces && sizeof frame.header + frame.header.length > kPieceBytes &&
         frame.header.length <= kPiecesMost && (frame.header.flags & wire::kSealed) == 0;
}

Progress OfiLink::send_pieces(Outgoing& frame) {
  if (frame.sent == 0) posted_ = 0;
  const Progress outcome = fabric_->send_pieces(peer_, frame.header, frame.payload, posted_);
  frame.sent = posted_;
  return outcome;
}

Progress OfiLink::send_direct(Outgoing& frame) {
  while (posted_ < frame.header.length) {
    const Progress outcome =
        fabric_->send_direct(peer_, static_cast<unsigned>(grant_), frame, posted_);
    if (outcome != Progress::Done) return outcome;
    frame.sent = std::max<std::size_t>(1, posted_);
  }
  return sent_all(frame);
}

Progress OfiLink::send_parts(Outgoing& frame) {
  const std::size_t head = sizeof frame.header;
  const std::size_t total = head + frame.header.length;
  while (posted_ < total) {
    const std::size_t bytes = std::min(peer_.slot_bytes, total - posted_);
    auto* const payload = const_cast<std::byte*>(frame.payload);
    const iovec first[2] = {{&frame.header, head}, {payload, bytes - head}};
    const iovec later = {payload + posted_ - head, bytes};
    const Progress outcome = posted_ == 0 ? fabric_->send_part(peer_, first, 2, bytes)
                                          : fabric_->send_part(peer_, &later, 1, bytes);
    if (outcome != Progress::Done) return outcome;
    posted_ += bytes;
    frame.sent = std::min(posted_, total - 1);
  }
  return sent_all(frame);
}

// Done once nothing is read from the payload any more.
Progress OfiLink::sent_all(Outgoing& frame) {
  if (fabric_->borrowed(peer_) != 0) {
    return fabric_->failure(peer_).ok() ? Progress::Again : Progress::Broken;
  }
  frame.sent = sizeof frame.header + frame.header.length;
  return Progress::Done;
}

void OfiLink::recall() noexcept {
  const Deadline deadline = Deadline::after(kRecall);
  while (fabric_->borrowed(peer_) != 0 && fabric_->failure(peer_).ok()) {
    if (deadline.passed()) {
      end(worded(Code::PeerLost, [&]() -> Status {
        return {Code::PeerLost, description_ + ": the peer does not take what was being sent"};
      }));
      return;
    }
    fabric_->listen(peer_);
    sched_yield();
  }
}

// ---- receiving ----------------------------------------------------------------------------------

void OfiLink::look_around() {
  if (++idle_polls_ % kPollsPerClock != 0) return;
  const Clock::time_point now = Clock::now();
  if (now < next_look_) return;
  next_look_ = now + kLookEvery;
  fabric_->listen(peer_);
}

bool OfiLink::pending() noexcept {
  if (!status_.ok() || fabric_->ready(peer_)) return true;
  look_around();
  return false;
}

bool OfiLink::poll(Inbox& inbox, std::size_t budget) noexcept {
  if (!status_.ok()) return false;
  Arrived arrived;
  std::size_t taken = 0;
  // What has been taken may want an answer: that comes before a further look at the queue.
  bool good = true;
  while (good && taken < std::min(budget, kPollFrames) &&
         fabric_->next(peer_, arrived, taken == 0)) {
    good = take(inbox, arrived);
    ++taken;
  }
  if (arrived.held) fabric_->take_back(peer_, arrived);
  if (!good) return false;
  if (taken != 0) return true;
  look_around();
  if (Status why = fabric_->failure(peer_); !why.ok()) return end(std::move(why));
  return true;
}

// The peer has done what no peer of ours does.
template <typename Make>
bool OfiLink::wrong(Make&& what) {
  return end(worded(Code::Integrity, [&]() -> Status {
    return {Code::Integrity, description_ + ": the peer " + what()};
  }));
}

// A part of a message in its place is a frame of its own.
bool OfiLink::take_direct(Inbox& inbox, const Arrived& arrived) {
  const Landed landed = fabric_->landed(peer_, arrived);
  if (landed.how == Landed::Withdrawn) return true;
  if (landed.how == Landed::Never) {
    return wrong([&] { return std::string("wrote where it was not asked to"); });
  }
  if (landed.on_device) {
    inbox.landed(landed.header);
    return true;
  }
  const Placement placement = inbox.begin(landed.header);
  if (placement.direct == nullptr) {
    inbox.consume(landed.data, landed.header.length);
  } else if (placement.direct != landed.data) {
    std::memcpy(placement.direct, landed.data, landed.header.length);
  }
  inbox.end();
  return true;
}

// Slots hold a frame, or its beginning; a ring slot also a further part.
bool OfiLink::take(Inbox& inbox, Arrived& arrived) {
  if (large_.active && arrived.kind == Kind::Ring) {
    part(inbox, arrived.data, std::min<std::size_t>(arrived.bytes, large_.left));
    return true;
  }
  if (arrived.kind == Kind::Advert) {
    fabric_->advertised(peer_, arrived);
    return true;
  }
  if (large_.active) return wrong([] { return std::string("sent a frame within a frame"); });
  if (arrived.kind == Kind::Direct) return take_direct(inbox, arrived);
  wire::Header header;
  std::memcpy(&header, arrived.data, sizeof header);
  if ((header.flags & wire::kSealed) == 0) {  // a credit lies where a sealed frame has its seal
    arrived.credit = std::exchange(header.source, 0);
    arrived.credits = true;
  }
  if (arrived.in_pieces) header.check = 0;
  if (const Status no = worded(Code::Integrity, [&] { return wire::check(header); }); !no.ok()) {
    return wrong([&] { return "sent no valid " + no.text(); });
  }
  const std::size_t room = arrived.bytes - sizeof header;
  const std::byte* const payload = arrived.data + sizeof header;
  if ((arrived.kind == Kind::Eager || arrived.in_pieces) && header.length > room) {
    return wrong([&] { return text("sent a frame of ", header.length, " bytes to fit ", room); });
  }
  if (header.length <= room) {
    if (arrived.given && is_data(header)) fabric_->came(peer_, header);
    inbox.deliver(header, payload);
    return true;
  }
  const Placement placement = inbox.begin(header);
  large_ = {true, false, placement.direct, header.length, header};
  part(inbox, payload, room);
  return true;
}

void OfiLink::part(Inbox& inbox, const std::byte* data, std::size_t bytes) {
  large_.left -= bytes;
  const bool last = large_.left == 0;
  if (large_.direct != nullptr) {
    std::memcpy(large_.direct, data, bytes);
    large_.direct += bytes;
  } else if (!large_.discarded) {
    inbox.consume(data, bytes);
  }
  if (!last) return;
  if (is_data(large_.header)) fabric_->came(peer_, large_.header);
  large_ = {};
  inbox.end();
}

void OfiLink::discard() noexcept {
  if (!large_.active) return;
  large_.direct = nullptr;
  large_.discarded = true;
}

void OfiLink::expect(const wire::Header& which, std::byte* data, std::size_t bytes) noexcept {
  if (status_.ok() && bytes > peer_.eager_bytes) fabric_->expect(peer_, which, data, bytes, false);
}

void OfiLink::expect_on_device(const wire::Header& which, std::byte* data,
                               std::size_t bytes) noexcept {
  if (status_.ok()) fabric_->expect(peer_, which, data, bytes, true);
}

bool OfiLink::awaited(const wire::Header& which, std::uint64_t bytes) noexcept {
  return status_.ok() && fabric_->awaited(peer_, which, bytes);
}

void OfiLink::release(const wire::Header& of) noexcept { fabric_->release(peer_, &of); }

void OfiLink::reclaim(const wire::Header& of) noexcept { fabric_->reclaim(peer_, &of); }

// ---- sleep --------------------------------------------------------------------------------------

bool OfiLink::sleeping(bool asleep) noexcept {
  if (!asleep) {
    fabric_->wake();
    fabric_->listen(peer_);
    return true;
  }
  return status_.ok() && fabric_->sleep(peer_);
}

}  // namespace hccomm::transport::ofi
