// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes what a link does with the first bytes of a frame: the header check, and the decoding of a
// peer's error report. Found would be: a length beyond the limit that passes, or a report that
// quotes what it did not receive.
#include "wire/frame.hpp"

#include <cstring>

#include "base/error.hpp"

using namespace hccomm;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  wire::Header header;
  if (size < sizeof header) {
    std::memcpy(static_cast<void*>(&header), data, size == 0 ? 0 : size);
  } else {
    std::memcpy(static_cast<void*>(&header), data, sizeof header);
  }
  if (wire::check(header).ok()) {
    HCCOMM_CHECK(header.length <= wire::kMaxFrame, "a checked frame is within the limit");
    HCCOMM_CHECK(std::strcmp(wire::name(header.type), "?") != 0, "a checked frame has a type");
  }

  const std::size_t skip = size < sizeof header ? size : sizeof header;
  const std::size_t rest = size - skip;
  const Status status = wire::decode_status(reinterpret_cast<const std::byte*>(data + skip), rest);
  HCCOMM_CHECK(!status.ok(), "an error report is never good news");
  HCCOMM_CHECK(status.text().size() <= rest + 256, "a report quotes only what it received");
  return 0;
}
