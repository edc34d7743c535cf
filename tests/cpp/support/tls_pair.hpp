// SPDX-License-Identifier: Apache-2.0
//
// Two links over one socket pair, encrypted: what HCCOMM_ENCRYPT makes of a TCP connection.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <thread>

#include "transport/stream_link.hpp"

namespace hccomm::test {

// Shakes hands over two connected descriptors; nothing where one of the ends refuses.
struct TlsEnds {
  explicit TlsEnds(int dialer, int server, const std::string& dialer_secret,
                   const std::string& server_secret, const transport::Tls::Options& options = {}) {
    const Deadline soon = Deadline::after(Seconds(20));
    std::thread other([&] {
      right = transport::Tls::open(server, wire::Role::Acceptor, server_secret, options, soon);
      // As a process that gives up does: its connection ends.
      if (!right.ok()) shutdown(server, SHUT_RDWR);
    });
    left = transport::Tls::open(dialer, wire::Role::Initiator, dialer_secret, options, soon);
    if (!left.ok()) shutdown(dialer, SHUT_RDWR);
    other.join();
  }
  Result<std::unique_ptr<transport::Tls>> left{Status()}, right{Status()};
};

struct TlsPair {
  explicit TlsPair(const transport::Tls::Options& options = {}) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    UniqueFd dialer(ends[0]), server(ends[1]);
    TlsEnds tls(dialer.get(), server.get(), std::string(32, 's'), std::string(32, 's'), options);
    left = std::make_unique<transport::StreamLink>(
        transport::ByteStream(std::move(dialer), std::move(tls.left).take()), "the dialer");
    right = std::make_unique<transport::StreamLink>(
        transport::ByteStream(std::move(server), std::move(tls.right).take()), "the server");
  }
  std::unique_ptr<transport::StreamLink> left, right;
};

}  // namespace hccomm::test
