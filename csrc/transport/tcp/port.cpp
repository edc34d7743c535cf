// SPDX-License-Identifier: Apache-2.0
#include "transport/tcp/port.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/config.hpp"
#include "base/log.hpp"
#include "transport/handshake_io.hpp"
#include "transport/route_hint.hpp"

namespace hccomm::transport::tcp {

static constexpr int kBacklog = 1024;
static constexpr Seconds kGreetSeconds{4.0};  // the listener gives a connection two
static constexpr std::chrono::milliseconds kFirstPause{10}, kLongestPause{100};

static wire::Terms terms_of(const Identity& identity, std::string transport) {
  wire::Terms terms{identity.job, identity.key, identity.uuid, {}, std::move(transport), {}};
  terms.encrypts = identity.encrypts;
  terms.kernel_tls = identity.encrypts && kernel_tls();
  return terms;
}

Port::Port(const Identity& identity, std::string transport, Listener::Welcome welcome)
    : terms_(terms_of(identity, std::move(transport))),
      welcome_(std::move(welcome)),
      stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (const int err = errno; !stop_) {
    throw Error(Status::from_errno(err, terms_.transport + ": eventfd"));
  }
}

Result<std::vector<Interface>> chosen_interfaces() {
  const std::vector<std::string> rules = config::list("HCCOMM_SOCKET_IFNAME");
  auto all = interfaces();
  if (!all) return all.status();
  return choose(all.value(), rules, source_towards_host(route_hint()));
}

// The places of an address as we can dial them. Our interfaces matter to link-local ones alone.
static Result<std::vector<Place>> dialable(const Address& address) {
  std::vector<Place> places = parse(address);
  if (std::ranges::none_of(places, [](const Place& each) { return each.ip.link_local(); })) {
    return places;
  }
  auto ours = interfaces();
  if (!ours) return ours.status();
  return with_our_scopes(places, ours.value());
}

Status Port::open() {
  if (Status status = wire::usable(terms_); !status.ok()) return status;
  if (terms_.encrypts) {
    if (Status status = tls_available(); !status.ok()) return status;
  }
  auto chosen = chosen_interfaces();
  if (!chosen) return chosen.status();
  Status last;
  for (const Interface& each : chosen.value()) {
    Status status = listen_on(each);
    if (!status.ok()) last = std::move(status);
  }
  return places_.empty() ? last : Status();
}

Status Port::listen_on(const Interface& where) {
  sockaddr_storage address;
  socklen_t bytes = where.ip.store(address, 0);
  UniqueFd fd(socket(where.ip.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  if (!fd || bind(fd.get(), raw, bytes) != 0 || listen(fd.get(), kBacklog) != 0 ||
      getsockname(fd.get(), raw, &(bytes = sizeof address)) != 0) {
    return Status::from_errno(
        errno, text(terms_.transport, ": listen on ", where.ip.text(), " of ", where.name));
  }
  const std::uint16_t port =
      ntohs(where.ip.family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                       : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  places_.push_back({where.ip, where.ip.link_local() ? where.name : "", port});
  listeners_.push_back(std::make_unique<Listener>(std::move(fd), terms_, welcome_));
  HCCOMM_LOG(Info, terms_.transport, ": listening on ", where.name, ", ",
             places_.back().readable());
  return {};
}

std::string Port::refuses(const Address& address, bool apart) const {
  if (parse(address).empty()) return text("it does not listen for ", terms_.transport);
  auto places = dialable(address);
  if (!places) return "";  // we could not look: connect() will say why
  std::string why;
  for (const Place& each : places.value()) {
    if (apart && each.ip.loopback()) {
      why = text("it listens on loopback only (", each.readable(),
                 "), on another machine; set HCCOMM_SOCKET_IFNAME there");
    } else if (const auto source = source_towards(each.ip);
               !source && source.status().code() == Code::Unavailable) {
      why = "no route from here to " + each.readable();
    } else {
      return "";
    }
  }
  return why.empty() ? "it listens on a link-local address, and no link here has one" : why;
}

bool Port::watch(int fd) {
  const std::lock_guard lock(mutex_);
  if (!stopping_) greeting_.insert(fd);
  return !stopping_;
}

void Port::unwatch(int fd) {
  const std::lock_guard lock(mutex_);
  greeting_.erase(fd);
}

// `turned_away`: somebody listens there, but the connection ended before the verdict.
Result<Met> Port::connect_once(std::span<const Place> places, const wire::Terms& terms,
                               Deadline deadline, bool& turned_away) {
  turned_away = false;
  auto dialed = dial(places, deadline, stop_.get());
  if (!dialed) return dialed.status();
  UniqueFd fd = std::move(dialed.value().fd);
  configure(fd.get());
  const std::string description = describe(fd.get());
  if (!watch(fd.get())) return Status(Code::Unavailable, terms.transport + ": closed");
  const Deadline soon(std::min(deadline.at(), Deadline::after(kGreetSeconds).at()));
  auto greeting = greet(fd.get(), terms, soon, true);
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
  return Met{std::move(fd), description, std::move(greeting.value().tls)};
}

// False when there is no point in going on.
bool Port::pause(std::chrono::milliseconds time, Deadline deadline) const {
  pollfd entry{stop_.get(), POLLIN, 0};
  const int stopped = ::poll(&entry, 1, deadline.left_ms(static_cast<int>(time.count())));
  return stopped <= 0 && !deadline.passed();
}

Result<Met> Port::connect(const Address& address, const std::string& peer_uuid, Deadline deadline) {
  auto places = dialable(address);
  if (!places) return places.status();
  if (places.value().empty()) {
    return Status(Code::Unavailable, terms_.transport + ": the peer has no address we can dial");
  }
  wire::Terms terms = terms_;
  terms.peer_uuid = peer_uuid;
  for (auto time = kFirstPause;; time = std::min(2 * time, kLongestPause)) {
    bool turned_away = false;
    auto met = connect_once(places.value(), terms, deadline, turned_away);
    // A listener with too many strangers at its door closes it: we knock again.
    if (!turned_away || !pause(time, deadline)) return met;
  }
}

void Port::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const int fd : greeting_) shutdown(fd, SHUT_RDWR);
  }
  eventfd_write(stop_.get(), 1);
  for (const auto& each : listeners_) each->stop();
}

}  // namespace hccomm::transport::tcp
