// SPDX-License-Identifier: Apache-2.0
//
// TCP: reaches every host and needs nothing. One would choose it wherever nothing faster is. One
// socket per pair of processes: more of them carried no more where this was measured.
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>

#include "base/config.hpp"
#include "base/log.hpp"
#include "transport/handshake_io.hpp"
#include "transport/listener.hpp"
#include "transport/route_hint.hpp"
#include "transport/stream_link.hpp"
#include "transport/tcp/dial.hpp"
#include "transport/tcp/interface.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

namespace tcp {
namespace {

constexpr const char* kName = "tcp";
constexpr int kBacklog = 1024;
constexpr Seconds kGreetSeconds{4.0};  // the listener gives a connection two
constexpr std::chrono::milliseconds kFirstPause{10}, kLongestPause{100};

std::vector<Place> places_of(const Card& peer) {
  for (const auto& [name, address] : peer.addresses) {
    if (name == kName) return parse(address);
  }
  return {};
}

class TcpTransport final : public Transport {
 public:
  TcpTransport(const Identity& identity, Acceptor& acceptor)
      : terms_{identity.job, identity.key, identity.uuid, {}, kName, {}},
        acceptor_(acceptor),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (const int err = errno; !stop_) throw Error(Status::from_errno(err, "tcp: eventfd"));
  }
  ~TcpTransport() override { stop(); }

  Status usable() const { return wire::usable(terms_); }
  Status listen_on(const Interface& where);
  const char* name() const noexcept override { return kName; }
  Address address() const override { return print(places_); }
  std::string refuses(const Card& self, const Card& peer) const override;
  Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline deadline) override;
  void stop() noexcept override;

 private:
  void welcome(Guest& guest);
  Result<std::unique_ptr<Link>> connect_once(std::span<const Place> places,
                                             const wire::Terms& terms, Deadline deadline,
                                             bool& turned_away);
  bool pause(std::chrono::milliseconds time, Deadline deadline) const;
  // While a handshake of ours is under way stop() may cut it.
  bool watch(int fd);
  void unwatch(int fd);

  const wire::Terms terms_;
  Acceptor& acceptor_;
  const UniqueFd stop_;        // eventfd, readable once stop() was called
  std::vector<Place> places_;  // constant once open
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::mutex mutex_;  // guards greeting_ and stopping_
  std::set<int> greeting_;
  bool stopping_ = false;
};

Status TcpTransport::listen_on(const Interface& where) {
  sockaddr_storage address;
  socklen_t bytes = where.ip.store(address, 0);
  UniqueFd fd(socket(where.ip.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  if (!fd || bind(fd.get(), raw, bytes) != 0 || listen(fd.get(), kBacklog) != 0 ||
      getsockname(fd.get(), raw, &(bytes = sizeof address)) != 0) {
    return Status::from_errno(errno, text("tcp: listen on ", where.ip.text(), " of ", where.name));
  }
  const std::uint16_t port =
      ntohs(where.ip.family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                       : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  places_.push_back({where.ip, where.ip.link_local() ? where.name : "", port});
  listeners_.push_back(
      std::make_unique<Listener>(std::move(fd), terms_, [this](Guest& guest) { welcome(guest); }));
  HCCOMM_LOG(Info, "tcp: listening on ", where.name, ", ", places_.back().readable());
  return {};
}

void TcpTransport::welcome(Guest& guest) {
  if (!acceptor_.reserve(guest.uuid())) {
    static_cast<void>(guest.decide(wire::Verdict::Duplicate, "a connection exists or is coming"));
    return;
  }
  std::unique_ptr<Link> link;
  try {
    if (guest.decide(wire::Verdict::Accepted).ok()) {
      configure(guest.fd());
      const std::string description = describe(guest.fd());
      link = std::make_unique<StreamLink>(guest.release(), description);
    }
  } catch (const std::exception& problem) {
    HCCOMM_LOG(Warn, "tcp: a peer's connection is dropped: ", problem.what());
  }
  if (link != nullptr) {
    acceptor_.accepted({guest.uuid(), std::move(link)});
  } else {
    acceptor_.abandoned(guest.uuid());
  }
}

std::string TcpTransport::refuses(const Card& self, const Card& peer) const {
  const std::vector<Place> places = places_of(peer);
  if (places.empty()) return "it does not listen for tcp";
  const bool apart = self.machine != peer.machine;
  std::string why;
  for (const Place& each : with_our_scopes(places, interfaces())) {
    if (apart && each.ip.loopback()) {
      why = text("it listens on loopback only (", each.readable(),
                 "), on another machine; set HCCOMM_SOCKET_IFNAME there");
    } else if (!source_towards(each.ip)) {
      why = "no route from here to " + each.readable();
    } else {
      return "";
    }
  }
  return why.empty() ? "it listens on a link-local address, and no link here has one" : why;
}

bool TcpTransport::watch(int fd) {
  const std::lock_guard lock(mutex_);
  if (!stopping_) greeting_.insert(fd);
  return !stopping_;
}

void TcpTransport::unwatch(int fd) {
  const std::lock_guard lock(mutex_);
  greeting_.erase(fd);
}

// `turned_away`: somebody listens there, but the connection ended before the verdict.
Result<std::unique_ptr<Link>> TcpTransport::connect_once(std::span<const Place> places,
                                                         const wire::Terms& terms,
                                                         Deadline deadline, bool& turned_away) {
  turned_away = false;
  auto dialed = dial(places, deadline, stop_.get());
  if (!dialed) return dialed.status();
  UniqueFd fd = std::move(dialed.value().fd);
  configure(fd.get());
  const std::string description = describe(fd.get());
  if (!watch(fd.get())) return Status(Code::Unavailable, "tcp: closed");
  const Deadline soon(std::min(deadline.at(), Deadline::after(kGreetSeconds).at()));
  auto greeting = greet(fd.get(), terms, soon);
  unwatch(fd.get());
  if (!greeting) {
    const Status& why = greeting.status();
    turned_away = why.code() == Code::PeerLost || why.code() == Code::Timeout;
    return Status(why.code(), description + ": " + why.text());
  }
  const std::string why = description + ": the peer refused: " + greeting.value().text;
  switch (greeting.value().verdict) {
    case wire::Verdict::Accepted: break;
    case wire::Verdict::Duplicate: return Status(Code::Aborted, why);
    case wire::Verdict::Refused: return Status(Code::Unavailable, why);
  }
  return std::unique_ptr<Link>(std::make_unique<StreamLink>(std::move(fd), description));
}

// False when there is no point in going on.
bool TcpTransport::pause(std::chrono::milliseconds time, Deadline deadline) const {
  pollfd entry{stop_.get(), POLLIN, 0};
  const int stopped = ::poll(&entry, 1, deadline.left_ms(static_cast<int>(time.count())));
  return stopped <= 0 && !deadline.passed();
}

Result<std::unique_ptr<Link>> TcpTransport::connect(const Card& peer, Deadline deadline) {
  const std::vector<Place> places = with_our_scopes(places_of(peer), interfaces());
  if (places.empty()) return Status(Code::Unavailable, "tcp: the peer has no address we can dial");
  wire::Terms terms = terms_;
  terms.peer_uuid = peer.uuid;
  for (auto time = kFirstPause;; time = std::min(2 * time, kLongestPause)) {
    bool turned_away = false;
    auto link = connect_once(places, terms, deadline, turned_away);
    // A listener with too many strangers at its door closes it: we knock again.
    if (!turned_away || !pause(time, deadline)) return link;
  }
}

void TcpTransport::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const int fd : greeting_) shutdown(fd, SHUT_RDWR);
  }
  eventfd_write(stop_.get(), 1);
  for (const auto& each : listeners_) each->stop();
}

Result<std::unique_ptr<Transport>> open(const Identity& identity, Acceptor& acceptor) {
  auto transport = std::make_unique<TcpTransport>(identity, acceptor);
  if (Status status = transport->usable(); !status.ok()) return status;
  const std::vector<std::string> rules = config::list("HCCOMM_SOCKET_IFNAME");
  const std::vector<Interface> all = interfaces();
  auto chosen = choose(all, rules, source_towards_host(route_hint()));
  if (!chosen) return chosen.status();
  Status last;
  for (const Interface& each : chosen.value()) {
    Status status = transport->listen_on(each);
    if (!status.ok()) last = std::move(status);
  }
  if (transport->address().empty()) return last;
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace
}  // namespace tcp

Builtin tcp_transport() { return {"tcp", "sockets; reaches every host", 10, tcp::open}; }

}  // namespace hccomm::transport
