// SPDX-License-Identifier: Apache-2.0
//
// What the tcp store's server and clients say to each other: a client sends a Request and gets one
// Reply with the same id. Little-endian, as all supported processors are. A new request ends the
// Get that still waits, so a client that gave up needs to say nothing. Where the ranks have a job
// key a handshake (wire/handshake.hpp) comes first, and TLS after it where the job is encrypted.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "base/text.hpp"

namespace hccomm::rendezvous {

struct Endpoint {
  std::string host;
  int port = 0;
};

inline std::string describe(const Endpoint& at) {
  const bool brackets = at.host.find(':') != std::string::npos;
  return text("tcp://", brackets ? "[" : "", at.host, brackets ? "]" : "", ":", at.port);
}

// The handshake's terms: no job has begun yet, and the server is whoever holds the key.
inline const std::string kStoreJob("hccomm/1 a store");
inline const std::string kStoreUuid("a store's server");
inline constexpr const char* kStoreTransport = "store";

inline constexpr std::uint32_t kStoreMagic = 0x74736368;  // "hcst"
inline constexpr std::uint8_t kStoreVersion = 2;

enum class Ask : std::uint8_t {
  Hello = 1,  // key: my rank; first of all: are you such a store?
  Set,        // key, value
  Get,        // key; answered once it is there; to rank 0 also when one has left without Quit
  Look,       // key; answered at once
  Quit,       // I need nothing more; the server closes
};

// `key_bytes` of key and `value_bytes` of value follow.
struct Request {
  std::uint32_t magic = kStoreMagic;
  std::uint8_t version = kStoreVersion;
  Ask ask = Ask::Hello;
  std::uint16_t key_bytes = 0;
  std::uint32_t id = 0;
  std::uint32_t value_bytes = 0;
};
static_assert(sizeof(Request) == 16 && std::is_trivially_copyable_v<Request>);

enum class Answer : std::uint8_t {
  Done = 1,
  Found,    // the value follows
  Absent,   // to Look
  Lost,     // to Get: the rank that follows has gone, as a process that dies goes
  Refused,  // the value says why, and the server closes
};

// `value_bytes` of value follow.
struct Reply {
  std::uint32_t magic = kStoreMagic;
  std::uint8_t version = kStoreVersion;
  Answer answer = Answer::Done;
  std::uint16_t reserved = 0;
  std::uint32_t id = 0;
  std::uint32_t value_bytes = 0;
};
static_assert(sizeof(Reply) == 16 && std::is_trivially_copyable_v<Reply>);

}  // namespace hccomm::rendezvous
