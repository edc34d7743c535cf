// SPDX-License-Identifier: Apache-2.0
//
// The ofi transport: links over what libfabric finds. One would choose it between hosts with an
// RDMA fabric. Peers shake hands over TCP like everyone else, tell each other how the fabric names
// them, and say hello through it, so that a pair whose fabric does not connect falls back to tcp at
// once. The TCP connection stays: its end tells of the peer's death, of which many providers say
// nothing.
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <utility>

#include "base/config.hpp"
#include "base/log.hpp"
#include "transport/handshake_io.hpp"
#include "transport/ofi/ofi_link.hpp"
#include "transport/tcp/port.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

namespace ofi {
namespace {

constexpr const char* kName = "ofi";
constexpr Seconds kMeetSeconds{6.0};  // on the fabric, once the handshake has proved the peer
constexpr std::chrono::milliseconds kHelloEvery{20};
constexpr std::chrono::microseconds kLookEvery{50};
constexpr std::chrono::milliseconds kOtherLanes{500};  // after one has answered

// "tcp;ofi_rxm 10.0.0.1|4000"
struct Where {
  std::string provider;
  Address doors;
};

Where where_of(const Card& peer) {
  for (const auto& [name, address] : peer.addresses) {
    if (name != kName) continue;
    const std::size_t blank = std::min(address.find(' '), address.size());
    return {address.substr(0, blank), address.substr(std::min(blank + 1, address.size()))};
  }
  return {};
}

// A peer that is no link yet.
class Candidate {
 public:
  Candidate(Fabric& fabric, Peer& peer) : fabric_(fabric), peer_(&peer) {}
  Candidate(const Candidate&) = delete;
  ~Candidate() {
    if (peer_ != nullptr) fabric_.forget(*peer_);
  }
  Peer& get() { return *peer_; }
  Peer& keep() { return *std::exchange(peer_, nullptr); }

 private:
  Fabric& fabric_;
  Peer* peer_;
};

bool hung_up(int control) {
  char byte;
  return recv(control, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

// Each side says hello through the fabric until it has heard the other's.
Status say_hello(Fabric& fabric, Peer& peer, int control, const std::string& theirs,
                 Deadline deadline) {
  Clock::time_point next{}, enough = Clock::time_point::max();
  unsigned heard = 0;
  for (unsigned lanes = 1; (heard = fabric.met(peer, lanes)) < lanes;) {
    const auto now = Clock::now();
    if (heard > 0) enough = std::min(enough, now + kOtherLanes);
    if (now >= enough) break;
    if (now >= next) {
      if (hung_up(control)) return {Code::Unavailable, "ofi: the peer has not heard us: " + theirs};
      fabric.greet(peer);
      next = now + kHelloEvery;
    }
    if (deadline.passed()) {
      return {
          Code::Unavailable,
          text("ofi: nothing came through provider ", fabric.provider(), " on ", fabric.domains(),
               " in time, though the peer answers over TCP; its cards: ", theirs)};
    }
    std::this_thread::sleep_for(kLookEvery);
  }
  // Ours may have been refused while the peer was not there yet. It hears no other.
  for (unsigned lanes = 1; !fabric.greet(peer) && !deadline.passed(); fabric.met(peer, lanes)) {
    std::this_thread::sleep_for(kLookEvery);
  }
  return {};
}

// What follows the handshake on the connection; the same on both sides.
Result<std::unique_ptr<Link>> settle(const std::shared_ptr<Fabric>& fabric, UniqueFd control,
                                     const std::string& description, Deadline deadline) {
  Offer mine, theirs;
  auto admitted = fabric->admit(mine);
  if (!admitted) return admitted.status();
  Candidate peer(*fabric, *admitted.value());
  const int fd = control.get();
  Status status = send_all(fd, &mine, sizeof mine, deadline);
  if (status.ok()) status = receive_all(fd, &theirs, sizeof theirs, deadline);
  if (status.ok()) status = fabric->introduce(peer.get(), mine, theirs);
  // The peer must know us before a hello comes to it.
  char ready = 1;
  if (status.ok()) status = send_all(fd, &ready, 1, deadline);
  if (status.ok()) status = receive_all(fd, &ready, 1, deadline);
  if (status.ok()) status = say_hello(*fabric, peer.get(), fd, cards_of(theirs), deadline);
  if (status.ok()) status = send_all(fd, &ready, 1, deadline);
  if (status.ok()) status = receive_all(fd, &ready, 1, deadline);
  if (!status.ok()) return status;
  std::string name = text("ofi (", fabric->provider(), ") beside ", description);
  fabric->adopt(peer.get(), std::move(control), name);
  return OfiLink::make(fabric, peer.keep(), fd, std::move(name));
}

class OfiTransport final : public Transport {
 public:
  OfiTransport(const Identity& identity, Acceptor& acceptor)
      : acceptor_(acceptor), port_(identity, kName, [this](Guest& guest) { welcome(guest); }) {}
  ~OfiTransport() override { stop(); }

  // The fabric first: it may decide that there is no use in listening.
  Status open();
  const char* name() const noexcept override { return kName; }
  Address address() const override { return text(fabric_->provider(), " ", port_.address()); }
  std::string refuses(const Card& self, const Card& peer) const override;
  Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline deadline) override;
  Status enroll(std::byte* data, std::size_t bytes) override { return fabric_->keep(data, bytes); }
  void expel(std::byte* data, std::size_t bytes) noexcept override {
    fabric_->keep_no_more(data, bytes);
  }
  Status enroll(const DeviceMemory& memory) override { return fabric_->keep(memory); }
  void expel(const DeviceMemory& memory) noexcept override { fabric_->keep_no_more(memory); }
  void stop() noexcept override { port_.stop(); }

 private:
  void welcome(Guest& guest);
  Result<std::unique_ptr<Link>> receive(Guest& guest) noexcept;

  Acceptor& acceptor_;
  std::shared_ptr<Fabric> fabric_;
  tcp::Port port_;  // last: its threads use the rest
};

Status OfiTransport::open() {
  auto near = tcp::chosen_interfaces();
  if (!near) return near.status();
  auto choices = choose(near.value().front().ip);
  if (!choices) return choices.status();
  auto fabric = Fabric::open(std::move(choices).value());
  if (!fabric) return fabric.status();
  fabric_ = std::move(fabric).value();
  return port_.open();
}

std::string OfiTransport::refuses(const Card& self, const Card& peer) const {
  const Where where = where_of(peer);
  if (where.provider.empty()) return "it does not listen for ofi";
  const bool apart = self.machine != peer.machine;
  const Distance distance = apart                  ? Distance::Apart
                            : self.pid == peer.pid ? Distance::SameProcess
                                                   : Distance::SameMachine;
  const std::string why =
      mismatch(fabric_->library(), fabric_->provider(), where.provider, distance);
  return why.empty() ? port_.refuses(where.doors, apart) : why;
}

Result<std::unique_ptr<Link>> OfiTransport::connect(const Card& peer, Deadline deadline) {
  auto met = port_.connect(where_of(peer).doors, peer.uuid, deadline);
  if (!met) return met.status();
  const Deadline soon(std::min(deadline.at(), Deadline::after(kMeetSeconds).at()));
  return settle(fabric_, std::move(met.value().fd), met.value().description, soon);
}

// Throws nothing: a reservation must be answered whatever happens.
Result<std::unique_ptr<Link>> OfiTransport::receive(Guest& guest) noexcept {
  try {
    if (Status said = guest.decide(wire::Verdict::Accepted); !said.ok()) return said;
    tcp::configure(guest.fd());
    const std::string description = tcp::describe(guest.fd());
    return settle(fabric_, guest.release(), description, Deadline::after(kMeetSeconds));
  } catch (const std::exception& problem) {
    return Status(Code::System, problem.what());
  }
}

void OfiTransport::welcome(Guest& guest) {
  const std::string uuid = guest.uuid();
  if (!acceptor_.reserve(uuid)) {
    static_cast<void>(guest.decide(wire::Verdict::Duplicate, "a connection exists or is coming"));
    return;
  }
  auto link = receive(guest);
  if (link) {
    acceptor_.accepted({uuid, std::move(link).value()});
    return;
  }
  acceptor_.abandoned(uuid);
  HCCOMM_LOG(Info, "ofi: a peer's connection failed: ", link.status().text());
}

Result<std::unique_ptr<Transport>> open_ofi(const Identity& identity, Acceptor& acceptor) {
  if (std::string why = no_reason_to_load(); !why.empty()) {
    return Status(Code::Unavailable, "ofi: " + why);
  }
  auto transport = std::make_unique<OfiTransport>(identity, acceptor);
  Status status = transport->open();
  if (status.ok()) return std::unique_ptr<Transport>(std::move(transport));
  if (config::is_set("HCCOMM_OFI_PROVIDER")) {
    log::write_once(log::Level::Warn, "ofi/" + status.text(),
                    status.text() + "; links take another transport");
  }
  return status;
}

}  // namespace
}  // namespace ofi

Builtin ofi_transport() {
  return {"ofi", "RDMA fabrics through libfabric", 50, ofi::open_ofi, ofi::survey};
}

}  // namespace hccomm::transport
