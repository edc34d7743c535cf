// SPDX-License-Identifier: Apache-2.0
//
// Addresses as text, and connecting to the first of several that answers.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "transport/tcp/interface.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport::tcp {

// Where a process listens. On paper "10.0.0.1|4000" or "fe80::1%eth0|4000"; several are separated
// by commas. The scope is the listener's name for its interface.
struct Place {
  Ip ip;
  std::string scope;
  std::uint16_t port = 0;

  std::string text() const;      // "10.0.0.1|4000"
  std::string readable() const;  // "10.0.0.1 port 4000"
};

std::string print(std::span<const Place> places);
// Leaves out what cannot be read: the text comes from another process.
std::vector<Place> parse(const Address& address);

// A link-local place can be on any of our links: one of the same name first, else all of them.
std::vector<Place> with_our_scopes(std::span<const Place> places, std::span<const Interface> ours);

struct Dialed {
  UniqueFd fd;  // connected, non-blocking
  Place place;
};

// Connects to the places in order, a further one whenever the last has not answered for a moment
// ("happy eyeballs"); the first to answer wins. Code::Timeout at the deadline, Unavailable when
// `stop_fd` becomes readable, else PeerLost with the reason for every place.
Result<Dialed> dial(std::span<const Place> places, Deadline deadline, int stop_fd);

// Options of every data socket, dialed or accepted: no delay, keep-alive.
void configure(int fd) noexcept;
// "tcp to 10.0.0.2 port 4000 from 10.0.0.1"
std::string describe(int fd);

}  // namespace hccomm::transport::tcp
