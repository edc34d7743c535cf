// SPDX-License-Identifier: Apache-2.0
//
// What goes to several peers is stored once, in memory that all of them map, and each ring only
// says where. A broadcast to three readers then costs one copy in and three out, not three and
// three.
//
// Pieces lie one after the other in a circle and leave it in the order in which they came. The room
// of a piece is used again when all rings that point to it have been read past it, and not before
// it is needed: until then the next ring finds the piece there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "transport/shm/segment.hpp"

namespace hccomm::transport::shm {

inline constexpr std::size_t kCommonsBytes = std::size_t{1} << 21;
inline constexpr std::size_t kFanBytes = 8 * 1024;  // smaller ones are copied to each ring

// Owns:   the memory, and its descriptor for peers to come.
// Thread: make() any; the rest one at a time, under the lock of the engine whose links share it.
// Fails:  put() gives kNowhere.
class Commons {
 public:
  // Which bytes: those at `offset` of the message that `fan` numbers within the operation.
  struct Key {
    std::uint64_t context = 0, sequence = 0, offset = 0;
    std::uint32_t fan = 0;
    friend bool operator==(const Key&, const Key&) = default;
  };
  // Who points to pieces: lets go of those that its reader is done with.
  class Ring {
   public:
    virtual void let_go() noexcept = 0;
    virtual bool holds(std::uint64_t piece) const noexcept = 0;

   protected:
    ~Ring() = default;
  };
  static constexpr std::uint64_t kNowhere = ~std::uint64_t{0};
  static constexpr std::size_t kPieces = 256;

  static Result<std::shared_ptr<Commons>> make();
  Commons(Segment memory, UniqueFd descriptor)
      : memory_(std::move(memory)), descriptor_(std::move(descriptor)) {}

  // The piece with those bytes: the one that is there already, or a new copy; `ring` holds it from
  // now on. kNowhere: there is no room.
  std::uint64_t put(const Key& key, const std::byte* data, std::size_t bytes, Ring& ring) noexcept;
  std::uint64_t offset_of(std::uint64_t piece) const noexcept {
    return at(piece).begin % kCommonsBytes;
  }
  void release(std::uint64_t piece) noexcept { --at(piece).holders; }
  // Whether it is that ring's reader that keeps new pieces out.
  bool waits_for(const Ring& ring) const noexcept { return first_ != next_ && ring.holds(first_); }
  void forget(const Ring& ring) noexcept { std::erase(rings_, &ring); }

  const UniqueFd& descriptor() const noexcept { return descriptor_; }

 private:
  struct Piece {
    Key key;
    std::uint64_t begin = 0, end = 0;  // gaps of the circle's end included, like the ring's area
    std::size_t bytes = 0;
    std::uint32_t holders = 0;
  };
  Piece& at(std::uint64_t piece) noexcept { return pieces_[piece % kPieces]; }
  const Piece& at(std::uint64_t piece) const noexcept { return pieces_[piece % kPieces]; }
  bool room(std::uint64_t end) noexcept;
  std::uint64_t find(const Key& key, std::size_t bytes) const noexcept;

  Segment memory_;
  UniqueFd descriptor_;
  std::array<Piece, kPieces> pieces_;
  std::uint64_t first_ = 0, next_ = 0;  // pieces
  std::uint64_t begin_ = 0, end_ = 0;   // of the circle's part in use
  std::vector<Ring*> rings_;            // that hold or held pieces
};

}  // namespace hccomm::transport::shm
