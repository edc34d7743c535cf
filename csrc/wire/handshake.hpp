// SPDX-License-Identifier: Apache-2.0
//
// The versioned handshake that opens every connection: who are you, which job, and do you hold the
// key. A pure state machine (bytes in, bytes out), so transports share it and a fuzzer can drive
// it. transport/handshake_io runs it over a descriptor.
//
//   initiator                                acceptor
//   Hello{magic, version, uuid, nonce_i, mode, extra} ->
//                  <- Hello{magic, version, uuid, nonce_a, mode, extra}, Proof{HMAC(K_acceptor, transcript)}
//   Proof{HMAC(K_initiator, transcript)} ->
//                  <- Verdict{accepted | duplicate | refused, text}
//
// The transcript is both Hellos, which hold job, transport, mode and both uuids; the role keys come
// from the job key by HKDF-SHA-256 (RFC 5869). With no key on either side the proofs are HMACs under
// a key derived from the job id alone: they reject strays, not attackers. A side that has a key
// refuses one that has none.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace hccomm::wire {

inline constexpr std::size_t kMaxExtra = 512;  // bytes of transport's own data in a Hello

enum class Role : std::uint8_t { Initiator, Acceptor };

// What both sides must agree on. peer_uuid is empty for an acceptor: it learns it.
struct Terms {
  std::string job;        // 16 bytes
  std::string key;        // 32 bytes or empty
  std::string uuid;       // 16 bytes, mine
  std::string peer_uuid;  // 16 bytes, whom I dial
  std::string transport;  // "tcp"
  std::string extra;      // the transport's own, authenticated with the rest; <= kMaxExtra
};

enum class Verdict : std::uint8_t { Accepted = 1, Duplicate = 2, Refused = 3 };

// Owns:   the transcript and the derived keys.
// Thread: one.
// Fails:  feed() gives a Status that says what was wrong with the peer (never with its bytes quoted
//         beyond 8); nothing is allocated for a length before it is checked.
class Handshake {
 public:
  Handshake(Role role, Terms terms);
  Handshake(Handshake&&) noexcept;
  ~Handshake();

  // Bytes to send now; empty when it is the peer's turn.
  std::string output();
  // Bytes received, any cut. Leaves what follows the handshake untouched: `used` says how many.
  Status feed(std::string_view bytes, std::size_t& used);
  // Acceptor only: the peer is proven; say whether it may stay. Then send output() once more.
  void decide(Verdict verdict, std::string_view why = {});

  bool proven() const noexcept;         // the peer has shown the key (acceptor: now decide())
  bool done() const noexcept;           // nothing more to send or to receive
  Verdict verdict() const noexcept;     // once done
  const std::string& peer_uuid() const noexcept;
  const std::string& peer_extra() const noexcept;
  const std::string& verdict_text() const noexcept;

 private:
  struct State;
  State* state_;
};

}  // namespace hccomm::wire
