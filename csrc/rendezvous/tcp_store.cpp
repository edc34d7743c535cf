// SPDX-License-Identifier: Apache-2.0
#include "rendezvous/tcp_store.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <thread>

#include "rendezvous/tcp_server.hpp"
#include "transport/byte_stream.hpp"
#include "transport/handshake_io.hpp"
#include "wire/crypto.hpp"

namespace hccomm::rendezvous {
namespace {

constexpr double kAttemptSeconds = 5;  // one connect(), one Hello
constexpr double kSetSeconds = 60;     // rank 0 takes a value at once, unless it is overrun
constexpr double kLookSeconds = 0.5;   // the answer that nothing is there
constexpr double kLingerSeconds = 1;   // the destructor's grace
constexpr auto kFirstPause = std::chrono::milliseconds(2);  // between attempts to connect
constexpr auto kLastPause = std::chrono::milliseconds(100);
constexpr std::size_t kChunk = 256 * 1024;

// One connection to the server; on rank 0 also the server.
//
// Owns:   the connection and what has come but was not asked for any more.
// Thread: one.
// Fails:  Timeout leaves it usable; after any other code it is not.
class TcpStore final : public Store {
 public:
  TcpStore(Endpoint at, transport::ByteStream stream)
      : at_(std::move(at)), stream_(std::move(stream)) {}
  ~TcpStore() override { finish(Deadline::after(Seconds(kLingerSeconds))); }

  void serve(std::unique_ptr<TcpServer> server) { server_ = std::move(server); }
  Status hello(int rank, Deadline deadline) {
    return ask(Ask::Hello, std::to_string(rank), {}, deadline).status;
  }

  Status set(const std::string& key, std::string value) override {
    if (Status status = check_bounds(key, value.size()); !status.ok()) return status;
    return ask(Ask::Set, key, value, Deadline::after(Seconds(kSetSeconds))).status;
  }

  Result<std::string> get(const std::string& key, Deadline deadline) override {
    if (Status status = check_bounds(key, 0); !status.ok()) return status;
    if (!deadline.passed()) {
      Outcome outcome = ask(Ask::Get, key, {}, deadline);
      if (outcome.status.ok() && outcome.answer == Answer::Lost) return lost(outcome.value);
      if (outcome.status.ok()) return std::move(outcome.value);
      if (outcome.status.code() != Code::Timeout) return outcome.status;
    }
    Outcome outcome = ask(Ask::Look, key, {}, Deadline::after(Seconds(kLookSeconds)));
    if (!outcome.status.ok()) return outcome.status;
    if (outcome.answer == Answer::Found) return std::move(outcome.value);
    return Status(Code::Timeout, text("store: \"", key, "\" is not there in time"));
  }

  void finish(Deadline deadline) noexcept override {
    if (stream_.fd() >= 0) {
      Request quit;
      quit.ask = Ask::Quit;
      const iovec bytes{&quit, sizeof quit};
      // A connection that takes no 16 bytes now is closed without them: that says the same.
      [[maybe_unused]] const auto sent = stream_.send(&bytes, 1);
      stream_ = {};
    }
    if (server_) server_->finish(deadline);
    server_.reset();
  }

 private:
  struct Outcome {
    Status status;
    Answer answer = Answer::Done;
    std::string value;
  };

  Outcome ask(Ask ask, const std::string& key, const std::string& value, Deadline deadline);
  bool take_reply(std::uint32_t id, Outcome& outcome);
  Status move_bytes();           // both ways, as far as they go now
  Status broken(int err) const;  // 0: closed
  Status lost(const std::string& rank) const;

  const Endpoint at_;
  transport::ByteStream stream_;
  std::unique_ptr<TcpServer> server_;
  std::string out_, in_;
  std::size_t out_sent_ = 0;
  std::uint32_t last_id_ = 0;
};

Status TcpStore::broken(int err) const {
  const std::string what = text("store ", describe(at_), ": the connection to rank 0");
  const char* next = "; see the output of rank 0, which serves this store";
  if (err == 0) return {Code::PeerLost, what + " was closed" + next, 0};
  const Status status = stream_.failed(err, what);
  return {status.code(), status.text() + next, 0};
}

Status TcpStore::lost(const std::string& rank) const {
  int number = -1;
  std::from_chars(rank.data(), rank.data() + rank.size(), number);
  return {Code::PeerLost,
          text("store ", describe(at_), ": rank ", number,
               " has ended before all ranks had met; see what it wrote"),
          number};
}

// Reads while it writes: a server that is sending to us does not read what we send.
Status TcpStore::move_bytes() {
  while (out_sent_ < out_.size() || stream_.unsent()) {
    const iovec rest{out_.data() + out_sent_, out_.size() - out_sent_};
    const ssize_t sent = stream_.send(&rest, 1);
    if (sent >= 0) {
      out_sent_ += static_cast<std::size_t>(sent);
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      return broken(errno);
    }
  }
  if (out_sent_ == out_.size() && !stream_.unsent()) {
    out_.clear();
    out_sent_ = 0;
  }
  const std::size_t had = in_.size();
  in_.resize(had + kChunk);
  const iovec room{in_.data() + had, kChunk};
  const ssize_t got = stream_.receive(&room, 1);
  const int err = errno;
  in_.resize(had + (got > 0 ? static_cast<std::size_t>(got) : 0));
  if (got == 0) return broken(0);
  if (got < 0 && err != EAGAIN && err != EINTR) return broken(err);
  return {};
}

// Takes replies off in_ until the one to `id`; earlier ones nobody waits for any more.
bool TcpStore::take_reply(std::uint32_t id, Outcome& outcome) {
  Reply reply;
  while (in_.size() >= sizeof reply) {
    std::memcpy(&reply, in_.data(), sizeof reply);
    if (reply.magic != kStoreMagic || reply.version != kStoreVersion ||
        reply.value_bytes > kMaxValue) {
      outcome.status = {Code::Unavailable,
                        text("store ", describe(at_),
                             ": what answers there is no hccomm store of this "
                             "version; give the address and port of rank 0, and no others' port")};
      return true;
    }
    const std::size_t all = sizeof reply + reply.value_bytes;
    if (in_.size() < all) return false;
    if (reply.answer == Answer::Refused) {
      outcome.status = {Code::Unavailable, text("store ", describe(at_), ": rank 0 refused: ",
                                                in_.substr(sizeof reply, reply.value_bytes))};
      return true;
    }
    if (reply.id == id) {
      outcome.answer = reply.answer;
      outcome.value = in_.substr(sizeof reply, reply.value_bytes);
    }
    in_.erase(0, all);
    if (reply.id == id) return true;
  }
  return false;
}

TcpStore::Outcome TcpStore::ask(Ask ask, const std::string& key, const std::string& value,
                                Deadline deadline) {
  Outcome outcome;
  if (stream_.fd() < 0) {
    outcome.status = broken(0);
    return outcome;
  }
  Request request;
  request.ask = ask;
  request.key_bytes = static_cast<std::uint16_t>(key.size());
  request.id = ++last_id_;
  request.value_bytes = static_cast<std::uint32_t>(value.size());
  out_.append(reinterpret_cast<const char*>(&request), sizeof request).append(key).append(value);
  for (;;) {
    Status moved = move_bytes();
    if (take_reply(request.id, outcome)) return outcome;
    if (!moved.ok()) {
      stream_ = {};
      outcome.status = std::move(moved);
      return outcome;
    }
    if (deadline.passed()) {
      outcome.status = {Code::Timeout,
                        text("store ", describe(at_), ": rank 0 gave no answer about \"", key,
                             "\" in time; see whether it still runs")};
      return outcome;
    }
    if (stream_.holds()) continue;
    pollfd entry{stream_.fd(), static_cast<short>(out_.empty() ? POLLIN : POLLIN | POLLOUT), 0};
    poll(&entry, 1, deadline.left_ms());
  }
}

// On loopback a socket can be given the very port that it dials, and then meets itself.
bool met_itself(int fd) {
  sockaddr_storage self{}, peer{};
  socklen_t self_bytes = sizeof self, peer_bytes = sizeof peer;
  getsockname(fd, reinterpret_cast<sockaddr*>(&self), &self_bytes);
  getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_bytes);
  return self_bytes == peer_bytes && std::memcmp(&self, &peer, self_bytes) == 0;
}

// A connected socket, or -1 with errno set.
UniqueFd dial_one(const addrinfo& entry, Deadline deadline) {
  UniqueFd fd(socket(entry.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fd;
  int err = connect(fd.get(), entry.ai_addr, entry.ai_addrlen) == 0 ? 0 : errno;
  while (err == EINPROGRESS || err == EINTR) {
    pollfd waiting{fd.get(), POLLOUT, 0};
    const int ready = poll(&waiting, 1, deadline.left_ms());
    socklen_t bytes = sizeof err;
    if (ready > 0) getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &bytes);
    if (ready <= 0 && deadline.passed()) err = ETIMEDOUT;
  }
  if (err == 0 && met_itself(fd.get())) err = ECONNREFUSED;
  if (err == 0) {
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
  }
  fd.reset();
  errno = err;
  return fd;
}

// Every address of the name in turn. `why` says what was wrong with the last.
UniqueFd dial(const Endpoint& at, Deadline deadline, std::string& why) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  const int error = getaddrinfo(at.host.c_str(), std::to_string(at.port).c_str(), &hints, &found);
  if (error != 0) {
    why = text("the name is unknown here (", gai_strerror(error), ")");
    return {};
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, freeaddrinfo);
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const double seconds = std::min(kAttemptSeconds, deadline.left().count());
    UniqueFd fd = dial_one(*entry, Deadline::after(Seconds(seconds)));
    if (fd) return fd;
    why = Status::from_errno(errno, "the last attempt").text();
  }
  return {};
}

// The connection, once both ends have proved what the credentials ask for.
Result<transport::ByteStream> meet_server(UniqueFd fd, const Endpoint& at, const Credentials& with,
                                          Deadline deadline) {
  if (with.key.empty()) return transport::ByteStream(std::move(fd));
  wire::Terms terms{kStoreJob, with.key, wire::random_bytes(16), kStoreUuid, kStoreTransport, {}};
  terms.encrypts = with.encrypts;
  terms.kernel_tls = with.encrypts && transport::kernel_tls();
  auto greeting = transport::greet(fd.get(), terms, deadline, true);
  if (!greeting) {
    const Status& why = greeting.status();
    return Status(why.code(), text("store ", describe(at), ": ", why.text()), 0);
  }
  return transport::ByteStream(std::move(fd), std::move(greeting.value().tls));
}

Status check(const Credentials& with) {
  if (!with.encrypts) return {};
  if (with.key.empty()) {
    return {Code::InvalidArgument, "rendezvous: a store is encrypted under a job key; give one"};
  }
  return transport::tls_available();
}

}  // namespace

Result<std::unique_ptr<Store>> open_tcp_store(const Endpoint& at, int rank, Deadline deadline,
                                              const Credentials& with) {
  if (Status status = check(with); !status.ok()) return status;
  std::unique_ptr<TcpServer> server;
  if (rank == 0) {
    Result<std::unique_ptr<TcpServer>> started = TcpServer::start(at, with);
    if (!started) return started.status();
    server = std::move(started).take();
  }
  const Endpoint to = server ? server->bound() : at;
  std::string why = "no attempt was made";
  for (auto pause = kFirstPause;; pause = std::min(pause * 2, kLastPause)) {
    if (UniqueFd fd = dial(to, deadline, why)) {
      const double seconds = std::min(kAttemptSeconds, deadline.left().count());
      const Deadline soon = Deadline::after(Seconds(seconds));
      auto stream = meet_server(std::move(fd), to, with, soon);
      Status status = stream.ok() ? Status() : stream.status();
      std::unique_ptr<TcpStore> store;
      if (status.ok()) {
        store = std::make_unique<TcpStore>(at, std::move(stream).value());
        status = store->hello(rank, soon);
      }
      if (status.ok()) {
        store->serve(std::move(server));
        return std::unique_ptr<Store>(std::move(store));
      }
      if (status.code() == Code::Unavailable) return status;
      why = status.text();  // an earlier job's server that is ending, or an overrun one
    }
    if (deadline.left() <= pause) break;
    std::this_thread::sleep_for(pause);
  }
  return Status(
      Code::Timeout,
      text("rendezvous: rank ", rank, " cannot reach rank 0 at ", describe(at), ": ", why,
           "; see whether rank 0 has started, whether the address is that of its machine, "
           "and whether a firewall is between"),
      0);
}

}  // namespace hccomm::rendezvous
