// SPDX-License-Identifier: Apache-2.0
//
// What is special to links inside TLS: who is refused, what is seen of damage, keys that change on
// the way, and that nothing crosses in clear.
#include "transport/tls.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "support/link_pair.hpp"
#include "support/tls_pair.hpp"

namespace hccomm::transport {
namespace {

using test::Collector;
using test::header_of;
using test::matches;
using test::payload_of;
using test::poll_until;
using test::TlsEnds;
using test::TlsPair;

struct Sockets {
  Sockets() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    left.reset(ends[0]);
    right.reset(ends[1]);
  }
  UniqueFd left, right;
};

const std::string kSecret(32, 's'), kOther(32, 'o');

TEST(Tls, TheLibraryIsHere) { ASSERT_EQ(tls_available(), Status()); }

TEST(Tls, OtherKeysDoNotMeet) {
  Sockets sockets;

  const TlsEnds ends(sockets.left.get(), sockets.right.get(), kSecret, kOther);

  ASSERT_FALSE(ends.left.ok());
  ASSERT_FALSE(ends.right.ok());
  EXPECT_NE(ends.left.status().text().find("tls: the handshake failed"), std::string::npos)
      << ends.left.status().text();
}

TEST(Tls, SilenceEndsAtTheDeadline) {
  Sockets sockets;

  auto tls = Tls::open(sockets.left.get(), wire::Role::Initiator, kSecret, {},
                       Deadline::after(Seconds(0.05)));

  ASSERT_FALSE(tls.ok());
  EXPECT_EQ(tls.status().code(), Code::Timeout);
}

TEST(Tls, ClearTextIsNoHandshake) {
  Sockets sockets;
  const std::string clear = "hccomm\r\n in clear, and more than a record's head of it";
  ASSERT_EQ(send(sockets.right.get(), clear.data(), clear.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(clear.size()));

  auto tls = Tls::open(sockets.left.get(), wire::Role::Acceptor, kSecret, {},
                       Deadline::after(Seconds(20)));

  EXPECT_FALSE(tls.ok());
}

// Everything that `from` has sent, moved to `to` after `edit`; as a network between two sockets.
std::string carry(int from, int to, const std::function<void(std::string&)>& edit) {
  std::string bytes(1 << 20, '\0');
  const ssize_t got = recv(from, bytes.data(), bytes.size(), MSG_DONTWAIT);
  bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  edit(bytes);
  EXPECT_EQ(send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

// Two ends with a wire between them that the test holds.
struct Wired {
  Wired() {
    const auto nothing = [](std::string&) {};
    auto dialer = Tls::make(one.left.get(), wire::Role::Initiator, kSecret, {}).take();
    auto server = Tls::make(two.left.get(), wire::Role::Acceptor, kSecret, {}).take();
    Tls::Step left = Tls::Step::WantsRead, right = Tls::Step::WantsRead;
    for (int each = 0; each < 8 && (left != Tls::Step::Done || right != Tls::Step::Done); ++each) {
      if (left != Tls::Step::Done) left = dialer->shake();
      carry(one.right.get(), two.right.get(), nothing);
      if (right != Tls::Step::Done) right = server->shake();
      carry(two.right.get(), one.right.get(), nothing);
    }
    EXPECT_EQ(left, Tls::Step::Done);
    EXPECT_EQ(right, Tls::Step::Done);
    sender =
        std::make_unique<StreamLink>(ByteStream(std::move(one.left), std::move(dialer)), "one");
    reader =
        std::make_unique<StreamLink>(ByteStream(std::move(two.left), std::move(server)), "two");
  }
  std::string pass(const std::function<void(std::string&)>& edit) {
    return carry(one.right.get(), two.right.get(), edit);
  }
  Sockets one, two;
  std::unique_ptr<StreamLink> sender, reader;
};

TEST(Tls, NothingOfAFrameCrossesInClear) {
  Wired wired;
  Collector inbox;
  const std::string secret = "the loss went up again and nobody may know of it";
  wire::Header header = header_of(1, secret.size());
  ASSERT_TRUE(test::send_all(*wired.sender, inbox, header,
                             reinterpret_cast<const std::byte*>(secret.data())));

  const std::string crossed = wired.pass([](std::string&) {});

  EXPECT_GT(crossed.size(), secret.size());
  EXPECT_EQ(crossed.find("nobody may know"), std::string::npos);
  ASSERT_TRUE(poll_until(*wired.reader, inbox, [&] { return inbox.messages.size() == 1; }));
  EXPECT_EQ(std::memcmp(inbox.messages[0].payload.data(), secret.data(), secret.size()), 0);
}

TEST(Tls, AFlippedBitBreaksTheLinkAndNothingOfTheRecordIsSeen) {
  Wired wired;
  Collector inbox;
  const auto payload = payload_of(1, 1000);
  ASSERT_TRUE(test::send_all(*wired.sender, inbox, header_of(1, 1000), payload.data()));

  wired.pass([](std::string& bytes) { bytes[bytes.size() / 2] ^= 0x10; });

  EXPECT_FALSE(poll_until(*wired.reader, inbox, [&] { return !inbox.messages.empty(); }));
  EXPECT_EQ(wired.reader->status().code(), Code::Integrity);
  EXPECT_NE(wired.reader->status().text().find("HCCOMM_ENCRYPT"), std::string::npos)
      << wired.reader->status().text();
}

TEST(Tls, ARepeatedRecordBreaksTheLink) {
  Wired wired;
  Collector inbox;
  const auto payload = payload_of(1, 100);
  ASSERT_TRUE(test::send_all(*wired.sender, inbox, header_of(1, 100), payload.data()));

  wired.pass([](std::string& bytes) { bytes += bytes; });

  EXPECT_FALSE(poll_until(*wired.reader, inbox, [&] { return inbox.messages.size() == 2; }));
  EXPECT_EQ(inbox.messages.size(), 1u);
  EXPECT_EQ(wired.reader->status().code(), Code::Integrity);
}

TEST(Tls, AnEndInTheMiddleIsAPeerThatLeft) {
  TlsPair pair;
  Collector inbox;
  const auto payload = payload_of(1, 100);
  ASSERT_TRUE(test::send_all(*pair.right, inbox, header_of(1, 100), payload.data()));

  pair.right.reset();

  EXPECT_FALSE(poll_until(*pair.left, inbox, [&] { return inbox.messages.size() == 2; }));
  EXPECT_EQ(inbox.messages.size(), 1u) << "what had arrived is handed over first";
  EXPECT_EQ(pair.left->status().code(), Code::PeerLost) << pair.left->status().text();
}

TEST(Tls, ASendToAPeerThatLeftIsAnErrorAndNoSignal) {
  TlsPair pair;
  pair.right.reset();
  Collector inbox;
  const auto payload = payload_of(1, 100);

  bool sent = true;
  for (int each = 0; each < 4 && sent; ++each) {
    sent = test::send_all(*pair.left, inbox, header_of(1, 100), payload.data());
  }

  EXPECT_FALSE(sent);
}

TEST(Tls, KeysChangeOnTheWayAndNothingIsLost) {
  Tls::Options often;
  often.records_per_key = 3;
  TlsPair pair(often);
  Collector inbox;
  const auto payload = payload_of(1, 200'000);
  bool sent = true;

  std::thread sender([&] {
    Collector unused;
    for (std::uint32_t each = 0; each < 40 && sent; ++each) {
      sent = test::send_all(*pair.right, unused, header_of(each, payload.size()), payload.data());
    }
  });
  const bool all =
      poll_until(*pair.left, inbox, [&] { return inbox.messages.size() == 40 && !inbox.open(); });
  sender.join();

  EXPECT_TRUE(all && sent);
  for (const auto& message : inbox.messages) EXPECT_TRUE(matches(message.payload, 1));
}

TEST(Tls, AFullSocketAnswersAgainAndAnotherFrameMayNotOvertake) {
  TlsPair pair;
  Collector inbox;
  const auto large = payload_of(1, 8 << 20), small = payload_of(2, 64);
  Outgoing first{header_of(1, large.size()), large.data()};

  Progress progress = Progress::Done;
  for (int each = 0; each < 4; ++each) progress = pair.left->send(first);

  EXPECT_EQ(progress, Progress::Again);
  EXPECT_TRUE(pair.left->wants_write());
  EXPECT_LT(first.sent, large.size());
  bool sent = false;
  std::thread rest([&] {
    Collector unused;
    const Deadline deadline = Deadline::after(test::kPatience);
    while (pair.left->send(first) == Progress::Again && !deadline.passed())
      std::this_thread::yield();
    sent = test::send_all(*pair.left, unused, header_of(2, small.size()), small.data());
  });
  EXPECT_TRUE(poll_until(*pair.right, inbox, [&] { return inbox.messages.size() == 2; }));
  rest.join();
  EXPECT_TRUE(sent);
  EXPECT_TRUE(matches(inbox.messages[0].payload, 1));
  EXPECT_TRUE(matches(inbox.messages[1].payload, 2));
}

TEST(Tls, WhatWasReadAheadKeepsTheProcessAwake) {
  TlsPair pair;
  Collector inbox;
  const auto payload = payload_of(1, 64);
  for (std::uint32_t each = 0; each < 3; ++each) {
    ASSERT_TRUE(test::send_all(*pair.right, inbox, header_of(each, 64), payload.data()));
  }

  ASSERT_TRUE(poll_until(*pair.left, inbox, [&] { return !inbox.messages.empty(); }));
  while (!pair.left->sleeping(true)) ASSERT_TRUE(pair.left->poll(inbox, 1 << 20));

  EXPECT_EQ(inbox.messages.size(), 3u) << "asleep with nothing left behind";
}

}  // namespace
}  // namespace hccomm::transport
