// SPDX-License-Identifier: Apache-2.0
//
// HCCOMM_INTEGRITY of copies between a device and the host: what a copy has moved is read from the
// device once more, and both must be the same. Two copies that a fault changes alike pass.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/error.hpp"

namespace hccomm::engine {

// What was copied, for people.
struct Hop {
  std::string_view device;  // "cuda:0"
  bool to_host = false;
  std::uint64_t offset = 0;  // in the buffer, bytes
};

// That the host has the bytes which the device had when it was read again.
inline Status proved(const Hop& hop, const std::byte* host, const std::byte* again,
                     std::uint64_t bytes) {
  if (bytes == 0 || std::memcmp(host, again, bytes) == 0) return {};
  const auto wrong =
      static_cast<std::uint64_t>(std::mismatch(host, host + bytes, again).first - host);
  const std::string_view there = "the host";
  return {
      Code::Integrity,
      text("copy from ", hop.to_host ? hop.device : there, " to ", hop.to_host ? there : hop.device,
           ", bytes ", hop.offset, "..", hop.offset + bytes - 1,
           ": read again, they are not the same from byte ", hop.offset + wrong,
           " on (HCCOMM_INTEGRITY); look at the device, its memory and the bus between")};
}

}  // namespace hccomm::engine
