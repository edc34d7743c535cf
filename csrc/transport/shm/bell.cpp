// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/bell.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/worded.hpp"

namespace hccomm::transport::shm {

static UniqueFd open_pidfd(pid_t pid) {
#ifdef SYS_pidfd_open
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
#else
  errno = ENOSYS;
  return UniqueFd();
#endif
}

static bool watch(int epoll, int fd) {
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.fd = fd;
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

Result<Bell> Bell::make(UniqueFd socket, pid_t peer) {
  Bell bell;
  bell.peer_ = peer;
  bell.socket_ = std::move(socket);
  if (peer > 0) bell.process_ = open_pidfd(peer);
  bell.epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  const bool watched = bell.epoll_ && watch(bell.epoll_.get(), bell.socket_.get()) &&
                       (!bell.process_ || watch(bell.epoll_.get(), bell.process_.get()));
  if (!watched) return Status::from_errno(errno, "shm: epoll");
  return bell;
}

void Bell::lose(const char* how, int err) noexcept {
  if (!gone_) {
    why_ = worded(Code::PeerLost, [&]() -> Status {
      const std::string process = text("process ", peer_);
      if (err != 0) return Status::from_errno(err, "connection to " + process);
      return {Code::PeerLost, process + how};
    });
  }
  gone_ = true;
}

void Bell::ring() noexcept {
  const char byte = 1;
  if (gone_ || send(socket_.get(), &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) return;
  // A full socket rings already. Of a broken one poll() learns in its own order: data first.
}

bool Bell::drain() noexcept {
  char bytes[64];
  bool rung = false;
  while (!gone_) {
    const ssize_t got = recv(socket_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    const int err = errno;
    if (got > 0) {
      rung = true;
      if (static_cast<std::size_t>(got) < sizeof bytes) break;
    } else if (got == 0) {
      lose(" has closed the connection or ended");
    } else if (err == EAGAIN) {
      break;
    } else if (err != EINTR) {
      lose("", err);
    }
  }
  return rung;
}

bool Bell::listen() noexcept {
  epoll_event events[2];
  const int count = gone_ ? 0 : epoll_wait(epoll_.get(), events, 2, 0);
  for (int i = 0; i < count; ++i) {
    if (process_ && events[i].data.fd == process_.get()) {
      lose(" has ended");
    } else {
      drain();
    }
  }
  return gone_;
}

}  // namespace hccomm::transport::shm
