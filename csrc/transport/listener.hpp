// SPDX-License-Identifier: Apache-2.0
//
// The answering side of every connection-based transport: accepts, shakes hands apart from everyone
// else, and hands over those who proved to be peers. tcp and shm use it.
#pragma once

#include <functional>
#include <list>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "transport/tls.hpp"
#include "wire/handshake.hpp"

namespace hccomm::transport {

inline constexpr int kMaxPending = 64;            // connections in handshake at once
inline constexpr Seconds kHandshakeSeconds{2.0};  // for one of them, the callback's talk included

// A connection whose other end has proved to be a peer and waits for our verdict.
//
// Owns:   the descriptor, until release().
// Thread: the one that runs the callback.
// Fails:  decide() when the peer is gone.
class Guest {
 public:
  int fd() const noexcept { return fd_.get(); }
  const std::string& uuid() const noexcept { return handshake_.peer_uuid(); }
  const std::string& extra() const noexcept { return handshake_.peer_extra(); }
  Deadline deadline() const noexcept { return deadline_; }  // for whatever else is said on fd()

  // Sends the verdict; after Accepted both sides may go on talking on fd(). At most once; a guest
  // without a verdict is Refused when the callback returns.
  Status decide(wire::Verdict verdict, std::string_view why = {});
  // After Accepted, where the terms say that the job is encrypted: TLS, over which all the rest
  // goes. Nothing where they do not.
  Result<std::unique_ptr<Tls>> encrypt();
  UniqueFd release() noexcept { return std::move(fd_); }

 private:
  friend class Listener;
  // `fd` stays the caller's when this throws.
  Guest(UniqueFd&& fd, wire::Terms terms, Deadline deadline)
      : terms_(terms),
        handshake_(wire::Role::Acceptor, std::move(terms)),
        deadline_(deadline),
        fd_(std::move(fd)) {}

  const wire::Terms terms_;
  wire::Handshake handshake_;
  Deadline deadline_;
  UniqueFd fd_;
  bool decided_ = false;
};

// Owns:   the listening descriptor, the accepting thread and one short-lived thread per connection
//         in handshake, at most kMaxPending; for one more, the one that has been silent for
//         longest is closed (who dials for good tries again).
// Thread: construct, stop and destroy on one; the callback runs on many at once.
// Fails:  never: strangers cost one log line per source and nothing else.
class Listener {
 public:
  using Welcome = std::function<void(Guest&)>;

  // Requires: `socket` listens; usable(terms); `welcome` does not wait for a lock that the caller
  // of stop() holds, and honours Guest::deadline() in what it says on the connection.
  Listener(UniqueFd socket, wire::Terms terms, Welcome welcome);
  ~Listener() { stop(); }

  // No further callback starts and none is running once it returns. Connections in handshake are
  // cut and the address is closed; those handed over live on.
  void stop() noexcept;

 private:
  struct Visit {
    std::thread thread;
    int fd = -1;  // while it may be cut
    std::string source;
    bool spoke = false;    // has sent a byte
    bool leaving = false;  // was cut to make room
    bool over = false;
  };

  void accept_loop() noexcept;
  void accept_one() noexcept;
  bool make_room() noexcept;
  Status await_first_word(Visit& visit, const Guest& guest) noexcept;
  void receive(Visit& visit, UniqueFd socket) noexcept;
  void uncut(Visit& visit) noexcept;
  void reap(bool all) noexcept;
  void report(const std::string& source, std::string_view reason) noexcept;

  UniqueFd socket_;      // until stop()
  const UniqueFd wake_;  // eventfd, readable for ever once stop() was called
  const wire::Terms terms_;
  const Welcome welcome_;
  std::mutex mutex_;  // guards visits_ (not their threads), sources_ and stopping_
  std::list<Visit> visits_;
  std::set<std::string> sources_;  // of strangers that were reported
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace hccomm::transport
