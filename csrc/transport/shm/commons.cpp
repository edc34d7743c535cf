// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/commons.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "transport/shm/ring.hpp"

namespace hccomm::transport::shm {

Result<std::shared_ptr<Commons>> Commons::make() {
  UniqueFd descriptor;
  auto memory = Segment::make(kCommonsBytes, descriptor);
  if (!memory) return memory.status();
  return std::make_shared<Commons>(std::move(memory).value(), std::move(descriptor));
}

// From the newest: the rings of one call follow each other closely.
std::uint64_t Commons::find(const Key& key, std::size_t bytes) const noexcept {
  for (std::uint64_t piece = next_; piece != first_; --piece) {
    const Piece& each = at(piece - 1);
    if (each.key == key) return each.bytes == bytes ? piece - 1 : kNowhere;
  }
  return kNowhere;
}

// Whether one more piece, and the circle up to `end`, are free.
bool Commons::room(std::uint64_t end) noexcept {
  while (next_ - first_ == kPieces || end - begin_ > kCommonsBytes) {
    if (first_ == next_ || at(first_).holders != 0) return false;
    begin_ = at(first_++).end;
  }
  return true;
}

std::uint64_t Commons::put(const Key& key, const std::byte* data, std::size_t bytes,
                           Ring& ring) noexcept try {
  std::uint64_t piece = find(key, bytes);
  if (piece == kNowhere) {
    const std::uint64_t begin = place(end_, bytes, kCommonsBytes);
    const std::uint64_t end = end_of(begin, bytes);
    if (!room(end)) {
      for (Ring* each : rings_) each->let_go();
      if (!room(end)) return kNowhere;
    }
    piece = next_;
    at(piece) = {key, begin, end, bytes, 0};
    copy_over(memory_.data() + begin % kCommonsBytes, data, bytes);
    end_ = end;
    ++next_;
  }
  if (std::ranges::find(rings_, &ring) == rings_.end()) rings_.push_back(&ring);
  ++at(piece).holders;
  return piece;
} catch (const std::bad_alloc&) {
  return kNowhere;
}

}  // namespace hccomm::transport::shm
