// SPDX-License-Identifier: Apache-2.0
//
// What is special to tcp: which interface it listens on, addresses as text, dialing, its sockets.
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstdlib>

#include "support/link_pair.hpp"
#include "transport/route_hint.hpp"
#include "transport/tcp/dial.hpp"
#include "transport/tcp/interface.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport::tcp {
namespace {

Ip ip(const char* text, std::uint32_t scope = 0) {
  Ip out = *Ip::parse(text);
  out.scope = scope;
  return out;
}

const std::vector<Interface> kHost = {
    {"lo", ip("127.0.0.1")},    {"docker0", ip("172.17.0.1")},
    {"eth1", ip("10.1.0.1")},   {"eth10", ip("10.10.0.1")},
    {"eth1", ip("fe80::1", 3)}, {"eth1", ip("fd00::1")},
    {"ib0", ip("fe80::9", 5)},  {"lo", ip("::1")},
};

using Rules = std::vector<std::string>;

// "eth1 10.1.0.1, eth1 fd00::1"
std::string chosen(const Rules& rules, const std::optional<Ip>& preferred = {},
                   const std::vector<Interface>& host = kHost) {
  auto found = choose(host, rules, preferred);
  if (!found.ok()) return found.status().text();
  std::string out;
  for (const Interface& each : found.value()) {
    out += (out.empty() ? "" : ", ") + each.name + " " + each.ip.text();
  }
  return out;
}

TEST(TcpInterface, WithoutRulesTheRouteDecides) {
  EXPECT_EQ(chosen({}, ip("10.10.0.1")), "eth10 10.10.0.1");
  EXPECT_EQ(chosen({}, ip("127.0.0.1")), "lo 127.0.0.1");
  EXPECT_EQ(chosen({}, ip("127.0.0.5")), "lo 127.0.0.1") << "any address of the loopback network";
}

TEST(TcpInterface, WithoutARouteTheFirstRealInterfaceIsTaken) {
  EXPECT_EQ(chosen({}), "eth1 10.1.0.1");
  EXPECT_EQ(chosen({}, {}, {kHost[0], kHost[1]}), "docker0 172.17.0.1");
  EXPECT_EQ(chosen({}, {}, {kHost[0]}), "lo 127.0.0.1");
  EXPECT_EQ(chosen({}, {}, {kHost[0], kHost[6]}), "ib0 fe80::9");
}

TEST(TcpInterface, NamedInterfacesAreAllUsedInTheirOrder) {
  EXPECT_EQ(chosen({"eth1"}), "eth1 10.1.0.1, eth1 fd00::1") << "an exact name is no prefix";
  EXPECT_EQ(chosen({"ib0", "eth10"}), "ib0 fe80::9, eth10 10.10.0.1");
  EXPECT_EQ(chosen({"ib0", "eth10"}, ip("10.10.0.1")), "eth10 10.10.0.1, ib0 fe80::9");
  EXPECT_EQ(chosen({"eth"}), "eth1 10.1.0.1, eth1 fd00::1, eth10 10.10.0.1");
}

TEST(TcpInterface, ExcludedOnesAreLeftOut) {
  EXPECT_EQ(chosen({"^eth1"}), "ib0 fe80::9") << "eth10 begins with eth1 as well";
  EXPECT_EQ(chosen({"^eth", "ib"}), "docker0 172.17.0.1") << "a bridge is better than loopback";
  EXPECT_EQ(chosen({"^eth", "docker", "lo"}), "ib0 fe80::9");
}

TEST(TcpInterface, ARuleThatMatchesNothingListsWhatThereIs) {
  const auto found = choose(kHost, Rules{"bond"}, {});

  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.status().code(), Code::InvalidArgument);
  EXPECT_NE(found.status().text().find("HCCOMM_SOCKET_IFNAME=\"bond\""), std::string::npos);
  EXPECT_NE(found.status().text().find("eth1 (10.1.0.1)"), std::string::npos);
}

TEST(TcpInterface, AHintOfLoopbackGivesLoopback) {
  EXPECT_TRUE(source_towards_host("127.0.0.1")->loopback());
  EXPECT_TRUE(source_towards_host("localhost")->loopback());
}

// Nobody else opens files here meanwhile.
TEST(TcpInterface, WithoutADescriptorTheLimitIsNamed) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);

  auto listed = interfaces();
  auto source = source_towards(ip("127.0.0.1"));
  auto dialed = dial(parse("127.0.0.1|9"), Deadline::after(Seconds(1)), -1);

  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  for (const Status& each : {listed.status(), source.status(), dialed.status()}) {
    EXPECT_EQ(each.code(), Code::System) << each.text();
    EXPECT_NE(each.text().find("raise `ulimit -n`"), std::string::npos) << each.text();
  }
}

TEST(TcpInterface, AHintThatHasNoAddressIsNoFailure) {
  const auto source = source_towards_host("no-such-host.invalid");

  EXPECT_TRUE(!source || !source->loopback());  // nothing where there is no route at all
}

TEST(TcpAddress, ReturnsAsItWasPrinted) {
  const std::vector<Place> places = {
      {ip("10.0.0.1"), "", 4000}, {ip("fd00::1"), "", 1}, {ip("fe80::1"), "eth0", 65535}};

  const std::string text = print(places);

  EXPECT_EQ(text, "10.0.0.1|4000,fd00::1|1,fe80::1%eth0|65535");
  EXPECT_EQ(print(parse(text)), text);
}

TEST(TcpAddress, DamagedPartsAreLeftOut) {
  EXPECT_TRUE(parse("").empty());
  for (const char* bad : {"x|1", "10.0.0.1", "10.0.0.1|", "10.0.0.1|0", "10.0.0.1|65536",
                          "10.0.0.1|-1", "10.0.0.1|1x", "|1", "10.0.0.256|1", ",,,", "%|1"}) {
    EXPECT_TRUE(parse(bad).empty()) << bad;
  }
  EXPECT_TRUE(parse("fe80::1%" + std::string(64, 'x') + "|1").empty());
  EXPECT_EQ(print(parse("rubbish,10.0.0.1|7,fe80::%|")), "10.0.0.1|7");
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "10.0.0.1|7,";
  EXPECT_LE(parse(many).size(), 32u);
}

TEST(TcpAddress, ALinkLocalOneIsTriedOnOurLinksTheOneOfThatNameFirst) {
  const std::vector<Interface> ours = {
      {"eth0", ip("10.0.0.1")}, {"eth0", ip("fe80::5", 2)}, {"ib0", ip("fe80::6", 4)}};

  const auto places = with_our_scopes(parse("fe80::1%ib0|9,10.0.0.2|9"), ours);

  EXPECT_EQ(print(places), "fe80::1%ib0|9,fe80::1%eth0|9,10.0.0.2|9");
  EXPECT_EQ(places[0].ip.scope, 4u);
  EXPECT_EQ(places[1].ip.scope, 2u);
}

// A socket on loopback that listens (or does not) and its place.
struct Door {
  explicit Door(bool listening, const char* address = "127.0.0.1") {
    fd.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage at;
    socklen_t bytes = ip(address).store(at, 0);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&at), bytes), 0);
    if (listening) {
      EXPECT_EQ(listen(fd.get(), 8), 0);
    }
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &bytes);
    place = {ip(address), "", ntohs(reinterpret_cast<sockaddr_in&>(at).sin_port)};
  }
  UniqueFd fd;
  Place place;
};

struct Stop {
  UniqueFd fd{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

TEST(TcpDial, FallsBackToThePlaceThatAnswers) {
  const Door closed(false), open(true);
  const Stop stop;

  auto dialed =
      dial(std::vector{closed.place, open.place}, Deadline::after(test::kPatience), stop.fd.get());

  ASSERT_TRUE(dialed.ok()) << dialed.status().text();
  EXPECT_EQ(dialed.value().place.port, open.place.port);
}

TEST(TcpDial, ARefusalNamesThePlaceTheSourceAndTheRemedy) {
  const Door closed(false);
  const Stop stop;

  auto dialed = dial(std::vector{closed.place}, Deadline::after(test::kPatience), stop.fd.get());

  ASSERT_FALSE(dialed.ok());
  const std::string& why = dialed.status().text();
  EXPECT_EQ(dialed.status().code(), Code::PeerLost);
  EXPECT_NE(why.find(closed.place.readable() + " from 127.0.0.1: Connection refused"),
            std::string::npos)
      << why;
  EXPECT_NE(why.find("HCCOMM_SOCKET_IFNAME"), std::string::npos) << why;
}

// A listener whose queue is full answers nothing: as a host behind a firewall that drops.
struct FullDoor : Door {
  FullDoor() : Door(false) {
    EXPECT_EQ(listen(fd.get(), 0), 0);
    for (int i = 0; i < 4; ++i) {
      sockaddr_storage at;
      const socklen_t bytes = place.ip.store(at, place.port);
      waiting.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      static_cast<void>(connect(waiting.back().get(), reinterpret_cast<sockaddr*>(&at), bytes));
    }
  }
  std::vector<UniqueFd> waiting;
};

TEST(TcpDial, ASilentPlaceDoesNotHideTheNextOne) {
  const FullDoor silent;
  const Door open(true);
  const Stop stop;

  auto dialed =
      dial(std::vector{silent.place, open.place}, Deadline::after(test::kPatience), stop.fd.get());

  ASSERT_TRUE(dialed.ok()) << dialed.status().text();
  EXPECT_EQ(dialed.value().place.port, open.place.port);
}

TEST(TcpDial, SilenceEndsAtTheDeadline) {
  const FullDoor silent;
  const Stop stop;

  auto dialed = dial(std::vector{silent.place}, Deadline::after(Seconds(0.1)), stop.fd.get());

  ASSERT_FALSE(dialed.ok());
  EXPECT_EQ(dialed.status().code(), Code::Timeout);
  EXPECT_NE(dialed.status().text().find(silent.place.readable()), std::string::npos);
}

TEST(TcpDial, StopEndsIt) {
  const FullDoor silent;
  const Stop stop;
  eventfd_write(stop.fd.get(), 1);

  auto dialed = dial(std::vector{silent.place}, Deadline::never(), stop.fd.get());

  EXPECT_EQ(dialed.status().code(), Code::Unavailable);
}

TEST(TcpSocket, DataSocketsAreSetUp) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto option = [&](int level, int name) {
    int value = 0;
    socklen_t bytes = sizeof value;
    EXPECT_EQ(getsockopt(fd.get(), level, name, &value, &bytes), 0);
    return value;
  };

  configure(fd.get());

  EXPECT_NE(option(IPPROTO_TCP, TCP_NODELAY), 0);
  EXPECT_NE(option(SOL_SOCKET, SO_KEEPALIVE), 0);
  EXPECT_GT(option(IPPROTO_TCP, TCP_USER_TIMEOUT), 0);
}

// Takes no one: the tests below look at the transport alone.
struct Nobody final : Acceptor {
  bool reserve(const std::string&) override { return false; }
  void accepted(Accepted) override {}
  void abandoned(const std::string&) override {}
};

struct Opened {
  explicit Opened(const std::string& key = "") {
    auto opened = tcp_transport().open({std::string(16, 'j'), key, std::string(16, 'u')}, nobody);
    if (opened.ok()) {
      transport = std::move(opened).value();
    } else {
      why = opened.status();
    }
  }
  Nobody nobody;
  std::unique_ptr<Transport> transport;
  Status why;
};

Card card(const std::string& machine, const std::string& address) {
  Card out;
  out.uuid = std::string(16, 'p');
  out.machine = machine;
  if (!address.empty()) out.addresses = {{"tcp", address}};
  return out;
}

TEST(TcpTransport, ListensWhereTheRanksMeetAndNeverOnTheWildcard) {
  set_route_hint("127.0.0.1");

  const Opened opened;

  ASSERT_NE(opened.transport, nullptr) << opened.why.text();
  const auto places = parse(opened.transport->address());
  ASSERT_EQ(places.size(), 1u);
  EXPECT_EQ(places[0].ip, ip("127.0.0.1"));
  set_route_hint("");
}

TEST(TcpTransport, AnInterfaceThatIsNotThereIsRefusedAtOnce) {
  setenv("HCCOMM_SOCKET_IFNAME", "nosuch", 1);

  const Opened opened;

  unsetenv("HCCOMM_SOCKET_IFNAME");
  EXPECT_EQ(opened.transport, nullptr);
  EXPECT_EQ(opened.why.code(), Code::InvalidArgument);
}

TEST(TcpTransport, RefusesWhomItCannotReach) {
  const Opened opened;
  ASSERT_NE(opened.transport, nullptr) << opened.why.text();
  const Card self = card("here", "127.0.0.1|1");
  const auto refuses = [&](const Card& peer) { return opened.transport->refuses(self, peer); };

  EXPECT_EQ(refuses(card("here", "127.0.0.1|1")), "");
  EXPECT_NE(refuses(card("there", "127.0.0.1|1")).find("loopback only"), std::string::npos);
  EXPECT_NE(refuses(card("there", "")), "");
  EXPECT_NE(refuses(card("there", "rubbish")), "");
}

TEST(TcpTransport, StopEndsADialThatGetsNoAnswer) {
  const Opened opened;
  ASSERT_NE(opened.transport, nullptr) << opened.why.text();
  const Door mute(true);  // the connection stands, nobody says a word

  Result<std::unique_ptr<Link>> link(Status{});
  std::thread dialer(
      [&] { link = opened.transport->connect(card("", mute.place.text()), Deadline::never()); });
  const UniqueFd arrived(accept4(mute.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  opened.transport->stop();
  dialer.join();

  EXPECT_FALSE(link.ok());
}

}  // namespace
}  // namespace hccomm::transport::tcp
