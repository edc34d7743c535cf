// SPDX-License-Identifier: Apache-2.0
//
// The tcp store's door: strangers and floods; and where the job has a key, in clear and encrypted,
// who gets in and what those are told who do not.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "support/stores.hpp"

namespace hccomm::rendezvous {
namespace {

using test::soon;

const Credentials kKeyed{std::string(32, 'k'), false}, kSealed{std::string(32, 'k'), true};

class SecretStore : public testing::TestWithParam<Credentials> {};

TEST_P(SecretStore, ServesThoseWhoHoldTheKey) {
  auto server = TcpServer::start({"127.0.0.1", 0}, GetParam()).take();
  auto one = open_tcp_store(server->bound(), 1, soon(), GetParam()).take();
  auto two = open_tcp_store(server->bound(), 2, soon(), GetParam()).take();
  const std::string large(3 << 20, 'v');
  std::string got;

  std::thread waiter([&] { got = two->get("large", soon()).take(); });
  EXPECT_TRUE(one->set("large", large).ok());
  waiter.join();

  EXPECT_EQ(got, large);
  EXPECT_EQ(one->get("nothing", Deadline::after(Seconds(0.05))).status().code(), Code::Timeout);
  one->finish(soon());
  EXPECT_EQ(two->get("large", soon()).take().size(), large.size());
}

TEST_P(SecretStore, NamesAKeyThatOnlyOneSideHas) {
  auto keyed = TcpServer::start({"127.0.0.1", 0}, GetParam()).take();
  auto open = TcpServer::start({"127.0.0.1", 0}).take();

  const auto stranger = open_tcp_store(keyed->bound(), 1, soon());
  const auto keeper = open_tcp_store(open->bound(), 1, soon(), GetParam());

  for (const auto* each : {&stranger, &keeper}) {
    ASSERT_FALSE(each->ok());
    EXPECT_EQ(each->status().code(), Code::Unavailable);
    EXPECT_NE(each->status().text().find("HCCOMM_KEY_FILE"), std::string::npos)
        << each->status().text();
  }
}

TEST_P(SecretStore, TurnsAwayAnotherKey) {
  auto server = TcpServer::start({"127.0.0.1", 0}, GetParam()).take();
  Credentials other = GetParam();
  other.key.assign(32, 'x');

  const auto thief = open_tcp_store(server->bound(), 1, soon(), other);

  ASSERT_FALSE(thief.ok());
  EXPECT_NE(thief.status().text().find("different job keys"), std::string::npos)
      << thief.status().text();
  EXPECT_TRUE(open_tcp_store(server->bound(), 2, soon(), GetParam()).ok());
}

TEST_P(SecretStore, DropsStrangersAndServesOn) {
  auto server = TcpServer::start({"127.0.0.1", 0}, GetParam()).take();

  EXPECT_TRUE(test::is_dropped_after(server->bound(), "GET / HTTP/1.1\r\n\r\n"));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), std::string(100000, '\xff')));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), test::bytes_of(Request{})));
  const UniqueFd silent = test::dial(server->bound().port);

  auto one = open_tcp_store(server->bound(), 1, soon(), GetParam()).take();
  EXPECT_TRUE(one->set("key", "value").ok());
}

INSTANTIATE_TEST_SUITE_P(Ways, SecretStore, testing::Values(kKeyed, kSealed),
                         [](const auto& each) { return each.param.encrypts ? "Tls" : "Key"; });

TEST(TcpStore, NamesAnEncryptionThatOnlyOneSideWants) {
  auto server = TcpServer::start({"127.0.0.1", 0}, kKeyed).take();

  const auto store = open_tcp_store(server->bound(), 1, soon(), kSealed);

  ASSERT_FALSE(store.ok());
  EXPECT_NE(store.status().text().find("HCCOMM_ENCRYPT"), std::string::npos)
      << store.status().text();
}

TEST(TcpStore, AFloodOfTheSilentDoesNotKeepARankOut) {
  auto server = TcpServer::start({"127.0.0.1", 0}).take();
  std::vector<UniqueFd> silent;
  for (int each = 0; each < 300; ++each) silent.push_back(test::dial(server->bound().port));

  auto one = open_tcp_store(server->bound(), 1, soon());

  ASSERT_TRUE(one.ok()) << one.status().text();
  EXPECT_TRUE(one.value()->set("key", "value").ok());
}

TEST(TcpStore, DropsStrangersAndServesOn) {
  auto server = TcpServer::start({"127.0.0.1", 0}).take();
  auto one = open_tcp_store(server->bound(), 1, soon()).take();
  Request version, unknown, key, value, huge;
  version.version = 9;
  unknown.ask = static_cast<Ask>(99);
  key.key_bytes = 300;
  value.value_bytes = 1;
  huge.ask = Ask::Set;
  huge.key_bytes = 1;
  huge.value_bytes = 0xffffffff;
  Request first;
  first.key_bytes = 1;
  const std::string hello = test::bytes_of(first) + "7";

  EXPECT_TRUE(test::is_dropped_after(server->bound(), "GET / HTTP/1.1\r\n\r\n"));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), std::string(100000, '\xff')));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), std::string(16, '\0')));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), test::bytes_of(version)));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), test::bytes_of(unknown)));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), test::bytes_of(key)));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), test::bytes_of(value)));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), hello + test::bytes_of(huge)));
  EXPECT_TRUE(test::is_dropped_after(server->bound(), hello + hello));
  const UniqueFd silent = test::dial(server->bound().port);
  const UniqueFd half = test::dial(server->bound().port);
  EXPECT_EQ(send(half.get(), hello.data(), 5, MSG_NOSIGNAL), 5);

  EXPECT_TRUE(one->set("key", "value").ok());
  EXPECT_EQ(one->get("key", soon()).take(), "value");
}

TEST(TcpStore, SurvivesRandomBytes) {
  auto server = TcpServer::start({"127.0.0.1", 0}).take();
  auto one = open_tcp_store(server->bound(), 1, soon()).take();
  std::uint64_t state = 42;
  const auto random = [&] {
    return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33;
  };

  for (int round = 0; round < 200; ++round) {
    std::string bytes = test::bytes_of(Request{});
    for (int each = 0; each < 8; ++each) {
      Request request;
      request.ask = static_cast<Ask>(random() % 7);
      request.key_bytes = static_cast<std::uint16_t>(random() % 4);
      request.value_bytes = static_cast<std::uint32_t>(random() % 9);
      bytes += test::bytes_of(request) + std::string(random() % 12, static_cast<char>(random()));
    }
    bytes[random() % bytes.size()] = static_cast<char>(random());
    const UniqueFd fd = test::dial(server->bound().port);
    (void)!send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }

  EXPECT_TRUE(one->set("my key", "value").ok());
  EXPECT_EQ(one->get("my key", soon()).take(), "value");
}

}  // namespace
}  // namespace hccomm::rendezvous
