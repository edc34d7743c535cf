// SPDX-License-Identifier: Apache-2.0
//
// Which of this host's addresses tcp listens on: HCCOMM_SOCKET_IFNAME where it is set, else the one
// that leads to where the ranks meet, else the one that leads to the rest of the world, else
// loopback. Never the wildcard address.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace hccomm::transport::tcp {

// An IPv4 or IPv6 address; scope is the interface of a link-local one, else 0. Value type.
struct Ip {
  int family = AF_INET;
  std::array<std::uint8_t, 16> bytes{};  // 4 used by IPv4
  std::uint32_t scope = 0;

  static std::optional<Ip> parse(const std::string& text);  // without a scope
  static std::optional<Ip> of(const sockaddr* address);
  socklen_t store(sockaddr_storage& out, std::uint16_t port) const;
  std::string text() const;  // without the scope
  bool loopback() const;
  bool link_local() const;  // needs a scope (IPv6 only)
  friend bool operator==(const Ip&, const Ip&) = default;
};

struct Interface {
  std::string name;
  Ip ip;
  int prefix = 0;  // bits of the address that name its network

  std::string network() const;  // "192.168.1.0/24"
};

// One entry for each address of an interface that is up. Code::System where the kernel does not
// say, for want of a descriptor, perhaps.
Result<std::vector<Interface>> interfaces();

// The local address from which packets to `to` leave. Code::Unavailable where there is no route,
// Code::System where the kernel could not be asked.
Result<Ip> source_towards(const Ip& to);

// The local address that leads to the host named by the route hint; `hint` is a name or an address.
std::optional<Ip> source_towards_host(const std::string& hint);

// Where to listen, best first. `rules` are those of HCCOMM_SOCKET_IFNAME; `preferred` wins where
// the rules leave a choice. Code::InvalidArgument lists the interfaces when none matches.
Result<std::vector<Interface>> choose(std::span<const Interface> all,
                                      std::span<const std::string> rules,
                                      const std::optional<Ip>& preferred);

}  // namespace hccomm::transport::tcp
