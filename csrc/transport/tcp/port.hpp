// SPDX-License-Identifier: Apache-2.0
//
// A process's door for TCP connections: listens on the chosen interfaces, shakes hands with whoever
// comes, and knocks at the doors of others. The tcp transport makes a stream link of each
// connection; ofi keeps it to control a link whose frames go over a fabric.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "transport/listener.hpp"
#include "transport/tcp/dial.hpp"
#include "transport/tcp/interface.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport::tcp {

// Where a Port would listen, best first; or why nowhere.
Result<std::vector<Interface>> chosen_interfaces();

// A connection over which both sides have proved to be peers, and the acceptor has agreed.
struct Met {
  UniqueFd fd;
  std::string description;   // "tcp to 10.0.0.2 port 4000 from 10.0.0.1"
  std::unique_ptr<Tls> tls;  // over fd, where the job is encrypted
};

// Owns:   the listening sockets and their handshakes' threads.
// Thread: connect() and refuses() from any; the rest on one. The welcome runs on threads of its
// own. Fails:  open() and connect() give the reason.
class Port {
 public:
  // `transport` goes into the handshake and into every error.
  Port(const Identity& identity, std::string transport, Listener::Welcome welcome);
  ~Port() { stop(); }

  // Listens where HCCOMM_SOCKET_IFNAME and the route hint say. Before anything else, once.
  Status open();
  const std::vector<Place>& places() const { return places_; }
  std::string address() const { return print(places_); }

  // Why nobody here can reach that address, or "". `apart`: it is on another machine.
  std::string refuses(const Address& address, bool apart) const;
  // Code::Aborted when the peer answers Duplicate.
  Result<Met> connect(const Address& address, const std::string& peer_uuid, Deadline deadline);
  // No welcome starts and none is running once it returns; connect() is cut.
  void stop() noexcept;

 private:
  Status listen_on(const Interface& where);
  Result<Met> connect_once(std::span<const Place> places, const wire::Terms& terms,
                           Deadline deadline, bool& turned_away);
  bool pause(std::chrono::milliseconds time, Deadline deadline) const;
  // While a handshake of ours is under way stop() may cut it.
  bool watch(int fd);
  void unwatch(int fd);

  const wire::Terms terms_;
  const Listener::Welcome welcome_;
  const UniqueFd stop_;        // eventfd, readable once stop() was called
  std::vector<Place> places_;  // constant once open
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::mutex mutex_;  // guards greeting_ and stopping_
  std::set<int> greeting_;
  bool stopping_ = false;
};

}  // namespace hccomm::transport::tcp
