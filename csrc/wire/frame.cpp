// SPDX-License-Identifier: Apache-2.0
#include "wire/frame.hpp"

#include <algorithm>
#include <cstring>

#include "base/crc32c.hpp"

namespace hccomm::wire {

static constexpr std::size_t kMaxStatusText = 1024;

// The fixed part of an encoded Status; the text follows.
struct StatusHead {
  std::int32_t code = 0;
  std::int32_t rank = -1;
  std::uint32_t text_bytes = 0;
};
static_assert(sizeof(StatusHead) == 12);

const char* name(Type type) noexcept {
  switch (type) {
    case Type::Data: return "Data";
    case Type::Open: return "Open";
    case Type::Ready: return "Ready";
    case Type::Done: return "Done";
    case Type::Tagged: return "Tagged";
    case Type::TaggedReady: return "TaggedReady";
    case Type::TaggedOpen: return "TaggedOpen";
    case Type::TaggedData: return "TaggedData";
    case Type::TaggedDone: return "TaggedDone";
    case Type::Status: return "Status";
    case Type::Probe: return "Probe";
    case Type::Beat: return "Beat";
    case Type::Bye: return "Bye";
    case Type::Lost: return "Lost";
    case Type::Absent: return "Absent";
    case Type::Written: return "Written";
    case Type::TaggedWritten: return "TaggedWritten";
    case Type::TaggedHere: return "TaggedHere";
    case Type::Stream: return "Stream";
    case Type::Devices: return "Devices";
  }
  return "?";
}

// Odd, so that it maps numbers one to one.
static constexpr std::uint32_t kNumberFactor = 0x9E3779B1;

static std::uint32_t mark_of(std::uint64_t number) {
  return static_cast<std::uint32_t>(number) * kNumberFactor;
}

// 16 bits over everything else in the header.
static std::uint16_t check_of(Header header) {
  header.source = 0;
  const std::uint32_t crc = crc32c(0, &header, sizeof header);
  return static_cast<std::uint16_t>(crc ^ (crc >> 16));
}

void seal(Header& header, std::uint32_t payload_crc, std::uint64_t number) noexcept {
  header.flags |= kSealed;
  header.check = payload_crc ^ mark_of(number);
  header.source = check_of(header);
}

std::uint32_t expected_crc(const Header& header, std::uint64_t number) noexcept {
  return header.check ^ mark_of(number);
}

bool seal_holds(const Header& header) noexcept {
  if ((header.flags & kSealed) == 0) return header.source == 0 && header.check == 0;
  return header.source == check_of(header);
}

static bool carries_user_data(Type type) {
  return type == Type::Data || type == Type::Tagged || type == Type::TaggedData;
}

Status check(const Header& header, std::uint64_t max_length) {
  const auto type = static_cast<unsigned>(header.type);
  if (type < static_cast<unsigned>(Type::Data) || type > static_cast<unsigned>(Type::Devices)) {
    return {Code::Integrity, text("frame: unknown type ", type)};
  }
  if (!seal_holds(header)) {
    return {Code::Integrity, text("frame: the header of a ", name(header.type),
                                  " does not have the check that it carries (", header.source,
                                  "): it was damaged on its way")};
  }
  const std::uint64_t limit =
      carries_user_data(header.type) ? max_length : std::min(max_length, kMaxControl);
  if (header.length > limit) {
    return {Code::Integrity, text("frame: ", name(header.type), " of ", header.length,
                                  " payload bytes exceeds the limit of ", limit)};
  }
  return {};
}

std::string encode_status(const Status& status) {
  const std::size_t text_bytes = std::min(status.text().size(), kMaxStatusText);
  const StatusHead head{static_cast<std::int32_t>(status.code()), status.rank(),
                        static_cast<std::uint32_t>(text_bytes)};
  std::string bytes(sizeof head, '\0');
  std::memcpy(bytes.data(), &head, sizeof head);
  bytes.append(status.text(), 0, text_bytes);
  return bytes;
}

Status decode_status(const std::byte* payload, std::size_t bytes) {
  StatusHead head;
  if (bytes < sizeof head) {
    return {Code::Integrity, text("a peer's error report of ", bytes, " bytes is too short")};
  }
  std::memcpy(&head, payload, sizeof head);
  if (head.text_bytes > kMaxStatusText || head.text_bytes != bytes - sizeof head ||
      head.code < static_cast<std::int32_t>(Code::InvalidArgument) ||
      head.code > static_cast<std::int32_t>(Code::Internal) || head.rank < -1) {
    return {Code::Integrity,
            text("a peer's error report is damaged: code ", head.code, ", rank ", head.rank,
                 ", text of ", head.text_bytes, " in ", bytes, " bytes")};
  }
  std::string reason(reinterpret_cast<const char*>(payload) + sizeof head, head.text_bytes);
  for (char& each : reason) {
    const auto code = static_cast<unsigned char>(each);
    if (code < 0x20 || code == 0x7f) each = ' ';
  }
  return {static_cast<Code>(head.code), std::move(reason), head.rank};
}

}  // namespace hccomm::wire
