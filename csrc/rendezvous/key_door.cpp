// SPDX-License-Identifier: Apache-2.0
#include "rendezvous/key_door.hpp"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <new>

#include "base/log.hpp"
#include "transport/handshake_io.hpp"
#include "wire/crypto.hpp"
#include "wire/key.hpp"

namespace hccomm::rendezvous {
namespace {

constexpr std::size_t kNameBytes = 32;
constexpr int kBacklog = 1024;
constexpr auto kBusyPause = std::chrono::milliseconds(5);

// A leading zero byte makes the name abstract: it ends with its last descriptor.
socklen_t fill(sockaddr_un& address, const std::string& name) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

// Whether the process at the other end runs as our user; who it is, for people.
bool ours(int fd, std::string& who) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) {
    who = Status::from_errno(errno, "SO_PEERCRED").text();
    return false;
  }
  who = text("process ", peer.pid, " of user ", peer.uid);
  return peer.uid == geteuid();
}

Status unreachable(const std::string& why) {
  return {Code::Unavailable,
          text("rendezvous: the job key of this host cannot be had from rank 0: ", why,
               "; give all ranks one (`hccomm keygen`, HCCOMM_KEY_FILE), or set HCCOMM_AUTH=off on "
               "all"),
          0};
}

}  // namespace

Result<std::unique_ptr<KeyDoor>> KeyDoor::open(std::string key) {
  std::string name;
  for (const char each : wire::random_bytes(kNameBytes / 2)) {
    const auto byte = static_cast<unsigned char>(each);
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  sockaddr_un address;
  const socklen_t bytes = fill(address, name);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  UniqueFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!socket || !stop || bind(socket.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0 ||
      listen(socket.get(), kBacklog) != 0) {
    return Status::from_errno(errno, "rendezvous: a Unix socket for the job key");
  }
  try {
    return std::unique_ptr<KeyDoor>(
        new KeyDoor(std::move(key), std::move(name), std::move(socket), std::move(stop)));
  } catch (const std::exception& failure) {  // no thread, no memory
    return Status(Code::System, text("rendezvous: the job key's thread: ", failure.what()));
  }
}

KeyDoor::KeyDoor(std::string key, std::string name, UniqueFd socket, UniqueFd stop)
    : key_(std::move(key)),
      name_(std::move(name)),
      socket_(std::move(socket)),
      stop_(std::move(stop)) {
  thread_ = std::thread([this] { serve(); });
}

KeyDoor::~KeyDoor() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void KeyDoor::serve() noexcept {
  for (;;) {
    pollfd entries[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(entries, 2, -1);
    if (entries[1].revents != 0) return;
    const UniqueFd guest(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!guest) {  // gone again, or no descriptor is left: who waits at the door stays there
      std::this_thread::sleep_for(kBusyPause);
      continue;
    }
    try {
      std::string who;
      if (!ours(guest.get(), who)) {
        log::write_once(log::Level::Warn, "door/" + who,
                        text("rendezvous: ", who, " asked for the job key and got none"));
        continue;
      }
    } catch (const std::bad_alloc&) {  // who it is takes words: it asks in vain
      continue;
    }
    // An empty socket buffer takes so little at once; who has left needs it no more.
    [[maybe_unused]] const auto sent =
        send(guest.get(), key_.data(), key_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

Result<std::string> fetch_key(const std::string& name, Deadline deadline) {
  if (name.size() != kNameBytes) return unreachable("what is in the store names no socket");
  sockaddr_un address;
  const socklen_t bytes = fill(address, name);
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Status::from_errno(errno, "rendezvous: a Unix socket for the job key");
  while (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0) {
    const int err = errno;
    if ((err != EAGAIN && err != EINTR) || deadline.passed()) {
      return unreachable(Status::from_errno(err, "connect to its socket").text());
    }
    std::this_thread::sleep_for(kBusyPause);  // its backlog is full
  }
  std::string who;
  if (!ours(fd.get(), who)) return unreachable(who + " listens in its place");
  std::string key(wire::kKeyBytes, '\0');
  const Status status = transport::receive_all(fd.get(), key.data(), key.size(), deadline);
  if (!status.ok()) return unreachable(status.text());
  return key;
}

}  // namespace hccomm::rendezvous
