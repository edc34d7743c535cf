// SPDX-License-Identifier: Apache-2.0
//
// What a fabric hands to a link of what has come for it (progress.cpp, direct.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "transport/ofi/peer.hpp"
#include "wire/frame.hpp"

namespace hccomm::transport::ofi {

// A frame, or a part of one, that is next in order.
struct Arrived {
  Kind kind = Kind::Eager;
  std::byte* data = nullptr;
  std::size_t bytes = 0;  // of the whole slot
  std::uint16_t number = 0;
  std::uint8_t slot = 0;     // of the grant that was written
  std::uint16_t credit = 0;  // what has come in its header (Peer::credit), where `credits`
  bool credits = false, held = false;  // held: it is still to be taken back
  bool in_pieces = false;              // the header says how many
  bool given = false;                  // the peer may write some message in its place
};

// A part of a message that has come straight to its place.
struct Landed {
  enum { Here, Withdrawn, Never } how = Never;
  wire::Header header;  // as if it had come with it
  std::byte* data = nullptr;
  bool on_device = false;
};

}  // namespace hccomm::transport::ofi
