// SPDX-License-Identifier: Apache-2.0
#include "transport/tcp/dial.hpp"

#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

namespace hccomm::transport::tcp {

static constexpr Seconds kNextPlaceAfter{0.25};
static constexpr std::size_t kMaxPlaces = 32;  // of a card, which another process wrote

// An idle connection whose peer has vanished is found after 5 + 5 * 2 seconds; probes each second
// gave false alarms under connection storms elsewhere.
static constexpr int kKeepIdleSeconds = 5;
static constexpr int kKeepIntervalSeconds = 2;
static constexpr int kKeepCount = 5;
// Unacknowledged data. It also counts while the peer's window is closed, that is while a healthy
// rank computes and does not read: so it must outlast such a pause.
static constexpr unsigned kUserTimeoutMs = 60'000;

// After a loss TCP tries again in ever longer pauses, so that a line that is away for moments makes
// us silent for far longer. They are a second at most where the kernel (6.15) lets us say so: the
// headers of older ones lack the number. Beats go again each 0.2 s for 1.7 s, but with bbr, which
// never leaves what the kernel takes for a first slow start.
static constexpr int kRtoMaxMsOption = 44;
static constexpr unsigned kRtoMaxMs = 1000;

std::string Place::text() const {
  return ip.text() + (scope.empty() ? "" : "%" + scope) + "|" + std::to_string(port);
}

std::string Place::readable() const {
  return ip.text() + (scope.empty() ? "" : "%" + scope) + " port " + std::to_string(port);
}

std::string print(std::span<const Place> places) {
  std::string out;
  for (const Place& each : places) {
    if (!out.empty()) out += ",";
    out += each.text();
  }
  return out;
}

static std::optional<Place> parse_one(const std::string& word) {
  const std::size_t bar = word.rfind('|');
  if (bar == std::string::npos) return std::nullopt;
  Place place;
  const char* end = word.data() + word.size();
  const auto [rest, error] = std::from_chars(word.data() + bar + 1, end, place.port);
  const std::size_t percent = std::min(word.find('%'), bar);
  const auto ip = Ip::parse(word.substr(0, percent));
  if (error != std::errc() || rest != end || place.port == 0 || !ip) return std::nullopt;
  place.ip = *ip;
  if (percent < bar) place.scope = word.substr(percent + 1, bar - percent - 1);
  if (place.scope.size() >= IF_NAMESIZE) return std::nullopt;
  return place;
}

std::vector<Place> parse(const Address& address) {
  std::vector<Place> places;
  for (std::size_t begin = 0; begin < address.size() && places.size() < kMaxPlaces;) {
    const std::size_t comma = std::min(address.find(',', begin), address.size());
    if (const auto place = parse_one(address.substr(begin, comma - begin)))
      places.push_back(*place);
    begin = comma + 1;
  }
  return places;
}

std::vector<Place> with_our_scopes(std::span<const Place> places, std::span<const Interface> ours) {
  std::vector<Place> out;
  for (const Place& place : places) {
    if (!place.ip.link_local()) {
      out.push_back(place);
      continue;
    }
    std::vector<Place> links;
    for (const Interface& each : ours) {
      if (!each.ip.link_local()) continue;
      Place link = place;
      link.scope = each.name;
      link.ip.scope = each.ip.scope;
      links.insert(each.name == place.scope ? links.begin() : links.end(), link);
    }
    out.insert(out.end(), links.begin(), links.end());
  }
  return out;
}

namespace {

struct Attempt {
  UniqueFd fd;
  const Place* place;
};

// The attempts under way and why others failed.
struct Dialing {
  std::vector<Attempt> attempts;
  std::string reasons;
  Status ours;  // what this process lacks, descriptors for one: no peer is to blame

  void failed(const Place& place, int err) {
    auto source = source_towards(place.ip);
    reasons += (reasons.empty() ? "" : "; ") +
               Status::from_errno(err, place.readable() + " from " +
                                           (source ? source.value().text() : "here (no route)"))
                   .text();
  }
  // True when it is connected already.
  bool start(const Place& place) {
    UniqueFd fd(socket(place.ip.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_storage address;
    const socklen_t bytes = place.ip.store(address, place.port);
    if (const int err = errno; !fd && err != EAFNOSUPPORT) {
      ours = Status::from_errno(err, "tcp: a socket to connect to " + place.readable());
      return false;
    }
    const bool done = fd && connect(fd.get(), reinterpret_cast<sockaddr*>(&address), bytes) == 0;
    if (const int err = errno; !done && (!fd || err != EINPROGRESS)) {
      failed(place, err);
      return false;
    }
    attempts.push_back({std::move(fd), &place});
    return done;
  }
  // The first attempt that succeeded; drops those that failed.
  std::optional<Dialed> settle(std::span<const pollfd> entries) {
    std::vector<Attempt> open;
    std::optional<Dialed> won;
    for (std::size_t i = 0; i < attempts.size(); ++i) {
      int err = 0;
      socklen_t bytes = sizeof err;
      if (entries[i].revents == 0 || won) {
        open.push_back(std::move(attempts[i]));
      } else if (getsockopt(attempts[i].fd.get(), SOL_SOCKET, SO_ERROR, &err, &bytes) == 0 &&
                 err == 0) {
        won = Dialed{std::move(attempts[i].fd), *attempts[i].place};
      } else {
        failed(*attempts[i].place, err != 0 ? err : errno);
      }
    }
    attempts = std::move(open);
    return won;
  }
};

Status all_failed(Code code, std::span<const Place> places, const std::string& reasons) {
  std::string tried;
  for (const Place& each : places) tried += (tried.empty() ? "" : ", ") + each.readable();
  return {code, text("tcp: connect: ", reasons.empty() ? "no answer from " + tried : reasons,
                     "; the process may have ended, a firewall may be between, or another "
                     "interface is needed: see HCCOMM_SOCKET_IFNAME")};
}

}  // namespace

Result<Dialed> dial(std::span<const Place> places, Deadline deadline, int stop_fd) {
  Dialing dialing;
  std::size_t next = 0;
  Deadline next_start = Deadline::after(Seconds(0));
  for (;;) {
    while (next < places.size() && (dialing.attempts.empty() || next_start.passed())) {
      if (dialing.start(places[next++])) {
        return Dialed{std::move(dialing.attempts.back().fd), places[next - 1]};
      }
      next_start = Deadline::after(kNextPlaceAfter);
    }
    if (dialing.attempts.empty() && !dialing.ours.ok()) return dialing.ours;
    if (dialing.attempts.empty()) return all_failed(Code::PeerLost, places, dialing.reasons);
    std::vector<pollfd> entries;
    for (const Attempt& each : dialing.attempts) entries.push_back({each.fd.get(), POLLOUT, 0});
    entries.push_back({stop_fd, POLLIN, 0});
    const int cap = next < places.size() ? next_start.left_ms() : 1000;
    if (poll(entries.data(), entries.size(), deadline.left_ms(cap)) > 0) {
      if (entries.back().revents != 0) return Status(Code::Unavailable, "tcp: closed");
      if (auto won = dialing.settle(entries)) return std::move(*won);
    }
    if (deadline.passed()) {
      std::vector<Place> silent;
      for (const Attempt& each : dialing.attempts) silent.push_back(*each.place);
      return all_failed(Code::Timeout, silent.empty() ? places : silent, "");
    }
  }
}

// One end of a connection: getsockname's or getpeername's.
template <typename Ask>
static std::optional<Place> end_of(int fd, Ask ask) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof address;
  if (ask(fd, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) return {};
  const auto ip = Ip::of(reinterpret_cast<sockaddr*>(&address));
  if (!ip) return {};
  return Place{
      *ip, "",
      ntohs(address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                         : reinterpret_cast<sockaddr_in6&>(address).sin6_port)};
}

// Congestion control of connections inside one machine, where nothing can be congested: one that
// does not pace. bbr, the default of some systems, halves the rate there. Between machines the
// system's own is right.
static constexpr char kUnpaced[] = "cubic";

void configure(int fd) noexcept {
  const auto set = [fd](int level, int option, auto value) {
    [[maybe_unused]] const int ignored = setsockopt(fd, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds);
  set(IPPROTO_TCP, TCP_KEEPCNT, kKeepCount);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
  set(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1);
  set(IPPROTO_TCP, kRtoMaxMsOption, kRtoMaxMs);
  const auto here = end_of(fd, getsockname), there = end_of(fd, getpeername);
  if (here && there && here->ip == there->ip) {
    [[maybe_unused]] const int ignored =
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, kUnpaced, sizeof kUnpaced - 1);
  }
}

std::string describe(int fd) {
  const auto name_of = [fd](auto ask) {
    const auto place = end_of(fd, ask);
    return place ? place->readable() : std::string("?");
  };
  char control[16] = {};
  socklen_t bytes = sizeof control - 1;
  if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control, &bytes) != 0) control[0] = '\0';
  return "tcp to " + name_of(getpeername) + " from " + name_of(getsockname) +
         (control[0] != '\0' ? std::string(" (") + control + ")" : "");
}

}  // namespace hccomm::transport::tcp
