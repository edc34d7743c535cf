// SPDX-License-Identifier: Apache-2.0
//
// The serving half of the tcp store: rank 0 keeps the values in memory and answers all ranks from
// one thread. It listens on the one address it is given, so what is meant for a host's inner
// network is not offered on its outer one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "rendezvous/store.hpp"
#include "rendezvous/tcp_protocol.hpp"
#include "transport/byte_stream.hpp"
#include "wire/handshake.hpp"

namespace hccomm::rendezvous {

// Owns:   the listening socket, all connections, the values and the thread.
// Thread: construct, finish and destroy on one.
// Fails:  start() says why the address cannot be had. Strangers, and clients that send what no
//         client sends, are dropped with one log line per source.
class TcpServer {
 public:
  // Port 0 takes a free one; bound() tells which. With a key every client must prove it.
  static Result<std::unique_ptr<TcpServer>> start(const Endpoint& at, const Credentials& with = {});
  ~TcpServer();

  const Endpoint& bound() const noexcept { return bound_; }
  // Admits nobody new, waits until all clients have quit or the deadline, and ends the thread.
  void finish(Deadline deadline) noexcept;

 private:
  using Value = std::shared_ptr<const std::string>;
  // One connection, from either end of which bytes are pending in `in` or `head` and `body`.
  struct Guest {
    transport::ByteStream stream;
    std::unique_ptr<wire::Handshake> shaking;  // until it has proved the key
    bool securing = false;                     // TLS is being agreed
    bool wants_write = false;                  // it can go on when the socket takes bytes
    std::string source;
    Clock::time_point since;
    bool proven = false;  // has said Hello
    int rank = -1;        // as it said
    bool leaves = false;  // has said Quit
    std::string in;
    std::string waits_for;  // key of an unanswered Get, or empty
    std::uint32_t wait_id = 0;
    std::string head;  // reply on its way, or empty
    Value body;
    std::size_t sent = 0;  // of head and body
  };
  enum class Fate : std::uint8_t { Stays, Leaves };

  TcpServer(UniqueFd listener, Endpoint bound, Credentials with);
  void serve() noexcept;
  bool over();  // finish() was called, and nobody is left or the time is up
  void turn();  // waits for events and deals with them
  void admit();
  bool make_room();  // for one more that has proved nothing yet
  void pause();      // admits nobody for a moment
  void expel_silent(Clock::time_point limit);
  void drop(int fd);
  void lose(int rank);
  void complain(const Guest& guest, const std::string& why);

  Fate on_event(Guest& guest);
  std::unique_ptr<wire::Handshake> await_proof() const;
  Fate shake(Guest& guest);
  Fate refuse(Guest& guest, std::string_view first, const std::string& why);
  Fate secure(Guest& guest);
  Fate receive(Guest& guest);
  Fate parse(Guest& guest);
  Fate handle(Guest& guest, const Request& request, const std::string& key, std::string value);
  void store(const std::string& key, std::string value);
  Fate reply(Guest& guest, Answer answer, std::uint32_t id, Value body = nullptr);
  Fate flush(Guest& guest);
  void stop_waiting(Guest& guest);
  bool watch(const Guest& guest, bool added);

  const Endpoint bound_;
  const Credentials with_;
  UniqueFd epoll_, wake_;
  std::mutex mutex_;  // guards finishing_ and finish_by_
  bool finishing_ = false;
  Deadline finish_by_;

  // The rest is the thread's own.
  UniqueFd listener_;
  std::unordered_map<int, Guest> guests_;  // by descriptor
  std::unordered_map<std::string, Value> values_;
  std::unordered_map<std::string, std::unordered_set<int>> waiting_;  // key -> descriptors
  std::set<int> lost_;          // ranks whose connection ended without Quit
  std::size_t held_bytes_ = 0;  // values and what is arriving
  std::size_t unproven_ = 0;
  Clock::time_point paused_until_{};  // no more descriptors: accept() rests

  std::thread thread_;  // last: everything above is there when it starts
};

}  // namespace hccomm::rendezvous
