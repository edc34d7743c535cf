// SPDX-License-Identifier: Apache-2.0
//
// How fast one link is between two processes of this machine: half a round trip of a small frame,
// and the rate of a one-way stream of the link's own frames, received in place and in pieces. Best
// and median of some rounds, as the machine may be shared.
//
//   link_pingpong [transport = all] [bytes = 8] [rounds = 20]
//
// A link that pulls is also timed by message size: sent through it, and pulled in a single copy,
// each message answered before the next, as a rendezvous would be.
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/machine.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

using namespace hccomm;
using namespace hccomm::transport;

namespace {

constexpr int kTrips = 2000;                        // of a round
constexpr std::size_t kStreamBytes = 256ull << 20;  // of a round
constexpr Seconds kPatience{60};

struct Taker final : Acceptor {
  bool reserve(const std::string&) override { return true; }
  void abandoned(const std::string&) override {}
  void accepted(Accepted peer) override {
    const std::lock_guard lock(mutex);
    link = std::move(peer.link);
    changed.notify_all();
  }
  std::unique_ptr<Link> wait() {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, kPatience, [&] { return link != nullptr; });
    return std::move(link);
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::unique_ptr<Link> link;
};

// Counts payload bytes and frames, and puts large frames to one place.
struct Counter final : Inbox {
  explicit Counter(std::size_t room) : place(room) {}
  void deliver(const wire::Header& header, const std::byte* payload) override {
    std::memcpy(place.data(), payload, header.length);
    ++frames;
  }
  Placement begin(const wire::Header&) override {
    at = 0;
    return {pieces ? nullptr : place.data()};
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    std::memcpy(place.data() + at, piece, bytes);
    at += bytes;
  }
  void end() override { ++frames; }
  std::vector<std::byte> place;
  std::size_t frames = 0, at = 0;
  bool pieces = false;
};

[[noreturn]] void quit(const std::string& why) {
  std::fprintf(stderr, "link_pingpong: %s\n", why.c_str());
  _exit(1);
}

class Side {
 public:
  Side(std::unique_ptr<Link> link, std::size_t bytes)
      : link_(std::move(link)), inbox_(std::max(bytes, link_->frame_bytes())) {}

  void send(std::size_t bytes) {
    wire::Header header;
    header.type = wire::Type::Data;
    header.length = bytes;
    Outgoing frame{header, inbox_.place.data()};
    for (unsigned tries = 0;; ++tries) {
      const Progress progress = link_->send(frame);
      link_->flush();
      if (progress == Progress::Done) return;
      if (progress == Progress::Broken) quit(link_->status().text());
      look(tries);
    }
  }
  // Waits for so many frames more.
  void receive(std::size_t frames) {
    for (unsigned tries = 0; inbox_.frames - seen_ < frames; ++tries) look(tries);
    seen_ += frames;
  }
  // One message of any size, as frames of the link's own size; answered by an empty frame.
  void send_message(std::size_t bytes) {
    for (std::size_t left = bytes; left != 0;) {
      const std::size_t part = std::min(left, link_->frame_bytes());
      send(part);
      left -= part;
    }
    receive(1);
  }
  void receive_message(std::size_t bytes) {
    receive((bytes + link_->frame_bytes() - 1) / link_->frame_bytes());
    send(0);
  }
  void pull_message(std::vector<std::byte>& to, std::uint64_t address, std::size_t bytes) {
    receive(1);
    if (Status read = link_->pull(to.data(), address, bytes); !read.ok()) quit(read.text());
    send(0);
  }
  void pieces(bool yes) { inbox_.pieces = yes; }
  const Link& link() const { return *link_; }

 private:
  void look(unsigned tries) {
    if (link_->pending()) {
      if (!link_->poll(inbox_, 1 << 20)) quit(link_->status().text());
    } else if (tries % 4096 == 4095) {
      sched_yield();
    }
  }
  std::unique_ptr<Link> link_;
  Counter inbox_;
  std::size_t seen_ = 0;
};

struct Times {
  std::vector<double> each;
  double best() const { return *std::min_element(each.begin(), each.end()); }
  double median() {
    std::sort(each.begin(), each.end());
    return each[each.size() / 2];
  }
};

void measure(Side& side, bool first, const char* name, std::size_t bytes, int rounds) {
  Times trips, streams[2];
  const std::size_t frame = side.link().frame_bytes(), frames = kStreamBytes / frame;
  for (int round = 0; round < rounds; ++round) {
    auto start = Clock::now();
    for (int i = 0; i < kTrips; ++i) {
      if (first) side.send(bytes);
      side.receive(1);
      if (!first) side.send(bytes);
    }
    trips.each.push_back(Seconds(Clock::now() - start).count() / kTrips / 2);
    for (const bool pieces : {false, true}) {
      side.pieces(pieces);
      start = Clock::now();
      for (std::size_t i = 0; i < frames; ++i) first ? side.send(frame) : side.receive(1);
      first ? side.receive(1) : side.send(0);
      const Seconds time = Clock::now() - start;
      streams[pieces].each.push_back(time.count() / (static_cast<double>(frames * frame) * 1e-9));
    }
  }
  if (!first) return;
  std::printf(
      "%-8s %zu B: %.2f us best, %.2f median; %zu KiB frames in place: %.2f GB/s best, %.2f "
      "median; in pieces: %.2f, %.2f\n",
      name, bytes, trips.best() * 1e6, trips.median() * 1e6, frame >> 10, 1 / streams[0].best(),
      1 / streams[0].median(), 1 / streams[1].best(), 1 / streams[1].median());
}

// Cards cross a socket pair: uuid and address.
void tell(int fd, const std::string& word) {
  const std::uint32_t bytes = static_cast<std::uint32_t>(word.size());
  if (write(fd, &bytes, sizeof bytes) != sizeof bytes ||
      write(fd, word.data(), bytes) != static_cast<ssize_t>(bytes)) {
    quit("the other process is gone");
  }
}

std::string hear(int fd) {
  std::uint32_t bytes = 0;
  if (read(fd, &bytes, sizeof bytes) != sizeof bytes) quit("the other process is gone");
  std::string word(bytes, '\0');
  if (recv(fd, word.data(), bytes, MSG_WAITALL) != static_cast<ssize_t>(bytes)) quit("cut short");
  return word;
}

void measure_pulls(Side& side, int fd, bool first, const char* name, int rounds) {
  constexpr std::size_t kMost = 64 << 20;
  std::vector<std::byte> buffer(kMost, std::byte{1});
  tell(fd, std::to_string(reinterpret_cast<std::uintptr_t>(buffer.data())));
  const std::uint64_t address = std::stoull(hear(fd));
  for (std::size_t bytes = 16 << 10; bytes <= kMost; bytes *= 4) {
    Times sent, pulled;
    const std::size_t count = std::max<std::size_t>(1, (16 << 20) / bytes);
    for (int round = 0; round < rounds; ++round) {
      auto start = Clock::now();
      for (std::size_t i = 0; i < count; ++i) {
        first ? side.send_message(bytes) : side.receive_message(bytes);
      }
      sent.each.push_back(Seconds(Clock::now() - start).count() / static_cast<double>(count));
      start = Clock::now();
      for (std::size_t i = 0; i < count; ++i) {
        if (first) {
          side.send(8);
          side.receive(1);
        } else {
          side.pull_message(buffer, address, bytes);
        }
      }
      pulled.each.push_back(Seconds(Clock::now() - start).count() / static_cast<double>(count));
    }
    if (!first) continue;
    const double gigabytes = static_cast<double>(bytes) * 1e-9;
    std::printf("%-8s %5zu KiB messages: sent %.2f GB/s best, %.2f median; pulled %.2f, %.2f\n",
                name, bytes >> 10, gigabytes / sent.best(), gigabytes / sent.median(),
                gigabytes / pulled.best(), gigabytes / pulled.median());
  }
}

int run(const Builtin& builtin, int fd, bool first, std::size_t bytes, int rounds) {
  Taker taker;
  Card self;
  self.uuid = wire::random_bytes(16);
  self.host = host_id();
  self.machine = machine_id();
  self.pid = getpid();
  auto opened = builtin.open({std::string(16, 'j'), "", self.uuid}, taker);
  if (!opened.ok()) quit(opened.status().text());
  const std::unique_ptr<Transport> transport = std::move(opened).value();
  tell(fd, self.uuid);
  tell(fd, std::to_string(self.pid));
  tell(fd, transport->address());
  Card peer = self;
  peer.uuid = hear(fd);
  peer.pid = std::stoi(hear(fd));
  peer.addresses = {{builtin.name, hear(fd)}};
  std::unique_ptr<Link> link;
  if (first) {
    link = taker.wait();
    if (link == nullptr) quit("nobody came");
  } else {
    auto dialed = transport->connect(peer, Deadline::after(kPatience));
    if (!dialed.ok()) quit(dialed.status().text());
    link = std::move(dialed).value();
  }
  Side side(std::move(link), bytes);
  measure(side, first, builtin.name, bytes, rounds);
  if (side.link().pulls()) measure_pulls(side, fd, first, builtin.name, rounds);
  transport->stop();
  return 0;
}

int run_pair(const Builtin& builtin, std::size_t bytes, int rounds) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) quit("socketpair");
  pid_t children[2];
  for (const int each : {0, 1}) {
    children[each] = fork();
    if (children[each] != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(600);
    close(ends[1 - each]);
    const int result = run(builtin, ends[each], each == 0, bytes, rounds);
    std::fflush(stdout);
    _exit(result);
  }
  close(ends[0]);
  close(ends[1]);
  int failed = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failed |= status != 0;
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc > 1 ? argv[1] : "all";
  const std::size_t bytes = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 8;
  const int rounds = argc > 3 ? std::max(1, std::atoi(argv[3])) : 20;
  int failed = 0;
  for (const Builtin& each : transports()) {
    const bool in_one_process = std::strcmp(each.name, "inproc") == 0;
    if (each.name == wanted || (wanted == "all" && !in_one_process)) {
      failed |= run_pair(each, bytes, rounds);
    }
  }
  return failed;
}
