// SPDX-License-Identifier: Apache-2.0
//
// The versioned handshake that opens every connection: who are you, which job, and do you hold the
// key. A pure state machine (bytes in, bytes out), so transports share it and a fuzzer can drive
// it. transport/handshake_io runs it over a descriptor; docs/wire.md shows the bytes.
//
//   initiator                                   acceptor
//   Hello{magic, version, mode, transport, uuid, peer uuid, nonce, extra} ->
//                                  <- the same Hello, Proof{HMAC(K_acceptor, job + both Hellos)}
//   Proof{HMAC(K_initiator, job + both Hellos)} ->
//                                  <- Verdict{accepted | duplicate | refused, text}
//
// The acceptor may answer a Hello that it cannot talk to with a Refusal{text} instead. The job id
// is proven, not sent. The role keys come from the job key by HKDF-SHA-256 (RFC 5869); with no key
// on either side they come from the job id alone: that rejects strays, not attackers. A side that
// has a key refuses one that has none. Where libcrypto is absent a job with a key cannot run
// (usable() says so), and one without compares the job id itself, sent in place of the HMAC.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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
  std::string transport;  // "tcp", at most 8 bytes
  std::string extra;      // the transport's own, authenticated with the rest; <= kMaxExtra
  // HCCOMM_ENCRYPT: nothing is to cross between hosts in clear. Both sides must say so; needs a
  // key. What is done about it is the transport's.
  bool encrypts = false;
  bool kernel_tls = false;  // this side's kernel may do the encryption
};

enum class Verdict : std::uint8_t { Accepted = 1, Duplicate = 2, Refused = 3 };

// Why no handshake can be held under these terms (a field of the wrong size; a key but no
// libcrypto), or ok. Transports ask once, when they open.
Status usable(const Terms& terms);

// Owns:   the transcript and the derived keys.
// Thread: one.
// Fails:  feed() gives a Status that says what was wrong with the peer (never with its bytes quoted
//         beyond 8); nothing is allocated for a length before it is checked. A failed acceptor
//         may still have output(): the refusal, worth one attempt to send.
class Handshake {
 public:
  // Requires: usable(terms).
  Handshake(Role role, Terms terms);
  Handshake(Handshake&&) noexcept;
  ~Handshake();

  // Bytes to send now; empty when it is the peer's turn.
  std::string output();
  // How many bytes may be read without taking what follows the handshake; 0: not my turn to read.
  std::size_t wants() const noexcept;
  // Bytes received, any cut. Leaves what follows the handshake untouched: `used` says how many.
  Status feed(std::string_view bytes, std::size_t& used);
  // Acceptor only: the peer is proven; say whether it may stay. Then send output() once more.
  void decide(Verdict verdict, std::string_view why = {});

  // 32 bytes that only the two ends of this very handshake can know. Requires: proven(), a key.
  std::string secret(std::string_view purpose) const;
  bool peer_kernel_tls() const noexcept;

  bool proven() const noexcept;      // the peer has shown the key (acceptor: now decide())
  bool done() const noexcept;        // nothing more to send or to receive
  Verdict verdict() const noexcept;  // once done
  const std::string& peer_uuid() const noexcept;
  const std::string& peer_extra() const noexcept;
  const std::string& verdict_text() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What an acceptor that holds no handshake at all answers to one that was begun, and how it knows.
std::string refusal(std::string_view why);
bool begins_handshake(std::string_view bytes) noexcept;  // its first 4 bytes, or fewer

}  // namespace hccomm::wire
