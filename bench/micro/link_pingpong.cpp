// SPDX-License-Identifier: Apache-2.0
//
// How fast one link is between two processes of this machine: half a round trip of a small frame,
// and the rate of a one-way stream of the link's own frames, received in place and in pieces. Best
// and median of some rounds, as the machine may be shared.
//
//   link_pingpong [transport = all] [bytes = 8] [rounds = 300, at most 10 s]
//
// A link that pulls is also timed by message size: sent through it, and pulled in a single copy;
// every message is freshly written by its sender, and answered before the next.
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

constexpr int kTrips = 100;                        // of a round: short, to fall between others
constexpr std::size_t kStreamBytes = 16ull << 20;  // of a round
constexpr Seconds kLongEnough{10};
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
    std::memcpy(next(header.length), payload, header.length);
    ++frames;
  }
  Placement begin(const wire::Header& header) override {
    at = 0;
    std::byte* to = next(header.length);
    return {pieces ? nullptr : to};
  }
  // Where the next frame goes: to one place, or through `run` from its start.
  std::byte* next(std::size_t bytes) {
    last_bytes = bytes;
    return run == nullptr ? place.data() : std::exchange(run, run + bytes);
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    std::memcpy(place.data() + at, piece, bytes);
    at += bytes;
  }
  void end() override { ++frames; }
  std::vector<std::byte> place;
  std::byte* run = nullptr;
  std::size_t frames = 0, at = 0, last_bytes = 0;
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

  void send(std::size_t bytes) { send(bytes, inbox_.place.data()); }
  void send(std::size_t bytes, const std::byte* payload) {
    wire::Header header;
    header.type = wire::Type::Data;
    header.length = bytes;
    Outgoing frame{header, payload};
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
  // A message each way (0 bytes: none), as frames of the link's own size, then an empty frame each
  // way: both have everything.
  void swap(const std::byte* from, std::size_t out_bytes, std::byte* to, std::size_t in_bytes) {
    inbox_.run = to;
    for (std::size_t done = 0; done != out_bytes;) {
      const std::size_t part = std::min(out_bytes - done, link_->frame_bytes());
      send(part, from + done);
      done += part;
      look(0);
    }
    receive((in_bytes + link_->frame_bytes() - 1) / link_->frame_bytes());
    inbox_.run = nullptr;
    send(0);
    receive(1);
  }
  // The same with announcements and single-copy reads.
  void swap_by_pull(std::size_t out_bytes, std::byte* to, std::uint64_t address,
                    std::size_t in_bytes) {
    if (out_bytes != 0) send(8);
    if (in_bytes != 0) {
      receive(1);
      if (Status read = link_->pull(0, to, address, in_bytes); !read.ok()) quit(read.text());
    }
    send(0);
    receive(1);
  }
  std::size_t last_bytes() const { return inbox_.last_bytes; }
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
  const Deadline enough = Deadline::after(kLongEnough);
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
    // The first side says whether to go on.
    const bool over = enough.passed();
    first ? side.send(over ? 0 : 1) : side.receive(1);
    if (first ? over : side.last_bytes() == 0) break;
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

// Writes every cache line, as whoever makes a message does: the reader must fetch it from here.
void produce(std::vector<std::byte>& buffer, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64)
    buffer[at] = std::byte(std::to_integer<int>(buffer[at]) + 1);
}

// Messages by size, one way and both ways, sent and pulled.
void measure_pulls(Side& side, int fd, bool first, const char* name, int rounds) {
  constexpr std::size_t kMost = 64 << 20;
  std::vector<std::byte> source(kMost, std::byte{1}), target(kMost, std::byte{2});
  tell(fd, std::to_string(reinterpret_cast<std::uintptr_t>(source.data())));
  const std::uint64_t address = std::stoull(hear(fd));
  for (std::size_t bytes = 4 << 10; bytes <= kMost; bytes *= 4) {
    double rates[4];
    for (const int way : {0, 1, 2, 3}) {
      const bool pull = way % 2 == 1, both = way / 2 == 1;
      const std::size_t out_bytes = first || both ? bytes : 0;
      const std::size_t in_bytes = !first || both ? bytes : 0;
      const std::size_t count = std::max<std::size_t>(1, (16 << 20) / bytes);
      Times times;
      for (int round = 0; round < rounds; ++round) {
        const auto start = Clock::now();
        for (std::size_t i = 0; i < count; ++i) {
          produce(source, out_bytes);
          if (pull) {
            side.swap_by_pull(out_bytes, target.data(), address, in_bytes);
          } else {
            side.swap(source.data(), out_bytes, target.data(), in_bytes);
          }
        }
        times.each.push_back(Seconds(Clock::now() - start).count() / static_cast<double>(count));
      }
      rates[way] = static_cast<double>(bytes) * 1e-9 / times.median();
    }
    if (!first) continue;
    std::printf(
        "%-8s %5zu KiB one way: sent %.2f GB/s, pulled %.2f; both ways: sent %.2f each, "
        "pulled %.2f\n",
        name, bytes >> 10, rates[0], rates[1], rates[2], rates[3]);
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

// Each side on a core of its own, where there are two: both spin, and on one core they would wait
// for the end of each other's time slice.
void pin(int side) {
  cpu_set_t allowed, mine;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  int seen = 0;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || seen++ != side) continue;
    CPU_ZERO(&mine);
    CPU_SET(core, &mine);
    [[maybe_unused]] const int ignored = sched_setaffinity(0, sizeof mine, &mine);
  }
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
    pin(each);
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
  const int rounds = argc > 3 ? std::max(1, std::atoi(argv[3])) : 300;
  int failed = 0;
  for (const Builtin& each : transports()) {
    const bool in_one_process = std::strcmp(each.name, "inproc") == 0;
    if (each.name == wanted || (wanted == "all" && !in_one_process)) {
      failed |= run_pair(each, bytes, rounds);
    }
  }
  return failed;
}
