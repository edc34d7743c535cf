// SPDX-License-Identifier: Apache-2.0
#include "transport/stream_link.hpp"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/worded.hpp"

namespace hccomm::transport {

using wire::Header;

static constexpr std::size_t kEagerBytes = 64 * 1024;
static constexpr std::size_t kFrameBytes = 512 * 1024;
static constexpr std::size_t kBufferBytes = 256 * 1024;  // a good part of the second level cache
static constexpr std::size_t kPageBytes = 4096;
static constexpr std::size_t kAlignment = 16;  // of payloads that the inbox gets to see
// Room for what follows a payload that is received in place: the next header, in the same call, and
// little more, as the rest of a large frame would have to be copied out of the buffer.
static constexpr std::size_t kTailBytes = 1024;

StreamLink::StreamLink(ByteStream stream, std::string description)
    : stream_(std::move(stream)), description_(std::move(description)) {
  if (stream_.encrypted()) description_ += ", encrypted";
  const int flags = fcntl(fd(), F_GETFL);
  if (flags < 0 || fcntl(fd(), F_SETFL, flags | O_NONBLOCK) < 0) {
    throw Error(Status::from_errno(errno, description_ + ": cannot be made non-blocking"));
  }
}

std::size_t StreamLink::eager_bytes() const noexcept { return kEagerBytes; }
std::size_t StreamLink::frame_bytes() const noexcept { return kFrameBytes; }

Progress StreamLink::send(Outgoing& frame) noexcept {
  const bool may_tell = status_.code() == Code::Integrity;  // its other direction is sound
  if (cut_ || (ended_ && !may_tell)) return Progress::Broken;
  constexpr std::size_t kHead = sizeof frame.header;
  const std::size_t total = kHead + frame.header.length;
  iovec parts[2];
  for (;;) {
    std::size_t count = 0;
    if (frame.sent < kHead) {
      parts[count++] = {reinterpret_cast<char*>(&frame.header) + frame.sent, kHead - frame.sent};
    }
    const std::size_t done = frame.sent < kHead ? 0 : frame.sent - kHead;
    if (frame.header.length != 0) {
      parts[count++] = {const_cast<std::byte*>(frame.payload) + done, frame.header.length - done};
    }
    const ssize_t taken = stream_.send(parts, count);
    const int err = errno;
    if (taken < 0 && err == EINTR) continue;
    if (taken < 0 && (err == EAGAIN || err == EWOULDBLOCK || err == ENOBUFS)) {
      blocked_ = true;
      return Progress::Again;
    }
    if (taken < 0) {
      cut_ = true;
      if (status_.ok()) status_ = failed(err, ": send");
      return Progress::Broken;
    }
    frame.sent += static_cast<std::size_t>(taken);
    blocked_ = frame.sent != total || stream_.unsent();
    return blocked_ ? Progress::Again : Progress::Done;
  }
}

bool StreamLink::pending() noexcept {
  if (fresh_ || ended_ || cut_) return true;
  fresh_ = receive();
  return fresh_;
}

bool StreamLink::sleeping(bool asleep) noexcept {
  // What is still in the socket keeps fd() readable; what TLS has read off it does not.
  return !asleep || !(fresh_ || ended_ || cut_ || stream_.holds());
}

bool StreamLink::poll(Inbox& inbox, std::size_t budget) noexcept {
  bool came = std::exchange(fresh_, false) || receive();
  for (std::size_t taken = 0; came; came = receive()) {
    while (large_.active ? next_part(inbox) : next_frame(inbox)) {
    }
    compact();
    if (ended_) return false;
    taken += received_;
    if (drained_ || taken >= budget) return true;
  }
  return !ended_ && !cut_;
}

// One receive, into the place where the bytes belong. True when it brought something: bytes, or
// the end.
bool StreamLink::receive() noexcept {
  if (ended_) return false;
  if (buffer_ == nullptr) {
    buffer_.reset(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, kBufferBytes)));
    if (buffer_ == nullptr) return end(told(Code::System, ": no memory to receive"));
  }
  const bool placed = large_.active && large_.direct != nullptr;
  const std::size_t room = kBufferBytes - end_;
  const iovec parts[2] = {{large_.direct, large_.left},
                          {buffer_.get() + end_, placed ? std::min(room, kTailBytes) : room}};
  for (;;) {
    const ssize_t got = placed ? stream_.receive(parts, 2) : stream_.receive(parts + 1, 1);
    if (const int err = errno; got < 0) {
      if (err == EINTR) continue;
      if (err == EAGAIN || err == EWOULDBLOCK) return false;
      return end(failed(err, ": receive"));
    }
    if (got == 0) return end(told(Code::PeerLost, ": the peer closed the connection"));
    received_ = static_cast<std::size_t>(got);
    break;
  }
  const std::size_t in_place = placed ? std::min<std::size_t>(received_, large_.left) : 0;
  if (placed) large_.direct += in_place;
  large_.left -= in_place;
  end_ += received_ - in_place;
  drained_ = received_ < (placed ? parts[0].iov_len + parts[1].iov_len : room) && !stream_.holds();
  return true;
}

Status StreamLink::failed(int err, const char* doing) const noexcept {
  return worded(Code::PeerLost, [&] { return stream_.failed(err, description_ + doing); });
}

Status StreamLink::told(Code code, const char* what) const noexcept {
  return worded(code, [&]() -> Status { return {code, description_ + what}; });
}

bool StreamLink::end(Status why) noexcept {
  ended_ = true;
  received_ = 0;
  if (status_.ok()) status_ = std::move(why);
  return true;
}

bool StreamLink::next_frame(Inbox& inbox) noexcept {
  Header header;
  const std::size_t have = end_ - begin_;
  if (have < sizeof header) return false;
  std::memcpy(&header, buffer_.get() + begin_, sizeof header);
  const Status wrong = worded(Code::Integrity, [&] { return wire::check(header); });
  if (!wrong.ok()) {
    end(worded(wrong.code(), [&]() -> Status {
      return {wrong.code(), description_ + ": the peer sent no valid " + wrong.text()};
    }));
    return false;
  }
  const std::size_t total = sizeof header + header.length;
  if (header.length <= kEagerBytes && have < total) return false;

  // What lies before begin_ is done with: an unaligned frame moves back over it.
  const std::size_t shift = begin_ % kAlignment;
  std::byte* const frame = buffer_.get() + begin_ - shift;
  if (shift != 0) std::memmove(frame, frame + shift, std::min(have, total));
  if (have >= total) {
    begin_ += total;
    inbox.deliver(header, frame + sizeof header);
    return true;
  }
  begin_ += sizeof header - shift;
  end_ -= shift;
  const Placement placement = inbox.begin(header);
  large_ = {true, false, placement.direct, header.length};
  return true;
}

bool StreamLink::next_part(Inbox& inbox) noexcept {
  if (large_.left == 0) {
    large_ = {};
    inbox.end();
    return true;
  }
  std::size_t bytes = std::min<std::size_t>(end_ - begin_, large_.left);
  const bool pieces = large_.direct == nullptr && !large_.discarded;
  if (pieces && bytes != large_.left) bytes -= bytes % kAlignment;
  if (bytes == 0) return false;
  const std::byte* const piece = buffer_.get() + begin_;
  begin_ += bytes;
  large_.left -= bytes;
  if (large_.direct != nullptr) {
    std::memcpy(large_.direct, piece, bytes);
    large_.direct += bytes;
  } else if (pieces) {
    inbox.consume(piece, bytes);
  }
  return true;
}

// Makes room: what is left is the beginning of a frame, or less than a piece of a large one.
void StreamLink::compact() noexcept {
  if (begin_ == 0) return;
  if (begin_ != end_) std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
}

void StreamLink::discard() noexcept {
  if (!large_.active) return;
  large_.direct = nullptr;
  large_.discarded = true;
}

}  // namespace hccomm::transport
