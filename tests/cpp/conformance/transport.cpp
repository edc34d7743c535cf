// SPDX-License-Identifier: Apache-2.0
//
// What every transport promises, run over each line of transport/builtins.inc: two processes'
// worth of identities in this one, and a second process where memory or death matters.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>

#include "base/machine.hpp"
#include "support/each_transport.hpp"
#include "support/hex.hpp"
#include "support/link_pair.hpp"
#include "support/member.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

namespace hccomm::transport {
namespace {

using test::Collector;
using test::header_of;
using test::hex;
using test::kPatience;
using test::matches;
using test::payload_of;
using test::poll_until;
using test::unhex;

const std::vector<std::size_t> kSizes = {
    0, 1, 15, 16, 17, 47, 1000, 4096, 65535, 65536, 65537, 300'001, 524288, 3'000'005, 8};

TEST_P(EachTransport, CarriesFramesOfAnySizeToTheirPlace) {
  ASSERT_NO_FATAL_FAILURE(connect());
  Collector forth, back;

  exchange(*dialed_, *taken_, kSizes, forth);
  exchange(*taken_, *dialed_, kSizes, back);
}

TEST_P(EachTransport, CarriesFramesOfAnySizeInPieces) {
  ASSERT_NO_FATAL_FAILURE(connect());
  Collector forth(Collector::Way::Pieces), back(Collector::Way::Pieces);

  exchange(*dialed_, *taken_, kSizes, forth);
  exchange(*taken_, *dialed_, kSizes, back);
}

TEST_P(EachTransport, KeepsTheOrderOfManySmallFrames) {
  ASSERT_NO_FATAL_FAILURE(connect());
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < 5000; ++i) sizes.push_back(i * 7 % 200);
  Collector inbox;

  exchange(*dialed_, *taken_, sizes, inbox);
}

TEST_P(EachTransport, KeepsTheOrderOfManyFramesOfSomePages) {
  ASSERT_NO_FATAL_FAILURE(connect());
  std::vector<std::size_t> sizes{4047, 4048, 4049, 8144, 8145, 20'000};
  for (std::size_t i = 0; i < 600; ++i) sizes.push_back(i * 4099 % 66'000);
  Collector forth, back;

  exchange(*dialed_, *taken_, sizes, forth);
  exchange(*taken_, *dialed_, sizes, back);
}

// HCCOMM_INTEGRITY: no field of a sealed header is the transport's to use.
TEST_P(EachTransport, CarriesSealedFramesAsTheyAre) {
  ASSERT_NO_FATAL_FAILURE(connect());
  dialed_ = sealed(std::move(dialed_), Seal::Everything);
  taken_ = sealed(std::move(taken_), Seal::Everything);
  std::vector<std::size_t> sizes = kSizes;
  sizes.resize(300, 100);
  Collector forth, back;

  exchange(*dialed_, *taken_, sizes, forth);
  exchange(*taken_, *dialed_, sizes, back);
}

TEST_P(EachTransport, TakesLargeFramesFromBothSidesAtOnce) {
  ASSERT_NO_FATAL_FAILURE(connect());
  constexpr std::size_t kBytes = 16 << 20;
  const auto forth = payload_of(1, kBytes), back = payload_of(2, kBytes);
  Collector at_server, at_dialer;

  bool sent = false;
  std::thread other([&] {
    sent = test::send_all(*taken_, at_server, header_of(2, kBytes), back.data()) &&
           poll_until(*taken_, at_server,
                      [&] { return at_server.messages.size() == 1 && !at_server.open(); });
  });
  const bool mine = test::send_all(*dialed_, at_dialer, header_of(1, kBytes), forth.data()) &&
                    poll_until(*dialed_, at_dialer,
                               [&] { return at_dialer.messages.size() == 1 && !at_dialer.open(); });
  other.join();

  ASSERT_TRUE(mine && sent);
  EXPECT_TRUE(matches(at_server.messages[0].payload, 1));
  EXPECT_TRUE(matches(at_dialer.messages[0].payload, 2));
}

TEST_P(EachTransport, ADiscardedFrameLeavesItsDestinationAloneAndTheNextArrives) {
  for (const auto way : {Collector::Way::Direct, Collector::Way::Pieces}) {
    dialed_.reset();
    taken_.reset();
    ASSERT_NO_FATAL_FAILURE(connect());
    Collector inbox(way), unused;
    inbox.complete = false;
    const auto large = payload_of(1, 4 << 20), small = payload_of(2, 8);
    Outgoing first{header_of(1, large.size()), large.data()};
    bool begun = false;
    const Deadline deadline = soon();
    // The frame has begun to arrive (unless the transport hands frames over whole).
    while (!begun && inbox.messages.empty() && !deadline.passed()) {
      if (first.sent < sizeof first.header + large.size()) {
        ASSERT_NE(dialed_->send(first), Progress::Broken);
        dialed_->flush();
      }
      ASSERT_TRUE(!taken_->pending() || taken_->poll(inbox, 64 << 10));
      begun = inbox.open();
    }

    if (begun) {
      taken_->discard();
      std::vector<std::byte>().swap(inbox.messages[0].payload);  // ASan sees any later use
    }
    while (first.sent < sizeof first.header + large.size() && !deadline.passed()) {
      ASSERT_NE(dialed_->send(first), Progress::Broken);
      dialed_->flush();
      ASSERT_TRUE(!taken_->pending() || taken_->poll(inbox, 1 << 20));
    }
    ASSERT_TRUE(test::send_all(*dialed_, unused, header_of(2, small.size()), small.data()));
    ASSERT_TRUE(poll_until(*taken_, inbox, [&] { return inbox.messages.size() == 2; }));

    EXPECT_FALSE(inbox.open());
    EXPECT_TRUE(matches(inbox.messages[1].payload, 2));
  }
}

// The message may have been written there before anybody looks: its frames say so all the same.
TEST_P(EachTransport, WhatIsExpectedComesToItsPlace) {
  ASSERT_NO_FATAL_FAILURE(connect());
  for (std::uint32_t round = 0; round < 10; ++round) {
    const std::size_t bytes = 300'001 + round * 500'003;
    const auto payload = payload_of(round, bytes);
    std::vector<std::byte> place(bytes);
    Collector inbox, unused;
    inbox.place = place.data();
    const wire::Header header = header_of(round, bytes);

    taken_->expect(header, place.data(), bytes);
    taken_->flush();
    ASSERT_TRUE(poll_until(*dialed_, unused, [n = 0]() mutable { return ++n > 50; }));
    std::thread sender([&] {
      for (std::size_t done = 0; done < bytes;) {
        wire::Header part = header;
        part.address = done;
        part.length = static_cast<std::uint32_t>(std::min(bytes - done, dialed_->frame_bytes()));
        if (!test::send_all(*dialed_, unused, part, payload.data() + done)) return;
        done += part.length;
      }
    });
    const bool came = poll_until(*taken_, inbox, [&] { return inbox.placed == bytes; });
    sender.join();

    ASSERT_TRUE(came) << taken_->status().text();
    ASSERT_TRUE(matches(place, round));
  }
}

TEST_P(EachTransport, WhatIsWithdrawnIsWrittenNoMore) {
  ASSERT_NO_FATAL_FAILURE(connect());
  const auto payload = payload_of(1, 8 << 20);
  Collector inbox, unused;
  for (std::uint32_t round = 0; round < 20; ++round) {
    const wire::Header header = header_of(round, 4 << 20);
    auto place = std::make_unique<std::vector<std::byte>>(payload.size());
    taken_->expect(header, place->data(), place->size());
    ASSERT_TRUE(poll_until(*dialed_, unused, [n = 0]() mutable { return ++n > 20; }));
    Outgoing frame{header, payload.data()};
    ASSERT_NE(dialed_->send(frame), Progress::Broken);
    const auto written = [&] {
      std::uint64_t wrote = 0;
      EXPECT_TRUE(dialed_->write(header, payload.data(), payload.size(), wrote).ok());
      return wrote;
    };
    EXPECT_EQ(written() != 0, dialed_->describe() == "shm (single copy)");

    taken_->reclaim(header);
    place->assign(place->size(), std::byte{0x55});
    EXPECT_EQ(written(), 0u);
    const auto all = [&](const auto& each) { return each == std::byte{0x55}; };
    ASSERT_TRUE(poll_until(*dialed_, unused, [n = 0]() mutable { return ++n > 200; }));
    EXPECT_TRUE(std::ranges::all_of(*place, all));
    place.reset();  // ASan sees any later use

    const Deadline deadline = soon();
    while (frame.sent < sizeof header + header.length && !deadline.passed()) {
      ASSERT_NE(dialed_->send(frame), Progress::Broken) << dialed_->status().text();
      ASSERT_TRUE(!taken_->pending() || taken_->poll(inbox, 1 << 20)) << taken_->status().text();
    }
  }
  ASSERT_TRUE(test::send_all(*dialed_, unused, header_of(99, 8), payload.data()));
  ASSERT_TRUE(poll_until(*taken_, inbox, [&] {
    return !inbox.messages.empty() && inbox.messages.back().header.index == 99;
  }));
}

TEST_P(EachTransport, ASleeperIsWokenByAFrame) {
  ASSERT_NO_FATAL_FAILURE(connect());
  Collector inbox, unused;
  for (std::uint32_t round = 0; round < 50; ++round) {
    std::thread sender(
        [&] { EXPECT_TRUE(test::send_all(*dialed_, unused, header_of(round, 0), nullptr)); });
    const Deadline deadline = soon();
    while (inbox.messages.size() <= round && !deadline.passed()) {
      if (taken_->sleeping(true) && taken_->fd() >= 0) {
        pollfd entry{taken_->fd(), POLLIN, 0};
        EXPECT_EQ(::poll(&entry, 1, deadline.left_ms(30'000)), 1) << "never woken";
      }
      taken_->sleeping(false);
      EXPECT_TRUE(!taken_->pending() || taken_->poll(inbox, 1 << 20));
    }
    sender.join();
    ASSERT_EQ(inbox.messages.size(), round + 1);
  }
}

TEST_P(EachTransport, ALinkThatIsDestroyedHandsOverWhatWasSentAndThenIsLost) {
  ASSERT_NO_FATAL_FAILURE(connect());
  Collector inbox, unused;
  const auto payload = payload_of(0, 100);
  for (std::uint32_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(test::send_all(*dialed_, unused, header_of(i, 100), payload.data()));
  }

  dialed_.reset();

  EXPECT_FALSE(poll_until(*taken_, inbox, [] { return false; }));
  EXPECT_EQ(inbox.messages.size(), 3u);
  EXPECT_EQ(taken_->status().code(), Code::PeerLost);
  EXPECT_NE(taken_->status().text(), "");
  EXPECT_TRUE(taken_->pending()) << "a broken link always asks to be looked at";
}

TEST_P(EachTransport, ADuplicateIsAborted) {
  server_->welcome(false);

  auto link = dialer_->transport().connect(server_->card(), soon());

  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.status().code(), Code::Aborted) << link.status().text();
  EXPECT_EQ(server_->waiting(), 0u);
}

TEST_P(EachTransport, AnotherJobOrKeyStaysOutside) {
  const auto stray = member(wire::random_bytes(16), key_),
             thief = member(job_, std::string(32, 'x'));

  for (Member* each : {stray.get(), thief.get()}) {
    auto link = each->transport().connect(server_->card(), Deadline::after(Seconds(5)));
    ASSERT_FALSE(link.ok());
    EXPECT_NE(link.status().code(), Code::Aborted);
  }

  EXPECT_EQ(server_->waiting(), 0u);
  ASSERT_NO_FATAL_FAILURE(connect());
}

TEST_P(EachTransport, OneSideThatEncryptsAndOneThatDoesNotIsARefusalThatSaysSo) {
  if (!builtin().keeps_secret || builtin().preference >= 100) {
    GTEST_SKIP() << builtin().name << " is not used with HCCOMM_ENCRYPT, or never leaves a process";
  }
  Member other(builtin(), job_, key_, wire::random_bytes(16), !GetParam().encrypts);

  auto outwards = dialer_->transport().connect(other.card(), Deadline::after(Seconds(5)));
  auto inwards = other.transport().connect(dialer_->card(), Deadline::after(Seconds(5)));

  for (const auto* each : {&outwards, &inwards}) {
    ASSERT_FALSE(each->ok());
    EXPECT_NE(each->status().text().find("HCCOMM_ENCRYPT"), std::string::npos)
        << each->status().text();
  }
}

TEST_P(EachTransport, AnotherProcessAtTheAddressIsNotTakenForThePeer) {
  Card card = server_->card();
  card.uuid = wire::random_bytes(16);

  auto link = dialer_->transport().connect(card, Deadline::after(Seconds(5)));

  EXPECT_FALSE(link.ok());
  EXPECT_EQ(server_->waiting(), 0u);
}

TEST_P(EachTransport, LinksOutliveTheListenerAndNoNewOneIsMade) {
  ASSERT_NO_FATAL_FAILURE(connect());
  Collector inbox;

  server_->transport().stop();

  exchange(*dialed_, *taken_, {8, 100'000}, inbox);
  EXPECT_FALSE(dialer_->transport().connect(server_->card(), Deadline::after(Seconds(2))).ok());
}

TEST_P(EachTransport, RefusesACardWithoutAnAddress) {
  Card card = server_->card();
  card.addresses.clear();

  EXPECT_NE(dialer_->transport().refuses(dialer_->card(), card), "");
}

TEST_P(EachTransport, PullsWhereItSaysSo) {
  ASSERT_NO_FATAL_FAILURE(connect());
  const auto source = payload_of(5, 1'000'003);
  std::vector<std::byte> copy(source.size());

  const Status status =
      dialed_->pull(7, copy.data(), reinterpret_cast<std::uintptr_t>(source.data()), copy.size());

  if (dialed_->pulls()) {
    EXPECT_EQ(status, Status());
    EXPECT_TRUE(matches(copy, 5));
  } else {
    EXPECT_FALSE(status.ok());
  }
}

TEST_P(EachTransport, DescribesItselfAndItsSizes) {
  ASSERT_NO_FATAL_FAILURE(connect());

  EXPECT_EQ(dialed_->describe().substr(0, std::strlen(builtin().name)), builtin().name);
  EXPECT_STREQ(dialer_->transport().name(), builtin().name);
  EXPECT_GE(dialed_->eager_bytes(), 1024u);
  EXPECT_GE(dialed_->frame_bytes(), dialed_->eager_bytes());
  EXPECT_EQ(dialed_->status(), Status());
}

// ---- a second process: this program again, running the one test that is disabled here ----------

// Dials HCCOMM_TEST_UUID at HCCOMM_TEST_ADDRESS and sends every frame back until the link is lost.
TEST(SecondProcess, DISABLED_Echo) {
  const std::string name = getenv("HCCOMM_TEST_TRANSPORT");
  const Builtin* builtin = nullptr;
  for (const Builtin& each : transports()) {
    if (each.name == name) builtin = &each;
  }
  ASSERT_NE(builtin, nullptr);
  Member self(*builtin, unhex(getenv("HCCOMM_TEST_JOB")), "");
  Card peer = self.card();
  peer.uuid = unhex(getenv("HCCOMM_TEST_UUID"));
  peer.pid = getppid();
  peer.addresses = {{name, unhex(getenv("HCCOMM_TEST_ADDRESS"))}};
  auto link = self.transport().connect(peer, soon());
  ASSERT_TRUE(link.ok()) << link.status().text();

  Collector inbox;
  for (bool connected = true; connected;) {
    connected =
        poll_until(*link.value(), inbox, [&] { return !inbox.messages.empty() && !inbox.open(); });
    std::vector<test::Message> messages = std::exchange(inbox.messages, {});
    for (const test::Message& each : messages) {
      connected =
          connected && test::send_all(*link.value(), inbox, each.header, each.payload.data());
    }
  }
}

class Child {
 public:
  Child(const std::string& transport, const Member& parent, const std::string& job) {
    std::string path(4096, '\0');
    path.resize(static_cast<std::size_t>(
        std::max<ssize_t>(readlink("/proc/self/exe", path.data(), path.size()), 0)));
    std::vector<std::string> environment = {
        "HCCOMM_TEST_TRANSPORT=" + transport, "HCCOMM_TEST_JOB=" + hex(job),
        "HCCOMM_TEST_UUID=" + hex(parent.card().uuid),
        "HCCOMM_TEST_ADDRESS=" + hex(parent.card().addresses.at(0).second)};
    for (char** each = environ; *each != nullptr; ++each) environment.emplace_back(*each);
    std::vector<std::string> arguments = {path, "--gtest_also_run_disabled_tests",
                                          "--gtest_filter=SecondProcess.DISABLED_Echo",
                                          "--gtest_brief=1"};
    const auto pointers = [](std::vector<std::string>& words) {
      std::vector<char*> out;
      for (std::string& each : words) out.push_back(each.data());
      out.push_back(nullptr);
      return out;
    };
    const auto argv = pointers(arguments), envp = pointers(environment);
    pid_ = fork();
    if (pid_ == 0) {
      execve(path.c_str(), argv.data(), envp.data());
      _exit(127);
    }
  }
  ~Child() { finish(); }
  void finish() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

class EachTransportAcrossProcesses : public testing::TestWithParam<const Builtin*> {
 protected:
  void SetUp() override {
    if (GetParam()->name == std::string("inproc")) GTEST_SKIP() << "inproc stays in one process";
    server_ = std::make_unique<Member>(*GetParam(), job_, "");
    if (!server_->why_not().empty()) GTEST_SKIP() << server_->why_not();
    child_ = std::make_unique<Child>(GetParam()->name, *server_, job_);
    link_ = server_->take().link;
    ASSERT_NE(link_, nullptr);
  }
  const std::string job_ = wire::random_bytes(16);
  std::unique_ptr<Member> server_;
  std::unique_ptr<Child> child_;
  std::unique_ptr<Link> link_;
};

TEST_P(EachTransportAcrossProcesses, FramesComeBackAsTheyWent) {
  Collector inbox;
  for (std::uint32_t i = 0; i < kSizes.size(); ++i) {
    const auto payload = payload_of(i, kSizes[i]);
    ASSERT_TRUE(test::send_all(*link_, inbox, header_of(i, kSizes[i]), payload.data()));
    ASSERT_TRUE(
        poll_until(*link_, inbox, [&] { return inbox.messages.size() == i + 1 && !inbox.open(); }));
    EXPECT_TRUE(matches(inbox.messages[i].payload, i)) << "frame of " << kSizes[i];
  }
}

TEST_P(EachTransportAcrossProcesses, AKilledPeerIsLost) {
  Collector inbox;
  ASSERT_TRUE(test::send_all(*link_, inbox, header_of(0, 0), nullptr));
  ASSERT_TRUE(poll_until(*link_, inbox, [&] { return inbox.messages.size() == 1; }));

  child_->finish();

  EXPECT_FALSE(poll_until(*link_, inbox, [] { return false; }));
  EXPECT_EQ(link_->status().code(), Code::PeerLost) << link_->status().text();
}

TEST_P(EachTransportAcrossProcesses, ASleeperIsWokenByThePeersDeath) {
  Collector inbox;
  ASSERT_TRUE(test::send_all(*link_, inbox, header_of(0, 0), nullptr));
  ASSERT_TRUE(poll_until(*link_, inbox, [&] { return inbox.messages.size() == 1; }));
  ASSERT_TRUE(link_->sleeping(true));

  child_->finish();

  pollfd entry{link_->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 30'000), 1);
  link_->sleeping(false);
  EXPECT_FALSE(poll_until(*link_, inbox, [] { return false; }));
}

std::vector<const Builtin*> all() {
  std::vector<const Builtin*> out;
  for (const Builtin& each : transports()) out.push_back(&each);
  return out;
}

std::vector<Way> ways() {
  std::vector<Way> out;
  for (const Builtin& each : transports()) {
    out.push_back({&each, false});
    if (each.keeps_secret && each.preference < 100) out.push_back({&each, true});
  }
  return out;
}

std::string way_of(const testing::TestParamInfo<Way>& each) {
  return std::string(each.param.builtin->name) + (each.param.encrypts ? "_encrypted" : "");
}

std::string name_of(const testing::TestParamInfo<const Builtin*>& each) { return each.param->name; }

INSTANTIATE_TEST_SUITE_P(Builtins, EachTransport, testing::ValuesIn(ways()), way_of);
INSTANTIATE_TEST_SUITE_P(Builtins, EachTransportAcrossProcesses, testing::ValuesIn(all()), name_of);

}  // namespace
}  // namespace hccomm::transport
