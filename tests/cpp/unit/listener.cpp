// SPDX-License-Identifier: Apache-2.0
#include "transport/listener.hpp"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <condition_variable>
#include <cstring>

#include "support/terms.hpp"
#include "transport/handshake_io.hpp"
#include "wire/crypto.hpp"

namespace hccomm::transport {
namespace {

using test::dialer_terms;
using test::kKey;
using test::server_terms;

Deadline soon() { return Deadline::after(Seconds(20)); }

// A listener on loopback that accepts whom `verdict` says and keeps their connections.
class Host {
 public:
  explicit Host(wire::Verdict verdict = wire::Verdict::Accepted) : verdict_(verdict) {
    UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(socket.get(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
    EXPECT_EQ(listen(socket.get(), 512), 0);
    socklen_t bytes = sizeof address_;
    getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address_), &bytes);
    listener_ = std::make_unique<Listener>(std::move(socket), server_terms(kKey),
                                           [this](Guest& guest) { welcome(guest); });
  }
  ~Host() { listener_->stop(); }

  UniqueFd dial() const {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<const sockaddr*>(&address_), sizeof address_), 0);
    return fd;
  }
  // As a real peer does: again, while the host is too busy to answer.
  Result<Greeting> greet_until(UniqueFd& fd, Deadline deadline) const {
    for (;;) {
      fd = dial();
      auto greeting = greet(fd.get(), dialer_terms(kKey), deadline);
      if (greeting.ok() || greeting.status().code() != Code::PeerLost || deadline.passed()) {
        return greeting;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  bool wait_for_guests(std::size_t count) {
    std::unique_lock lock(mutex_);
    return arrived_.wait_for(lock, Seconds(20), [&] { return guests_.size() >= count; });
  }
  Listener& listener() { return *listener_; }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<UniqueFd> guests_;
  std::string uuid_, extra_;

 private:
  void welcome(Guest& guest) {
    const Status sent =
        guest.decide(verdict_, verdict_ == wire::Verdict::Accepted ? "" : "no room");
    const std::lock_guard lock(mutex_);
    if (!sent.ok()) return;
    uuid_ = guest.uuid();
    extra_ = guest.extra();
    guests_.push_back(guest.release());
    arrived_.notify_all();
  }

  const wire::Verdict verdict_;
  sockaddr_in address_{};
  std::unique_ptr<Listener> listener_;
};

// The connection is closed or reset by the other side before the deadline.
bool closes(int fd) {
  char byte;
  const Status status = receive_all(fd, &byte, 1, soon());
  return status.code() == Code::PeerLost;
}

TEST(Listener, HandsOverAPeerAndTheTalkGoesOn) {
  Host host;
  const UniqueFd fd = host.dial();

  auto greeting = greet(fd.get(), dialer_terms(kKey), soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Accepted);
  EXPECT_EQ(greeting.value().extra, "from the server");
  ASSERT_TRUE(host.wait_for_guests(1));
  EXPECT_EQ(host.uuid_, test::kDialer);
  EXPECT_EQ(host.extra_, "from the dialer");
  char word[5] = {};
  ASSERT_EQ(send_all(host.guests_[0].get(), "hello", 5, soon()), Status());
  ASSERT_EQ(receive_all(fd.get(), word, 5, soon()), Status());
  EXPECT_EQ(std::string(word, 5), "hello");
}

TEST(Listener, ADuplicateIsTold) {
  Host host(wire::Verdict::Duplicate);
  const UniqueFd fd = host.dial();

  auto greeting = greet(fd.get(), dialer_terms(kKey), soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Duplicate);
  EXPECT_EQ(greeting.value().text, "no room");
}

TEST(Listener, AWrongKeyIsTurnedAway) {
  Host host;
  const UniqueFd fd = host.dial();

  auto greeting = greet(fd.get(), dialer_terms(std::string(32, 'x')), soon());

  EXPECT_FALSE(greeting.ok());
  EXPECT_TRUE(host.guests_.empty());
}

TEST(Listener, StrangersAreCutAndAPeerStillGetsIn) {
  Host host;
  const UniqueFd http = host.dial(), noise = host.dial(), silent = host.dial(), gone = host.dial();
  const std::string garbage = wire::random_bytes(4096);
  static_cast<void>(send(http.get(), "GET /metrics HTTP/1.1\r\n\r\n", 25, MSG_NOSIGNAL));
  static_cast<void>(send(noise.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL));
  shutdown(gone.get(), SHUT_WR);

  UniqueFd fd;
  auto greeting = host.greet_until(fd, soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Accepted);
  EXPECT_TRUE(closes(http.get()));
  EXPECT_TRUE(closes(noise.get()));
  EXPECT_TRUE(closes(gone.get()));
  EXPECT_TRUE(closes(silent.get()));
}

TEST(Listener, AFloodOfSilentConnectionsOnlyDelaysAPeer) {
  Host host;
  std::vector<UniqueFd> flood;
  for (int i = 0; i < 200; ++i) flood.push_back(host.dial());

  UniqueFd fd;
  auto greeting = host.greet_until(fd, soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Accepted);
  for (const UniqueFd& each : flood) EXPECT_TRUE(closes(each.get()));
}

TEST(Listener, AFullHouseOfSilentGuestsMakesRoomForAPeerAtOnce) {
  Host host;
  std::vector<UniqueFd> silent;
  for (int i = 0; i < kMaxPending; ++i) silent.push_back(host.dial());

  const UniqueFd fd = host.dial();  // accepted after all of them
  auto greeting = greet(fd.get(), dialer_terms(kKey), soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Accepted);
}

TEST(Listener, StopCutsHandshakesAndKeepsThoseHandedOver) {
  Host host;
  const UniqueFd fd = host.dial();
  ASSERT_TRUE(greet(fd.get(), dialer_terms(kKey), soon()).ok());
  ASSERT_TRUE(host.wait_for_guests(1));
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 8; ++i) silent.push_back(host.dial());

  host.listener().stop();

  char word[3] = {};
  ASSERT_EQ(send_all(fd.get(), "yes", 3, soon()), Status());
  ASSERT_EQ(receive_all(host.guests_[0].get(), word, 3, soon()), Status());
  EXPECT_EQ(std::string(word, 3), "yes");
}

TEST(Listener, AGuestWithoutAVerdictIsRefused) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  ASSERT_EQ(bind(socket.get(), reinterpret_cast<sockaddr*>(&address), bytes), 0);
  ASSERT_EQ(listen(socket.get(), 8), 0);
  getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &bytes);
  Listener listener(std::move(socket), server_terms(), [](Guest&) {});
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), bytes), 0);

  auto greeting = greet(fd.get(), dialer_terms(), soon());

  ASSERT_TRUE(greeting.ok()) << greeting.status().text();
  EXPECT_EQ(greeting.value().verdict, wire::Verdict::Refused);
}

TEST(HandshakeIo, ASilentPeerTimesOut) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd mine(ends[0]), other(ends[1]);

  auto greeting = greet(mine.get(), dialer_terms(), Deadline::after(Seconds(0.05)));

  EXPECT_EQ(greeting.status().code(), Code::Timeout);
}

}  // namespace
}  // namespace hccomm::transport
