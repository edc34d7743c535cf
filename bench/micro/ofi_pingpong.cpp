// SPDX-License-Identifier: Apache-2.0
//
// What an ofi link adds to libfabric: messages there and back between two processes of this
// machine, by size, through bare libfabric (sent into a posted receive; written with immediate
// data) and through a link over the same provider, in turns. Half a round trip, median of the
// rounds.
//
//   HCCOMM_OFI_PROVIDER=net ofi_pingpong [rounds = 60 [bytes [way]]]
//
// Of one size or one way alone (0: sent, 1: written, 2: link) for a profiler.
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
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
#include "transport/ofi/provider.hpp"
#include "transport/tcp/port.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

using namespace hccomm;
using namespace hccomm::transport;

namespace {

constexpr std::size_t kMost = 16 << 20;
constexpr std::size_t kSizes[] = {8,         1 << 10, 4 << 10, 16 << 10, 64 << 10,
                                  256 << 10, 1 << 20, 4 << 20, kMost};
constexpr Seconds kPatience{10};

[[noreturn]] void quit(const std::string& why) {
  std::fprintf(stderr, "ofi_pingpong: %s\n", why.c_str());
  _exit(1);
}

// Every loop's look at the clock: the other side gets the core, and nothing waits for ever.
void be_patient(unsigned tries, const char* what) {
  static Clock::time_point since;
  if (tries % 4096 != 4095) return;
  sched_yield();
  const auto now = Clock::now();
  if (tries == 4095) since = now;
  if (now - since > kPatience) quit(text("nothing moved: ", what));
}

void tell(int fd, const void* data, std::size_t bytes) {
  if (write(fd, data, bytes) != static_cast<ssize_t>(bytes)) quit("the other process is gone");
}

void hear(int fd, void* data, std::size_t bytes) {
  if (recv(fd, data, bytes, MSG_WAITALL) != static_cast<ssize_t>(bytes)) quit("cut short");
}

// ---- bare libfabric -----------------------------------------------------------------------------

class Bare {
 public:
  Bare(ofi::Choice choice, int fd) : choice_(std::move(choice)), buffer_(2 * kMost, std::byte{1}) {
    fi_info& info = *choice_.info;
    check(choice_.library->fabric(info.fabric_attr, &fabric_, nullptr), "fi_fabric");
    check(fi_domain(fabric_, &info, &domain_, nullptr), "fi_domain");
    fi_cq_attr queue{};
    queue.format = FI_CQ_FORMAT_DATA;
    check(fi_cq_open(domain_, &queue, &queue_, nullptr), "fi_cq_open");
    fi_av_attr table{};
    table.type = FI_AV_TABLE;
    check(fi_av_open(domain_, &table, &addresses_, nullptr), "fi_av_open");
    check(fi_endpoint(domain_, &info, &endpoint_, nullptr), "fi_endpoint");
    check(fi_ep_bind(endpoint_, &queue_->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    check(fi_ep_bind(endpoint_, &addresses_->fid, 0), "fi_ep_bind");
    check(fi_enable(endpoint_), "fi_enable");
    check(fi_mr_reg(domain_, buffer_.data(), buffer_.size(),
                    FI_SEND | FI_RECV | FI_WRITE | FI_REMOTE_WRITE, 0, 4711, 0, &memory_, nullptr),
          "fi_mr_reg");
    Names mine{}, theirs{};
    std::size_t bytes = sizeof mine.name;
    check(fi_getname(&endpoint_->fid, mine.name, &bytes), "fi_getname");
    mine.key = fi_mr_key(memory_);
    const bool addressed = (info.domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
    mine.address = addressed ? reinterpret_cast<std::uintptr_t>(buffer_.data()) : 0;
    tell(fd, &mine, sizeof mine);
    hear(fd, &theirs, sizeof theirs);
    if (fi_av_insert(addresses_, theirs.name, 1, &peer_, 0, nullptr) != 1) quit("fi_av_insert");
    remote_ = theirs;
  }
  Bare(const Bare&) = delete;
  Bare& operator=(const Bare&) = delete;
  ~Bare() {  // the shm provider keeps a file in /dev/shm for an endpoint
    fi_close(&endpoint_->fid);
    fi_close(&memory_->fid);
    fi_close(&addresses_->fid);
    fi_close(&queue_->fid);
    fi_close(&domain_->fid);
    fi_close(&fabric_->fid);
  }

  void send(std::size_t bytes) {
    post([&] {
      return bytes <= choice_.info->tx_attr->inject_size
                 ? fi_inject(endpoint_, buffer_.data(), bytes, peer_)
                 : fi_send(endpoint_, buffer_.data(), bytes, fi_mr_desc(memory_), peer_,
                           &contexts_[0]);
    });
    if (bytes > choice_.info->tx_attr->inject_size) ++owed_;
  }
  void expect(std::size_t bytes) {
    post([&] {
      return fi_recv(endpoint_, buffer_.data() + kMost, bytes, fi_mr_desc(memory_), FI_ADDR_UNSPEC,
                     &contexts_[1]);
    });
  }
  void write(std::size_t bytes) {
    post([&] {
      return bytes <= choice_.info->tx_attr->inject_size
                 ? fi_inject_writedata(endpoint_, buffer_.data(), bytes, 7, peer_,
                                       remote_.address + kMost, remote_.key)
                 : fi_writedata(endpoint_, buffer_.data(), bytes, fi_mr_desc(memory_), 7, peer_,
                                remote_.address + kMost, remote_.key, &contexts_[0]);
    });
    if (bytes > choice_.info->tx_attr->inject_size) ++owed_;
  }
  // Until one more message has come and all of ours have gone.
  void wait() {
    for (unsigned tries = 0; came_ == taken_ || owed_ > 0; ++tries) look(tries);
    ++taken_;
  }
  // Until all of ours have gone, which they do not while nobody looks.
  void settle() {
    for (unsigned tries = 0; owed_ > 0; ++tries) look(tries);
  }
  std::string name() const { return choice_.provider; }

 private:
  struct Names {
    char name[256];
    std::uint64_t key, address;
  };
  void check(int err, const char* what) {
    if (err != 0) quit(text(what, ": ", choice_.library->strerror(-err)));
  }
  void look(unsigned tries) {
    fi_cq_data_entry entries[4];
    const ssize_t count = fi_cq_read(queue_, entries, 4);
    if (count == -FI_EAVAIL) quit("an error in the queue");
    for (ssize_t i = 0; i < count; ++i) {
      const bool sent = (entries[i].flags & (FI_RECV | FI_REMOTE_WRITE | FI_REMOTE_CQ_DATA)) == 0;
      sent ? --owed_ : static_cast<int>(++came_);
    }
    be_patient(tries, "bare libfabric");
  }
  template <typename Post>
  void post(Post&& call) {
    for (unsigned tries = 0;; ++tries) {
      const ssize_t outcome = call();
      if (outcome == 0) return;
      if (outcome != -FI_EAGAIN) quit(choice_.library->strerror(static_cast<int>(-outcome)));
      look(tries);
    }
  }
  ofi::Choice choice_;
  std::vector<std::byte> buffer_;
  fid_fabric* fabric_ = nullptr;
  fid_domain* domain_ = nullptr;
  fid_cq* queue_ = nullptr;
  fid_av* addresses_ = nullptr;
  fid_ep* endpoint_ = nullptr;
  fid_mr* memory_ = nullptr;
  fi_addr_t peer_ = 0;
  Names remote_{};
  fi_context2 contexts_[2] = {};
  std::size_t came_ = 0, taken_ = 0;
  int owed_ = 0;
};

// ---- a link -------------------------------------------------------------------------------------

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

// Stores every message in one place; one larger than a frame has come with its last byte.
class Linked final : public Inbox {
 public:
  Linked(int fd, bool first) : source_(kMost, std::byte{1}), place_(kMost) {
    for (const Builtin& each : transports()) {
      if (std::strcmp(each.name, "ofi") == 0) builtin_ = &each;
    }
    Card self{};
    self.uuid = std::string(16, first ? 'a' : 'b');
    self.machine = machine_id();
    auto opened = builtin_->open({std::string(16, 'j'), "", self.uuid}, taker_);
    if (!opened.ok()) quit(opened.status().text());
    transport_ = std::move(opened).value();
    char mine[256] = {}, theirs[256] = {};
    transport_->address().copy(mine, sizeof mine - 1);
    tell(fd, mine, sizeof mine);
    hear(fd, theirs, sizeof theirs);
    if (first) {
      link_ = taker_.wait();
      if (link_ == nullptr) quit("nobody came");
      return;
    }
    Card peer = self;
    peer.uuid = std::string(16, 'a');
    peer.addresses = {{"ofi", theirs}};
    auto dialed = transport_->connect(peer, Deadline::after(kPatience));
    if (!dialed.ok()) quit(dialed.status().text());
    link_ = std::move(dialed).value();
  }
  // The next message to come, as the engine knows it ahead.
  void expect(std::size_t bytes) {
    wire::Header which;
    which.type = wire::Type::Data;
    which.index = ++expected_;
    link_->expect(which, place_.data(), bytes);
  }
  void send(std::size_t bytes) {
    if (bytes > link_->eager_bytes()) ++sent_;
    for (std::size_t done = 0; done < bytes;) {
      wire::Header header;
      header.type = wire::Type::Data;
      header.index = sent_;
      header.address = done;
      header.length = static_cast<std::uint32_t>(std::min(bytes - done, link_->frame_bytes()));
      Outgoing frame{header, source_.data() + done};
      for (unsigned tries = 0;; ++tries) {
        const Progress progress = link_->send(frame);
        if (progress == Progress::Broken) quit(link_->status().text());
        link_->flush();
        if (progress == Progress::Done) break;
        look(tries);
      }
      done += header.length;
    }
  }
  std::size_t eager_bytes() const { return link_->eager_bytes(); }
  void wait(std::size_t bytes) {
    for (unsigned tries = 0; came_ < bytes; ++tries) look(tries);
    came_ -= bytes;
  }
  void deliver(const wire::Header& header, const std::byte* payload) override {
    std::memcpy(place_.data(), payload, header.length);
    came_ += header.length;
  }
  Placement begin(const wire::Header& header) override {
    coming_ = header.length;
    return {place_.data() + header.address};
  }
  void consume(const std::byte*, std::size_t) override {}
  void end() override { came_ += coming_; }

 private:
  void look(unsigned tries) {
    if (link_->pending()) {
      if (!link_->poll(*this, 1)) quit(link_->status().text());
    }
    be_patient(tries, "the link");
  }
  const Builtin* builtin_ = nullptr;
  Taker taker_;
  std::vector<std::byte> source_, place_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Link> link_;
  std::size_t came_ = 0, coming_ = 0;
  std::uint32_t sent_ = 0, expected_ = 0;
};

// ---- both ---------------------------------------------------------------------------------------

// Nothing of this is timed: both ends are there, and the first receives are known to both.
void prepare(Bare& bare, Linked& linked, int way, bool first, std::size_t bytes) {
  if (way == 0) bare.expect(bytes);
  if (way == 2 && bytes > linked.eager_bytes()) linked.expect(bytes);
  for (const bool sends : {first, !first}) sends ? linked.send(8) : linked.wait(8);
}

// `trips` messages each way, by the way of that number. A receive is posted before it is needed; so
// does the link learn of it, as the engine tells it ahead of large ones.
void go(Bare& bare, Linked& linked, int way, bool first, std::size_t bytes, int trips) {
  const bool large = way == 2 && bytes > linked.eager_bytes();
  for (int i = 1; i <= trips; ++i) {
    for (const bool sends : {first, !first}) {
      if (sends) {
        if (way == 0) bare.send(bytes);
        if (way == 1) bare.write(bytes);
        if (way == 2) linked.send(bytes);
      } else {
        way == 2 ? linked.wait(bytes) : bare.wait();
        if (way == 0 && i != trips) bare.expect(bytes);
        if (large && i != trips) linked.expect(bytes);
      }
    }
  }
  bare.settle();
}

void run(int fd, bool first, int rounds, std::size_t only_bytes, int only_way) {
  auto interfaces = tcp::chosen_interfaces();
  Bare bare(std::move(ofi::choose(interfaces.value().front().ip).take().front()), fd);
  Linked linked(fd, first);
  if (first)
    std::printf("%s\n    bytes  sent us  written us  link us   link/best\n", bare.name().c_str());
  for (const std::size_t bytes : kSizes) {
    if (only_bytes != 0 && bytes != only_bytes) continue;
    const int trips = static_cast<int>(std::clamp<std::size_t>((4 << 20) / bytes, 2, 100));
    double medians[3];
    std::vector<double> times[3];
    for (int round = 0; round < rounds; ++round) {
      for (const int way : {0, 1, 2}) {
        if (only_way >= 0 && way != only_way) continue;
        prepare(bare, linked, way, first, bytes);
        const auto start = Clock::now();
        go(bare, linked, way, first, bytes, trips);
        times[way].push_back(Seconds(Clock::now() - start).count() / trips / 2 * 1e6);
      }
    }
    for (const int way : {0, 1, 2}) {
      if (times[way].empty()) times[way].push_back(0);
      std::sort(times[way].begin(), times[way].end());
      medians[way] = times[way][times[way].size() / 2];
    }
    if (!first) continue;
    std::printf("%9zu %8.2f %11.2f %8.2f %10.2f   (best rounds %.2f %.2f %.2f)\n", bytes,
                medians[0], medians[1], medians[2], medians[2] / std::min(medians[0], medians[1]),
                times[0][0], times[1][0], times[2][0]);
    std::fflush(stdout);
  }
}

// Each side on a core of its own, where there are two.
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

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 60;
  const std::size_t only_bytes = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  const int only_way = argc > 3 ? std::atoi(argv[3]) : -1;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) quit("socketpair");
  pid_t children[2];
  for (const int each : {0, 1}) {
    children[each] = fork();
    if (children[each] != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(300);
    pin(each);
    run(ends[each], each == 0, rounds, only_bytes, only_way);
    std::fflush(stdout);
    char over = 0;
    tell(ends[each], &over, 1);
    hear(ends[each], &over, 1);
    _exit(0);
  }
  int failed = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failed |= status != 0;
  }
  return failed;
}
