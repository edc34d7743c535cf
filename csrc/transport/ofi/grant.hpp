// SPDX-License-Identifier: Apache-2.0
//
// Leave to write a large message where the receiver wants it: the advert that says so, and what
// either end keeps of it (direct.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/clock.hpp"
#include "transport/ofi/cache.hpp"
#include "wire/frame.hpp"

namespace hccomm::transport::ofi {

// "You may write this message here": what an advert says, in an eager slot.
struct Advert {
  wire::Type type = wire::Type::Data;
  std::uint8_t lanes = 0;
  std::uint16_t slot = 0;
  std::uint32_t index = 0;
  std::uint64_t context = 0, sequence = 0, fingerprint = 0;  // of the message
  std::uint64_t bytes = 0;
  std::uint64_t piece_bytes = 0;  // of each write but the last
  struct {
    std::uint64_t address = 0, key = 0;
  } at[kMaxRails];  // by lane
  std::size_t used_bytes() const { return offsetof(Advert, at) + lanes * sizeof at[0]; }
  bool is_of(const wire::Header& header) const {
    return type == header.type && index == header.index && context == header.context &&
           sequence == header.sequence && fingerprint == header.fingerprint;
  }
};

// The receiver's end of it.
struct Grant {
  enum class State : std::uint8_t { Free, Given, Withdrawn } state = State::Free;
  Advert advert;
  std::byte* data = nullptr;
  std::uint64_t offset = 0;  // of the next byte to come
  Entry* memory = nullptr;
  bool on_device = false;
  std::uint16_t number = 0;  // of the frame that told of it
  Deadline answer_by = Deadline::never();
  bool answered = false;     // reclaimed: the peer has said how many writes it has made ...
  std::uint32_t writes = 0;  // ... in all; when they are here the slot is free
};

// The sender's. Adverts of a slot come in order, the words that revoke them by another way: maybe
// before what they revoke, maybe several before the first of it.
class Claim {
 public:
  void take(const Advert& said, std::uint16_t number) {
    const auto ahead = static_cast<std::int16_t>(revoked_number_ - number);
    const bool late = revoked_ && ahead >= 0;
    revoked_ = late && ahead > 0;
    valid_ = !late;
    taken_ = true;
    number_ = number;
    advert = said;
  }
  void revoke(std::uint16_t number) {
    if (taken_ && number == number_) {
      valid_ = false;
    } else {
      revoked_ = true;
      revoked_number_ = number;
    }
  }
  void used_up() { valid_ = false; }
  bool allows(const wire::Header& header) const { return valid_ && advert.is_of(header); }

  Advert advert;

 private:
  bool valid_ = false, taken_ = false;
  bool revoked_ = false;  // all that come up to this number
  std::uint16_t number_ = 0, revoked_number_ = 0;
};

}  // namespace hccomm::transport::ofi
