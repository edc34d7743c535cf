// SPDX-License-Identifier: Apache-2.0
//
// The one frame header. Every message between two ranks is a Header and `length` bytes of payload,
// on every transport; docs/wire.md describes it byte by byte. Little-endian, as all supported
// processors are. No sockets here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "base/error.hpp"

namespace hccomm::wire {

inline constexpr std::uint16_t kVersionMajor = 1;  // equal majors talk
// 1.1: frames may be sealed; 1.2: connections may be encrypted; 1.3: Written, where memory is
// shared; 1.4: TaggedHere and Stream, likewise; 1.5: Devices, where devices share theirs; 1.6: a
// Beat answers a Bye; 1.7: a Ready may grow
inline constexpr std::uint16_t kVersionMinor = 7;

enum class Type : std::uint8_t {
  Data = 1,       // a message of a collective: whole (eager), or a part of an opened one
  Open,           // collective: "I have started (context, sequence); send me what is large"
  Ready,          // "my message (context, sequence, index) lies at `address`, pull it" (pull links)
  Done,           // "I have pulled (context, sequence, index)"
  Tagged,         // point-to-point message, whole
  TaggedReady,    // point-to-point: announces a large message; `address` for pull links
  TaggedOpen,     // point-to-point: "send me the announced message `index`"
  TaggedData,     // point-to-point: a part of an opened message
  TaggedDone,     // point-to-point: "I have pulled message `index`"
  Status,         // (context, sequence) failed on the sender: payload is an encoded Status
  Probe,          // "I wait for you in (context, sequence) with this fingerprint"
  Beat,           // keep-alive, no payload; with a context: "I have taken your Bye to it"
  Bye,            // orderly close: no frame follows
  Lost,           // a rank of the job is lost: payload names it
  Absent,         // answers a Probe: the payload lists the ranks (u32) that have not called
  Written,        // "I have written `address` bytes of (context, sequence, index) to their place"
  TaggedWritten,  // point-to-point: likewise of message `index`
  TaggedHere,     // point-to-point: "the next `fingerprint` bytes of `index` lie at `address`"
  Stream,         // "send (context, sequence, index) in frames": offered, or `address` 1: not yet
  Devices,        // what memory of devices the sender can open: payload, for links that pull
};

// 48 bytes: one frame with up to 16 bytes of payload fits a cache line.
struct Header {
  Type type = Type::Beat;
  std::uint8_t flags = 0;
  std::uint16_t source = 0;    // the seal of this header (see seal()), else 0
  std::uint32_t index = 0;     // the how-manieth message from sender to receiver in this operation
  std::uint64_t context = 0;   // the group: same 64-bit id on all its ranks
  std::uint64_t sequence = 0;  // the operation within the group; the tag for Tagged*
  std::uint32_t length = 0;    // payload bytes that follow in this frame
  std::uint32_t check = 0;     // sealed: of the payload and of the frame's number on the link
  std::uint64_t fingerprint = 0;  // what the sender called (collectives), or total bytes (Tagged*)
  // Ready: sender's address; Data: byte offset of this part; Beat: for how many milliseconds the
  // sender has heard nothing
  std::uint64_t address = 0;
};
static_assert(sizeof(Header) == 48 && std::is_trivially_copyable_v<Header>);

inline constexpr std::uint64_t kMaxFrame = std::uint64_t{1} << 30;  // payload bytes of one frame
inline constexpr std::uint64_t kMaxControl = 64 * 1024;  // of one that is not Data or Tagged*

inline constexpr std::uint8_t kSealed = 0x80;  // of Header::flags
inline constexpr std::uint8_t kShared = 0x40;  // likewise: what lies at `address` can be mapped
// Likewise: it lies on a device, at that offset of the memory that the payload names.
inline constexpr std::uint8_t kOnDevice = 0x20;
// Of Ready: the bytes come there piece by piece; the first says where, the others how many are
// there.
inline constexpr std::uint8_t kGrowing = 0x10;

// HCCOMM_INTEGRITY: marks the header and lets it vouch for itself and for what follows.
// `payload_crc` is the CRC-32C of the payload, `number` how many frames have gone before on this
// link: so a frame that is lost, repeated or overtaken is noticed at the next one. Thread: any.
void seal(Header& header, std::uint32_t payload_crc, std::uint64_t number) noexcept;
// The CRC that the payload of a sealed frame must have, if it is frame `number` of its link.
std::uint32_t expected_crc(const Header& header, std::uint64_t number) noexcept;
// Whether the header is as seal() left it; true for one that is not sealed and says so.
bool seal_holds(const Header& header) noexcept;

const char* name(Type type) noexcept;  // "Data"; "?" for what is none

// Whether a received header may be acted on: a known type, its seal whole, a payload of at
// most `max_length` (kMaxControl for types that carry no user data). Code::Integrity names what is
// wrong. Requires: called before any field of a header from outside is used.
Status check(const Header& header, std::uint64_t max_length = kMaxFrame);

// The payload of a Status frame. Decoding accepts any bytes: damaged ones give Code::Integrity,
// and the text is cut and stripped of control characters, as it goes to logs.
std::string encode_status(const Status& status);
Status decode_status(const std::byte* payload, std::size_t bytes);

}  // namespace hccomm::wire
