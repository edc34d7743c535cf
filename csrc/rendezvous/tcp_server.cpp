// SPDX-License-Identifier: Apache-2.0
#include "rendezvous/tcp_server.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

#include "base/log.hpp"
#include "rendezvous/store.hpp"

namespace hccomm::rendezvous {

static constexpr std::size_t kMaxClients = 4096;
static constexpr std::size_t kMaxHeld = std::size_t{1} << 30;  // bytes of values, all clients
static constexpr auto kSilence = std::chrono::seconds(2);      // from accept to Hello
static constexpr auto kPause = std::chrono::milliseconds(50);  // when descriptors have run out
static constexpr std::size_t kChunk = 64 * 1024;
static constexpr std::size_t kMaxRankDigits = 10;

static std::string name_of(const sockaddr_storage& peer) {
  char host[NI_MAXHOST] = "?";
  getnameinfo(reinterpret_cast<const sockaddr*>(&peer), sizeof peer, host, sizeof host, nullptr, 0,
              NI_NUMERICHOST);
  return host;
}

// A socket that listens at `entry`, or -1 with errno set.
static UniqueFd listen_at(const addrinfo& entry) {
  UniqueFd fd(socket(entry.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!fd) return fd;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (entry.ai_family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  }
  if (bind(fd.get(), entry.ai_addr, entry.ai_addrlen) == 0 && listen(fd.get(), 4096) == 0)
    return fd;
  const int err = errno;
  fd.reset();
  errno = err;
  return fd;
}

static Status cannot_serve(const Endpoint& at, int err) {
  const std::string what = text("rendezvous: rank 0 cannot serve ", describe(at));
  if (err == EADDRINUSE) {
    return {Code::Unavailable, text(what, ": port ", at.port,
                                    " is in use; choose a free port, and see whether an "
                                    "earlier job or a second rank 0 still runs on this machine")};
  }
  if (err == EADDRNOTAVAIL) {
    return {Code::InvalidArgument,
            text(what, ": ", at.host,
                 " is no address of this machine; start rank 0 there, or give "
                 "the address of the machine where rank 0 runs")};
  }
  return {Code::System, Status::from_errno(err, what).text() +
                            (err == EACCES ? "; choose a port from 1024 to 65535" : "")};
}

static Endpoint address_of(int fd) {
  sockaddr_storage self{};
  socklen_t bytes = sizeof self;
  char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "0";
  getsockname(fd, reinterpret_cast<sockaddr*>(&self), &bytes);
  getnameinfo(reinterpret_cast<const sockaddr*>(&self), bytes, host, sizeof host, port, sizeof port,
              NI_NUMERICHOST | NI_NUMERICSERV);
  return {host, std::atoi(port)};
}

static bool is_loopback(const std::string& host) {
  return host.starts_with("127.") || host == "::1" || host == "localhost";
}

Result<std::unique_ptr<TcpServer>> TcpServer::start(const Endpoint& at, const Credentials& with) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  const int error = getaddrinfo(at.host.c_str(), std::to_string(at.port).c_str(), &hints, &found);
  if (error != 0) {
    return Status(Code::InvalidArgument, text("rendezvous: rank 0 cannot serve ", describe(at),
                                              ": the name is unknown here (", gai_strerror(error),
                                              "); give an address of this machine"));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, freeaddrinfo);
  UniqueFd fd;
  int err = 0;
  for (const addrinfo* entry = found; entry != nullptr && !fd; entry = entry->ai_next) {
    fd = listen_at(*entry);
    if (!fd && err != EADDRINUSE) err = errno;
  }
  if (!fd) return cannot_serve(at, err);
  const Endpoint bound = address_of(fd.get());
  if (is_loopback(bound.host) && !is_loopback(at.host)) {
    HCCOMM_LOG(Warn, "rendezvous: ", describe(at), " is the loopback address ", bound.host,
               " on this machine: ranks on other machines cannot reach it; give another address");
  }
  try {
    return std::unique_ptr<TcpServer>(new TcpServer(std::move(fd), bound, with));
  } catch (const Error& failure) {
    return failure.status();
  } catch (const std::exception& failure) {  // no thread, no memory
    return Status(Code::System,
                  text("rendezvous: rank 0 cannot serve ", describe(at), ": ", failure.what()));
  }
}

TcpServer::TcpServer(UniqueFd listener, Endpoint bound, Credentials with)
    : bound_(std::move(bound)),
      with_(std::move(with)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      listener_(std::move(listener)) {
  epoll_event wake{EPOLLIN, {.fd = wake_.get()}}, door{EPOLLIN, {.fd = listener_.get()}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &wake) != 0 ||
      epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &door) != 0) {
    const int err = errno;
    throw Error(Status::from_errno(err, "rendezvous: epoll for the store of rank 0"));
  }
  thread_ = std::thread([this] { serve(); });
}

TcpServer::~TcpServer() { finish(Deadline::after(Seconds(0))); }

void TcpServer::finish(Deadline deadline) noexcept {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
    finish_by_ = deadline;
  }
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

void TcpServer::serve() noexcept {
  for (bool ended = false; !ended;) {
    try {
      ended = over();
      if (!ended) turn();
    } catch (const std::exception& failure) {  // no memory: what is in hand is lost, no more
      log::write(log::Level::Error, failure.what());
    }
  }
  guests_.clear();
  listener_.reset();
}

bool TcpServer::over() {
  const std::lock_guard lock(mutex_);
  if (!finishing_) return false;
  listener_.reset();           // epoll forgets it, too
  expel_silent(Clock::now());  // all ranks have said Hello: the others are no ranks
  return guests_.empty() || finish_by_.passed();
}

void TcpServer::turn() {
  int timeout_ms = unproven_ > 0 ? 500 : -1;
  if (!listener_) {
    const std::lock_guard lock(mutex_);
    timeout_ms = finish_by_.left_ms(500);
  } else if (Clock::now() < paused_until_) {
    timeout_ms = Deadline(paused_until_).left_ms(50);
  }
  epoll_event events[64];
  const int ready = epoll_wait(epoll_.get(), events, 64, timeout_ms);
  bool door = false;
  for (int each = 0; each < ready; ++each) {
    const int fd = events[each].data.fd;
    if (fd == wake_.get()) {
      eventfd_t count = 0;
      eventfd_read(fd, &count);
    } else if (fd == listener_.get()) {
      door = true;
    } else if (const auto guest = guests_.find(fd); guest != guests_.end()) {
      if (on_event(guest->second) == Fate::Leaves) drop(fd);
    }
  }
  expel_silent(Clock::now() - kSilence);
  if (listener_ && paused_until_ != Clock::time_point{} && Clock::now() >= paused_until_) {
    paused_until_ = {};
    epoll_event event{EPOLLIN, {.fd = listener_.get()}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
  }
  if (door) admit();  // after the events: no descriptor is used anew among them
}

void TcpServer::pause() {
  paused_until_ = Clock::now() + kPause;
  epoll_event event{0, {.fd = listener_.get()}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
}

void TcpServer::admit() {
  for (int each = 0; each < 64; ++each) {
    if (!make_room()) return pause();
    sockaddr_storage peer{};
    socklen_t bytes = sizeof peer;
    UniqueFd fd(accept4(listener_.get(), reinterpret_cast<sockaddr*>(&peer), &bytes,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (const int err = errno; !fd) {
      if (err != EMFILE && err != ENFILE && err != ENOBUFS && err != ENOMEM) return;
      log::write_once(log::Level::Warn, "store/files",
                      Status::from_errno(err, "rendezvous: the store cannot admit a rank").text());
      return pause();
    }
    if (guests_.size() >= kMaxClients) {
      log::write_once(log::Level::Warn, "store/full",
                      text("rendezvous: ", describe(bound_), " serves ", kMaxClients,
                           " connections and admits no more; use the launcher's store"));
      continue;
    }
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const int raw = fd.get();
    Guest& guest = guests_[raw];
    guest.stream = transport::ByteStream(std::move(fd));
    if (!with_.key.empty()) guest.shaking = await_proof();
    guest.source = name_of(peer);
    guest.since = Clock::now();
    ++unproven_;
    if (!watch(guest, true)) drop(raw);
  }
}

// Who connects and says nothing holds a place: those that came before `limit` give it back.
void TcpServer::expel_silent(Clock::time_point limit) {
  if (unproven_ == 0) return;
  for (auto each = guests_.begin(); each != guests_.end();) {
    const auto next = std::next(each);
    if (!each->second.proven && each->second.since < limit) {
      complain(each->second, "it said nothing");
      drop(each->first);
    }
    each = next;
  }
}

static std::shared_ptr<const std::string> text_of(int rank) {
  return std::make_shared<const std::string>(std::to_string(rank));
}

void TcpServer::drop(int fd) {
  const auto each = guests_.find(fd);
  stop_waiting(each->second);
  held_bytes_ -= each->second.in.size();
  if (!each->second.proven) --unproven_;
  const int rank = each->second.leaves ? -1 : each->second.rank;
  guests_.erase(each);
  if (rank >= 0) lose(rank);
}

// The process of that rank has gone without a word. Rank 0 hears of it, unless another process has
// the rank, and tells the others: who judged alone might leave a meeting that the rest complete.
void TcpServer::lose(int rank) {
  for (const auto& [fd, guest] : guests_) {
    if (guest.rank == rank) return;
  }
  lost_.insert(rank);
  std::vector<int> waiting;
  for (const auto& [fd, guest] : guests_) {
    if (guest.rank == 0 && !guest.waits_for.empty()) waiting.push_back(fd);
  }
  for (const int fd : waiting) {
    Guest& guest = guests_.at(fd);
    stop_waiting(guest);
    (void)reply(guest, Answer::Lost, guest.wait_id, text_of(rank));
  }
}

void TcpServer::complain(const Guest& guest, const std::string& why) {
  log::write_once(log::Level::Warn, text("store/", bound_.port, "/", guest.source),
                  text("rendezvous: ", describe(bound_), " dropped a connection from ",
                       guest.source, ": ", why));
}

// Reads unless a reply is on its way: who takes no answers may ask no more questions.
bool TcpServer::watch(const Guest& guest, bool added) {
  const int fd = guest.stream.fd();
  const bool out = !guest.head.empty() || guest.wants_write;
  epoll_event event{out ? EPOLLOUT : EPOLLIN, {.fd = fd}};
  return epoll_ctl(epoll_.get(), added ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0;
}

TcpServer::Fate TcpServer::on_event(Guest& guest) {
  if (!guest.head.empty()) {
    if (flush(guest) == Fate::Leaves) return Fate::Leaves;
    if (!guest.head.empty()) return Fate::Stays;
  }
  if (guest.shaking) return shake(guest);
  if (guest.securing) return secure(guest);
  if (parse(guest) == Fate::Leaves) return Fate::Leaves;  // what came before a reply was due
  return receive(guest);
}

TcpServer::Fate TcpServer::receive(Guest& guest) {
  char chunk[kChunk];
  while (guest.head.empty()) {
    const iovec room{chunk, sizeof chunk};
    const ssize_t got = guest.stream.receive(&room, 1);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? Fate::Stays : Fate::Leaves;
    if (got == 0) return Fate::Leaves;
    if (held_bytes_ + static_cast<std::size_t>(got) > kMaxHeld) {
      complain(guest, text("the store holds its limit of ", kMaxHeld, " bytes"));
      return Fate::Leaves;
    }
    guest.in.append(chunk, static_cast<std::size_t>(got));
    held_bytes_ += static_cast<std::size_t>(got);
    if (parse(guest) == Fate::Leaves) return Fate::Leaves;
    if (!guest.stream.holds()) break;  // the descriptor tells of the rest
  }
  return Fate::Stays;
}

// Why no client sends this, or nullptr.
static const char* objection(const Request& request, bool proven) {
  if (request.version != kStoreVersion) {
    return "it speaks another version of the protocol; use builds of hccomm that talk to each "
           "other";
  }
  const bool hello = request.ask == Ask::Hello, quit = request.ask == Ask::Quit;
  if (!hello && !quit && request.ask != Ask::Set && request.ask != Ask::Get &&
      request.ask != Ask::Look) {
    return "it asked for what no client asks for";
  }
  if (hello == proven) return "it spoke out of turn";
  if (request.key_bytes > (hello ? kMaxRankDigits : kMaxKey) || (request.key_bytes == 0) != quit) {
    return "it sent a key of an impossible length";
  }
  if (request.value_bytes > (request.ask == Ask::Set ? kMaxValue : 0)) {
    return "it announced a value of an impossible length";
  }
  return nullptr;
}

TcpServer::Fate TcpServer::parse(Guest& guest) {
  while (guest.head.empty()) {
    const std::uint32_t magic = kStoreMagic;
    const std::size_t have = std::min(guest.in.size(), sizeof magic);
    if (std::memcmp(guest.in.data(), &magic, have) != 0) {
      return refuse(guest, guest.in, "it is no client of this store");
    }
    Request request;
    if (guest.in.size() < sizeof request) return Fate::Stays;
    std::memcpy(&request, guest.in.data(), sizeof request);
    if (const char* why = objection(request, guest.proven); why != nullptr) {
      complain(guest, why);
      return Fate::Leaves;
    }
    const std::size_t all = sizeof request + request.key_bytes + request.value_bytes;
    if (guest.in.size() < all) return Fate::Stays;
    const std::string key = guest.in.substr(sizeof request, request.key_bytes);
    std::string value = guest.in.substr(sizeof request + request.key_bytes, request.value_bytes);
    guest.in.erase(0, all);
    held_bytes_ -= all;
    if (handle(guest, request, key, std::move(value)) == Fate::Leaves) return Fate::Leaves;
  }
  return Fate::Stays;
}

TcpServer::Fate TcpServer::handle(Guest& guest, const Request& request, const std::string& key,
                                  std::string value) {
  stop_waiting(guest);
  switch (request.ask) {
    case Ask::Hello:
      guest.proven = true;
      --unproven_;
      if (std::from_chars(key.data(), key.data() + key.size(), guest.rank).ec != std::errc()) {
        guest.rank = -1;
      }
      lost_.erase(guest.rank);
      return reply(guest, Answer::Done, request.id);
    case Ask::Set: store(key, std::move(value)); return reply(guest, Answer::Done, request.id);
    case Ask::Get:
    case Ask::Look:
      if (const auto found = values_.find(key); found != values_.end()) {
        return reply(guest, Answer::Found, request.id, found->second);
      }
      if (request.ask == Ask::Look) return reply(guest, Answer::Absent, request.id);
      if (guest.rank == 0 && !lost_.empty())
        return reply(guest, Answer::Lost, request.id, text_of(*lost_.begin()));
      guest.waits_for = key;
      guest.wait_id = request.id;
      waiting_[key].insert(guest.stream.fd());
      return Fate::Stays;
    case Ask::Quit: guest.leaves = true; break;
  }
  return Fate::Leaves;
}

void TcpServer::store(const std::string& key, std::string value) {
  Value& place = values_[key];
  held_bytes_ += value.size();
  if (place) held_bytes_ -= place->size();
  place = std::make_shared<const std::string>(std::move(value));
  const auto waiters = waiting_.extract(key);
  if (waiters.empty()) return;
  for (const int fd : waiters.mapped()) {
    Guest& guest = guests_.at(fd);
    guest.waits_for.clear();
    // A waiter whose connection has broken is dropped when its own event comes.
    (void)reply(guest, Answer::Found, guest.wait_id, values_[key]);
  }
}

TcpServer::Fate TcpServer::reply(Guest& guest, Answer answer, std::uint32_t id, Value body) {
  Reply head;
  head.answer = answer;
  head.id = id;
  head.value_bytes = body ? static_cast<std::uint32_t>(body->size()) : 0;
  guest.head.assign(reinterpret_cast<const char*>(&head), sizeof head);
  guest.body = std::move(body);
  guest.sent = 0;
  return flush(guest);
}

// Sends what goes out now; watches for the rest.
TcpServer::Fate TcpServer::flush(Guest& guest) {
  const std::size_t head = guest.head.size(), all = head + (guest.body ? guest.body->size() : 0);
  while (guest.sent < all || guest.stream.unsent()) {
    const std::size_t in_body = guest.sent < head ? 0 : guest.sent - head;
    const iovec parts[2] = {
        {guest.head.data() + std::min(guest.sent, head), head - std::min(guest.sent, head)},
        {guest.body ? const_cast<char*>(guest.body->data()) + in_body : nullptr,
         all - head - in_body}};
    const ssize_t sent = guest.stream.send(parts, 2);
    if (sent > 0) guest.sent += static_cast<std::size_t>(sent);
    if (sent >= 0 || errno == EINTR) continue;
    if (errno != EAGAIN) return Fate::Leaves;
    watch(guest, false);
    return Fate::Stays;
  }
  guest.head.clear();
  guest.body.reset();
  watch(guest, false);
  return Fate::Stays;
}

void TcpServer::stop_waiting(Guest& guest) {
  if (guest.waits_for.empty()) return;
  const auto waiters = waiting_.find(guest.waits_for);
  if (waiters != waiting_.end()) {
    waiters->second.erase(guest.stream.fd());
    if (waiters->second.empty()) waiting_.erase(waiters);
  }
  guest.waits_for.clear();
}

}  // namespace hccomm::rendezvous
