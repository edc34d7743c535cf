// SPDX-License-Identifier: Apache-2.0
#include "transport/tcp/interface.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <tuple>

#include "base/log.hpp"
#include "base/unique_fd.hpp"

namespace hccomm::transport::tcp {

static constexpr std::size_t kMaxListeners = 4;  // each costs a thread
static constexpr std::uint16_t kAnyPort = 9;     // a connected UDP socket sends nothing

std::optional<Ip> Ip::parse(const std::string& text) {
  Ip ip;
  if (inet_pton(AF_INET, text.c_str(), ip.bytes.data()) == 1) return ip;
  ip.family = AF_INET6;
  if (inet_pton(AF_INET6, text.c_str(), ip.bytes.data()) == 1) return ip;
  return std::nullopt;
}

std::optional<Ip> Ip::of(const sockaddr* address) {
  Ip ip;
  if (address == nullptr) return std::nullopt;
  if (address->sa_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, address, sizeof in);
    std::memcpy(ip.bytes.data(), &in.sin_addr, sizeof in.sin_addr);
    return ip;
  }
  if (address->sa_family != AF_INET6) return std::nullopt;
  sockaddr_in6 in6;
  std::memcpy(&in6, address, sizeof in6);
  ip.family = AF_INET6;
  std::memcpy(ip.bytes.data(), &in6.sin6_addr, sizeof in6.sin6_addr);
  if (ip.link_local()) ip.scope = in6.sin6_scope_id;
  return ip;
}

socklen_t Ip::store(sockaddr_storage& out, std::uint16_t port) const {
  std::memset(&out, 0, sizeof out);
  if (family == AF_INET) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, bytes.data(), sizeof in.sin_addr);
    std::memcpy(&out, &in, sizeof in);
    return sizeof in;
  }
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  in6.sin6_scope_id = scope;
  std::memcpy(&in6.sin6_addr, bytes.data(), sizeof in6.sin6_addr);
  std::memcpy(&out, &in6, sizeof in6);
  return sizeof in6;
}

std::string Ip::text() const {
  char name[INET6_ADDRSTRLEN] = "?";
  inet_ntop(family, bytes.data(), name, sizeof name);
  return name;
}

bool Ip::loopback() const {
  if (family == AF_INET) return bytes[0] == 127;
  return std::all_of(bytes.begin(), bytes.end() - 1, [](auto each) { return each == 0; }) &&
         bytes.back() == 1;
}

bool Ip::link_local() const {
  return family == AF_INET6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

std::string Interface::network() const {
  Ip base = ip;
  for (int bit = prefix; bit < 128; ++bit) {
    base.bytes[static_cast<std::size_t>(bit / 8)] &= static_cast<std::uint8_t>(~(0x80 >> bit % 8));
  }
  return text(base.text(), "/", prefix);
}

Result<std::vector<Interface>> interfaces() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) {
    return Status::from_errno(errno, "tcp: the network interfaces cannot be listed");
  }
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
  std::vector<Interface> all;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    const auto ip = Ip::of(each->ifa_addr);
    if (!ip || (each->ifa_flags & IFF_UP) == 0) continue;
    const auto mask = Ip::of(each->ifa_netmask);
    int prefix = 0;
    if (mask)
      for (const std::uint8_t byte : mask->bytes) prefix += std::popcount(byte);
    all.push_back({each->ifa_name, *ip, prefix});
  }
  return all;
}

Result<Ip> source_towards(const Ip& to) {
  sockaddr_storage address;
  const socklen_t bytes = to.store(address, kAnyPort);
  const UniqueFd probe(socket(to.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (const int err = errno; !probe && err != EAFNOSUPPORT) {
    return Status::from_errno(err, "tcp: a socket to ask for the route");
  }
  socklen_t found = sizeof address;
  if (probe && connect(probe.get(), reinterpret_cast<sockaddr*>(&address), bytes) == 0 &&
      getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &found) == 0) {
    if (const auto ip = Ip::of(reinterpret_cast<sockaddr*>(&address))) return *ip;
  }
  return Status(Code::Unavailable, "no route from here to " + to.text());
}

// Addresses for documentation (RFC 5737, RFC 3849): they take the default route.
static std::optional<Ip> source_towards_the_world() {
  for (const char* far : {"192.0.2.1", "2001:db8::1"}) {
    auto source = source_towards(*Ip::parse(far));
    if (source && !source.value().loopback()) return source.value();
  }
  return std::nullopt;
}

std::optional<Ip> source_towards_host(const std::string& hint) {
  if (hint.empty()) return source_towards_the_world();
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_DGRAM;
  addrinfo* list = nullptr;
  if (const int err = getaddrinfo(hint.c_str(), nullptr, &wanted, &list); err != 0) {
    HCCOMM_LOG(Info, "tcp: the meeting host ", hint, " has no address: ", gai_strerror(err));
    return source_towards_the_world();
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    const auto to = Ip::of(each->ai_addr);
    if (!to) continue;
    auto source = source_towards(*to);
    if (!source) continue;
    // A host whose own name is 127.0.1.1 in /etc/hosts is reached by others all the same.
    const bool meant = hint == "localhost" || Ip::parse(hint).has_value();
    if (!source.value().loopback() || meant) return source.value();
  }
  return source_towards_the_world();
}

static bool is_virtual(const std::string& name) {
  for (const char* prefix :
       {"docker", "virbr", "br-", "veth", "cni", "flannel", "cali", "podman"}) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

// The lower, the better a place to listen on.
static int rank_of(const Interface& each) {
  return (each.ip.loopback() ? 8 : 0) + (is_virtual(each.name) ? 4 : 0) +
         (each.ip.link_local() ? 2 : 0) + (each.ip.family == AF_INET ? 0 : 1);
}

static bool matches(const std::string& name, std::span<const std::string> rules) {
  return std::ranges::any_of(rules,
                             [&](const std::string& rule) { return name.starts_with(rule); });
}

// The rules without the leading ^, exact names alone where there are such ("eth1", not "eth10").
static std::vector<Interface> filter(std::span<const Interface> all,
                                     std::span<const std::string> given) {
  std::vector<std::string> rules(given.begin(), given.end());
  const bool excluding = !rules.empty() && rules[0].starts_with('^');
  for (std::string& rule : rules) {
    if (rule.starts_with('^')) rule.erase(0, 1);
  }
  std::vector<Interface> kept;
  for (const Interface& each : all) {
    if (excluding && !matches(each.name, rules)) kept.push_back(each);
  }
  if (excluding) return kept;
  for (const std::string& rule : rules) {
    const auto exact = [&](const Interface& each) { return each.name == rule; };
    const bool has_exact = std::ranges::any_of(all, exact);
    for (const Interface& each : all) {
      const bool known =
          std::ranges::any_of(kept, [&](const Interface& other) { return other.ip == each.ip; });
      if (!known && (has_exact ? exact(each) : each.name.starts_with(rule))) kept.push_back(each);
    }
  }
  return kept;
}

Result<std::vector<Interface>> choose(std::span<const Interface> all,
                                      std::span<const std::string> rules,
                                      const std::optional<Ip>& preferred) {
  std::vector<Interface> usable =
      rules.empty() ? std::vector(all.begin(), all.end()) : filter(all, rules);
  if (all.empty()) return Status(Code::Unavailable, "tcp: no network interface is up");
  if (usable.empty()) {
    std::string wanted, found;
    for (const std::string& rule : rules) wanted += (wanted.empty() ? "" : ",") + rule;
    for (const Interface& each : all) {
      found += (found.empty() ? "" : ", ") + each.name + " (" + each.ip.text() + ")";
    }
    return Status(Code::InvalidArgument,
                  text("HCCOMM_SOCKET_IFNAME=\"", wanted,
                       "\" leaves no network interface that is up; there are: ", found));
  }
  const bool named = !rules.empty() && !rules[0].starts_with('^');
  std::vector<std::string> names;  // in the order of the rules
  for (const Interface& each : usable) names.push_back(each.name);
  const auto place = [&](const Interface& each) {
    const bool wanted =
        preferred && (each.ip == *preferred || (each.ip.loopback() && preferred->loopback() &&
                                                each.ip.family == preferred->family));
    const auto order = named ? std::ranges::find(names, each.name) - names.begin() : 0;
    return std::tuple(!wanted, order, rank_of(each));
  };
  std::ranges::stable_sort(
      usable, [&](const Interface& a, const Interface& b) { return place(a) < place(b); });
  if (!named) usable.resize(1);
  // A link-local address is of use only where its interface has nothing better.
  std::vector<Interface> best;
  for (const Interface& each : usable) {
    const bool better = std::ranges::any_of(best, [&](const Interface& other) {
      return other.name == each.name && (each.ip.link_local() || other.ip.family == each.ip.family);
    });
    if (!better && best.size() < kMaxListeners) best.push_back(each);
  }
  return best;
}

}  // namespace hccomm::transport::tcp
