// SPDX-License-Identifier: Apache-2.0
//
// TCP: reaches every host and needs nothing. One would choose it wherever nothing faster is. One
// socket per pair of processes: more of them carried no more where this was measured.
#include <memory>

#include "base/log.hpp"
#include "transport/stream_link.hpp"
#include "transport/tcp/port.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

namespace tcp {
namespace {

constexpr const char* kName = "tcp";

Address address_of(const Card& peer) {
  for (const auto& [name, address] : peer.addresses) {
    if (name == kName) return address;
  }
  return {};
}

class TcpTransport final : public Transport {
 public:
  TcpTransport(const Identity& identity, Acceptor& acceptor)
      : acceptor_(acceptor), port_(identity, kName, [this](Guest& guest) { welcome(guest); }) {}
  ~TcpTransport() override { stop(); }

  Status open() { return port_.open(); }
  const char* name() const noexcept override { return kName; }
  Address address() const override { return port_.address(); }
  std::string refuses(const Card& self, const Card& peer) const override {
    return port_.refuses(address_of(peer), self.machine != peer.machine);
  }
  Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline deadline) override {
    auto met = port_.connect(address_of(peer), peer.uuid, deadline);
    if (!met) return met.status();
    Met found = std::move(met).value();
    return std::unique_ptr<Link>(std::make_unique<StreamLink>(
        ByteStream(std::move(found.fd), std::move(found.tls)), found.description));
  }
  void stop() noexcept override { port_.stop(); }

 private:
  void welcome(Guest& guest);

  Acceptor& acceptor_;
  Port port_;  // last: its threads use the rest
};

void TcpTransport::welcome(Guest& guest) {
  if (!acceptor_.reserve(guest.uuid())) {
    static_cast<void>(guest.decide(wire::Verdict::Duplicate, "a connection exists or is coming"));
    return;
  }
  std::unique_ptr<Link> link;
  try {
    if (guest.decide(wire::Verdict::Accepted).ok()) {
      configure(guest.fd());
      const std::string description = describe(guest.fd());
      auto tls = guest.encrypt().take();
      link = std::make_unique<StreamLink>(ByteStream(guest.release(), std::move(tls)), description);
    }
  } catch (const std::exception& problem) {
    HCCOMM_LOG(Warn, "tcp: a peer's connection is dropped: ", problem.what());
  }
  if (link != nullptr) {
    acceptor_.accepted({guest.uuid(), std::move(link)});
  } else {
    acceptor_.abandoned(guest.uuid());
  }
}

Result<std::unique_ptr<Transport>> open(const Identity& identity, Acceptor& acceptor) {
  auto transport = std::make_unique<TcpTransport>(identity, acceptor);
  if (Status status = transport->open(); !status.ok()) return status;
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace
}  // namespace tcp

Builtin tcp_transport() {
  return {"tcp", "sockets; reaches every host", 10, tcp::open, nullptr, true};
}

}  // namespace hccomm::transport
