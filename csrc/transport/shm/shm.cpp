// SPDX-License-Identifier: Apache-2.0
//
// The shm transport: two processes of one machine, the fastest road there is between two cores.
// They meet on an abstract Unix socket with a random name, shake hands like everyone else, and swap
// rings (exchange). Nothing of it has a name in a file system, so no crash leaves anything behind.
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/log.hpp"
#include "transport/handshake_io.hpp"
#include "transport/listener.hpp"
#include "transport/shm/exchange.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

namespace {

constexpr int kBacklog = 1024;
constexpr std::size_t kNameBytes = sizeof("hccomm-") - 1 + 32;

Result<std::string> random_name() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
    return Status::from_errno(errno, "shm: getrandom");
  }
  std::string name = "hccomm-";
  for (const unsigned char byte : bytes) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

// A leading zero byte makes the name abstract: it ends with its last descriptor.
socklen_t fill(sockaddr_un& address, const std::string& name) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

Result<UniqueFd> listen_at(const std::string& name) {
  sockaddr_un address;
  const socklen_t bytes = fill(address, name);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket || bind(socket.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0 ||
      listen(socket.get(), kBacklog) != 0) {
    return Status::from_errno(errno, "shm: listen on an abstract Unix socket");
  }
  return socket;
}

Result<UniqueFd> connect_to(const std::string& name, Deadline deadline) {
  sockaddr_un address;
  const socklen_t bytes = fill(address, name);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return Status::from_errno(errno, "shm: socket");
  // With the backlog full, connect() waits; the send timeout bounds that.
  const int left_ms = deadline.left_ms(60'000);
  const timeval limit = {left_ms / 1000, left_ms % 1000 * 1000 + 1};
  setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  while (connect(socket.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0) {
    const int err = errno;  // before text() may change it
    if (err == EINTR && !deadline.passed()) continue;
    if (err == EAGAIN) return Status(Code::Timeout, "shm: the peer's listener is overrun");
    if (err == ECONNREFUSED) {
      return Status(Code::PeerLost, "shm: nobody listens at the peer's address; it has ended");
    }
    return Status::from_errno(err, "shm: connect");
  }
  return socket;
}

Result<std::unique_ptr<Shared>> share_under(const shm::Wishes& wishes, std::size_t bytes) {
  if (wishes.pull) return shm::share(bytes);
  return Status(Code::Unavailable, "HCCOMM_CMA=off: peers do not reach this process's memory");
}

class ShmTransport final : public Transport {
 public:
  ShmTransport(const Identity& identity, Acceptor& acceptor, std::string name, UniqueFd socket,
               const shm::Wishes& wishes)
      : identity_(identity),
        acceptor_(acceptor),
        name_(std::move(name)),
        wishes_(wishes),
        listener_(std::move(socket), terms_for({}), [this](Guest& guest) { welcome(guest); }) {}
  ~ShmTransport() override { stop(); }

  const char* name() const noexcept override { return "shm"; }
  Address address() const override { return name_; }
  void stop() noexcept override { listener_.stop(); }
  Result<std::unique_ptr<Shared>> share(std::size_t bytes) override {
    return share_under(wishes_, bytes);
  }

  std::string refuses(const Card& self, const Card& peer) const override {
    if (self.host != peer.host) return text("it is on host ", peer.host, ", this is ", self.host);
    if (self.machine != peer.machine) {
      return "it is on another machine, or in another network or process-id namespace";
    }
    const std::string address = address_of(peer);
    if (address.empty()) return "it does not listen for shm";
    return address.size() == kNameBytes
               ? ""
               : text("its shm address has ", address.size(), " bytes instead of ", kNameBytes);
  }

  Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline deadline) override {
    const std::string address = address_of(peer);
    if (address.size() != kNameBytes) {
      return Status(Code::Unavailable, "shm: the peer's card has no usable shm address");
    }
    auto socket = connect_to(address, deadline);
    if (!socket) return socket.status();
    const int fd = socket.value().get();
    auto process = shm::checked_peer(fd);
    if (!process) return process.status();
    auto greeting = greet(fd, terms_for(peer.uuid), deadline);
    if (!greeting) return greeting.status();
    if (greeting.value().verdict != wire::Verdict::Accepted) {
      const bool duplicate = greeting.value().verdict == wire::Verdict::Duplicate;
      return Status(duplicate ? Code::Aborted : Code::Unavailable,
                    text("shm: the peer refused: ", greeting.value().text));
    }
    auto agreed = shm::exchange(fd, process.value(), wishes(), deadline);
    if (!agreed) return agreed.status();
    return shm::make_link(std::move(socket).value(), process.value(), std::move(agreed).value());
  }

 private:
  static std::string address_of(const Card& card) {
    for (const auto& [transport, address] : card.addresses) {
      if (transport == "shm") return address;
    }
    return {};
  }

  wire::Terms terms_for(const std::string& peer_uuid) const {
    return {identity_.job, identity_.key, identity_.uuid, peer_uuid, "shm", {}, identity_.encrypts};
  }

  // Runs in a thread of the listener.
  void welcome(Guest& guest) {
    const std::string uuid = guest.uuid();
    auto process = shm::checked_peer(guest.fd());
    if (!process) {
      report(guest.decide(wire::Verdict::Refused, process.status().text()));
      return;
    }
    if (!acceptor_.reserve(uuid)) {
      report(guest.decide(wire::Verdict::Duplicate, "there is a link already"));
      return;
    }
    auto link = settle(guest, process.value());
    if (link) {
      acceptor_.accepted({uuid, std::move(link).value()});
    } else {
      acceptor_.abandoned(uuid);
      report(link.status());
    }
  }

  // Throws nothing: a reservation must be answered whatever happens.
  Result<std::unique_ptr<Link>> settle(Guest& guest, pid_t process) noexcept {
    try {
      if (Status said = guest.decide(wire::Verdict::Accepted); !said.ok()) return said;
      auto agreed = shm::exchange(guest.fd(), process, wishes(), guest.deadline());
      if (!agreed) return agreed.status();
      return shm::make_link(guest.release(), process, std::move(agreed).value());
    } catch (const std::exception& problem) {
      return Status(Code::System, problem.what());
    }
  }

  // The commons are made for the first peer. Without them each ring has its own copies.
  shm::Wishes wishes() {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(asked_, true)) {
      auto made = shm::Commons::make();
      if (made) commons_ = std::move(made).value();
    }
    shm::Wishes all = wishes_;
    all.commons = commons_;
    return all;
  }

  static void report(const Status& status) {
    if (!status.ok()) HCCOMM_LOG(Info, "shm: a peer's connection failed: ", status.text());
  }

  const Identity identity_;
  Acceptor& acceptor_;
  const std::string name_;
  const shm::Wishes wishes_;
  std::mutex mutex_;  // guards the next two
  bool asked_ = false;
  std::shared_ptr<shm::Commons> commons_;
  Listener listener_;  // last: its threads use the rest
};

Result<std::unique_ptr<Transport>> open_shm(const Identity& identity, Acceptor& acceptor) {
  const shm::Wishes wishes = shm::configured_wishes();
  auto name = random_name();
  if (!name) return name.status();
  auto socket = listen_at(name.value());
  if (!socket) return socket.status();
  return std::unique_ptr<Transport>(std::make_unique<ShmTransport>(
      identity, acceptor, name.value(), std::move(socket).value(), wishes));
}

}  // namespace

Builtin shm_transport() {
  return {"shm",
          "processes of one machine, through shared memory",
          90,
          open_shm,
          nullptr,
          true,
          [](std::size_t bytes) { return share_under(shm::configured_wishes(), bytes); }};
}

}  // namespace hccomm::transport
