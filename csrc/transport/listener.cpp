// SPDX-License-Identifier: Apache-2.0
#include "transport/listener.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>

#include "base/log.hpp"
#include "base/worded.hpp"
#include "transport/handshake_io.hpp"

namespace hccomm::transport {

static constexpr std::size_t kMaxSources = 64;  // strangers named in the log
static constexpr int kShortagePauseMs = 50;     // before accept() is tried again

// Without the port: one line per host, not per connection.
static std::string source_of(const sockaddr_storage& peer, int fd) {
  char name[INET6_ADDRSTRLEN] = "?";
  if (peer.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(peer).sin_addr, name, sizeof name);
    return name;
  }
  if (peer.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr, name, sizeof name);
    return name;
  }
  ucred who{};
  socklen_t bytes = sizeof who;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) == 0) {
    return text("a process of user ", who.uid);
  }
  return "an unknown local process";
}

Status Guest::decide(wire::Verdict verdict, std::string_view why) {
  decided_ = true;
  handshake_.decide(verdict, why);
  return run_handshake(fd_.get(), handshake_, deadline_);
}

Result<std::unique_ptr<Tls>> Guest::encrypt() {
  if (!terms_.encrypts) return std::unique_ptr<Tls>();
  return Tls::open(fd_.get(), wire::Role::Acceptor, tls_secret(handshake_),
                   tls_options(terms_, handshake_), deadline_);
}

Listener::Listener(UniqueFd socket, wire::Terms terms, Welcome welcome)
    : socket_(std::move(socket)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      terms_(std::move(terms)),
      welcome_(std::move(welcome)) {
  if (const int err = errno; !wake_) throw Error(Status::from_errno(err, "listener: eventfd"));
  fcntl(socket_.get(), F_SETFL, fcntl(socket_.get(), F_GETFL) | O_NONBLOCK);
  thread_ = std::thread([this] { accept_loop(); });
}

void Listener::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const Visit& visit : visits_) {
      if (visit.fd >= 0) shutdown(visit.fd, SHUT_RDWR);
    }
  }
  eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
  reap(true);
  socket_.reset();
}

void Listener::accept_loop() noexcept {
  for (;;) {
    pollfd entries[2] = {{socket_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (poll(entries, 2, -1) < 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(kShortagePauseMs));
      continue;
    }
    if (entries[1].revents != 0) return;
    reap(false);
    if (entries[0].revents != 0) accept_one();
  }
}

// Without the memory to take a connection, or to say so, it is dropped: who dials tries again.
void Listener::accept_one() noexcept try {
  sockaddr_storage peer{};
  socklen_t bytes = sizeof peer;
  UniqueFd fd(accept4(socket_.get(), reinterpret_cast<sockaddr*>(&peer), &bytes,
                      SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (const int err = errno; !fd) {
    if (err != EMFILE && err != ENFILE && err != ENOBUFS && err != ENOMEM) return;
    log::write_once(log::Level::Warn, "listener/" + terms_.transport + "/files",
                    terms_.transport + ": " +
                        Status::from_errno(err, "a connection cannot be accepted").text());
    pollfd entry{wake_.get(), POLLIN, 0};
    poll(&entry, 1, kShortagePauseMs);
    return;
  }
  const std::lock_guard lock(mutex_);
  if (stopping_ || !make_room()) return;
  try {
    std::list<Visit> one(1);
    Visit& visit = one.front();
    visit.fd = fd.get();
    visit.source = source_of(peer, fd.get());
    visit.thread = std::thread(
        [this, &visit, own = std::move(fd)]() mutable { receive(visit, std::move(own)); });
    visits_.splice(visits_.end(), one);
  } catch (const std::exception& problem) {  // no memory or no thread
    log::write_once(log::Level::Warn, "listener/" + terms_.transport + "/threads",
                    terms_.transport + ": a connection is dropped: " + problem.what());
  }
} catch (const std::exception&) {
}

// With all places taken, the guest who has been silent for longest leaves, or else the oldest: who
// speaks for good is through in a moment. False while those that were sent away are still going.
bool Listener::make_room() noexcept {
  const auto staying = std::ranges::count_if(visits_, [](const Visit& each) { return !each.over; });
  if (staying < kMaxPending) return true;
  if (visits_.size() >= 2 * kMaxPending) return false;
  Visit* chosen = nullptr;
  for (Visit& each : visits_) {
    if (each.fd < 0 || each.leaving) continue;
    if (chosen == nullptr || (chosen->spoke && !each.spoke)) chosen = &each;
  }
  if (chosen == nullptr) return false;
  chosen->leaving = true;
  shutdown(chosen->fd, SHUT_RDWR);
  return true;
}

// stop() leaves the connection alone from now on.
void Listener::uncut(Visit& visit) noexcept {
  const std::lock_guard lock(mutex_);
  visit.fd = -1;
}

Status Listener::await_first_word(Visit& visit, const Guest& guest) noexcept {
  pollfd entry{guest.fd(), POLLIN, 0};
  while (poll(&entry, 1, guest.deadline().left_ms()) <= 0) {
    if (!guest.deadline().passed()) continue;
    return worded(Code::Timeout,
                  []() -> Status { return {Code::Timeout, "handshake: the peer said nothing"}; });
  }
  const std::lock_guard lock(mutex_);
  visit.spoke = true;
  return {};
}

void Listener::receive(Visit& visit, UniqueFd socket) noexcept {
  {
    UniqueFd fd(std::move(socket));  // closed before the visit is over
    std::unique_ptr<Guest> guest;  // outlives the handlers below: stop() never cuts a reused number
    try {
      guest.reset(new Guest(std::move(fd), terms_, Deadline::after(kHandshakeSeconds)));
      Status status = await_first_word(visit, *guest);
      if (status.ok()) status = run_handshake(guest->fd(), guest->handshake_, guest->deadline());
      uncut(visit);
      if (status.ok()) {
        welcome_(*guest);
        if (!guest->decided_ && guest->fd_) status = guest->decide(wire::Verdict::Refused);
      }
      if (!status.ok()) report(visit.source, status.text());
    } catch (const std::exception& problem) {
      uncut(visit);
      report(visit.source, problem.what());
    }
  }
  const std::lock_guard lock(mutex_);
  visit.over = true;
}

// Joins the threads that are through (all: every one, which ends soon as its socket was cut).
void Listener::reap(bool all) noexcept {
  std::list<Visit> over;
  {
    const std::lock_guard lock(mutex_);
    for (auto each = visits_.begin(); each != visits_.end();) {
      const auto next = std::next(each);
      if (all || each->over) over.splice(over.end(), visits_, each);
      each = next;
    }
  }
  for (Visit& visit : over) visit.thread.join();
}

void Listener::report(const std::string& source, std::string_view reason) noexcept try {
  const std::lock_guard lock(mutex_);
  if (stopping_ || sources_.size() >= kMaxSources || !sources_.insert(source).second) return;
  HCCOMM_LOG(Warn, terms_.transport, ": a connection from ", source, " was dropped: ", reason,
             sources_.size() == kMaxSources ? " (further sources are not reported)" : "");
} catch (const std::exception&) {  // no memory to say so
}

}  // namespace hccomm::transport
