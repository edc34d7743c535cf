// SPDX-License-Identifier: Apache-2.0
//
// Times collectives through the C ABI as IMB-MPI1 does: forks the ranks, runs each size many times
// back to back, prints the median over repetitions of the mean time of one call, in microseconds.
//
//   collectives [collective|all] [ranks] [min bytes] [max bytes] [repetitions] [placement]
//
// Sizes are those of IMB: of the whole buffer for allreduce, bcast and sendrecv, per rank (or pair)
// for the others. Results are checked once per size.
//
// With the placement "private", "shared" (hccomm_alloc) or "both", in turn, the limit is printed
// beside each time: how long the ranks take, all at once, to copy as many bytes as each of them
// must fetch or move out of memory that lies alike, by memcpy or (private) as the kernel lets one
// process read another; and which part of that speed was reached.
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "capi/hccomm.h"

using Clock = std::chrono::steady_clock;

namespace {

struct Kind {
  const char* name;
  int id;
};
const Kind kKinds[] = {{"allreduce", HCCOMM_ALL_REDUCE},
                       {"allgather", HCCOMM_ALL_GATHER},
                       {"reducescatter", HCCOMM_REDUCE_SCATTER},
                       {"bcast", HCCOMM_BROADCAST},
                       {"alltoall", HCCOMM_ALL_TO_ALL},
                       {"sendrecv", HCCOMM_SEND},
                       {"barrier", HCCOMM_BARRIER}};

void require(int code, const hccomm_error& error) {
  if (code == HCCOMM_OK) return;
  std::fprintf(stderr, "%s\n", error.text);
  std::_Exit(1);
}

enum Placement : int { kPrivate, kShared };

// Floats in memory that peers can map, or on huge pages where the system gives them on request, as
// the buffers of IMB-MPI1 under Intel MPI are: pages decide what a single copy costs.
class Floats {
 public:
  Floats() = default;
  Floats(std::size_t count, float value, Placement placement = kPrivate) : count_(count) {
    if (placement == kShared) {
      hccomm_error error;
      void* data = nullptr;
      require(hccomm_alloc(count * sizeof(float), &data, &error), error);
      data_ = {static_cast<float*>(data), free_shared};
      std::fill_n(data_.get(), count, value);
      return;
    }
    constexpr std::size_t kHuge = std::size_t{2} << 20;
    const std::size_t bytes = (count * sizeof(float) + kHuge - 1) / kHuge * kHuge;
    data_ = {static_cast<float*>(std::aligned_alloc(kHuge, bytes)), free_private};
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
    std::fill_n(data_.get(), count, value);
  }
  float* data() { return data_.get(); }
  float* begin() { return data_.get(); }
  float* end() { return data_.get() + count_; }
  float& operator[](std::size_t i) { return data_.get()[i]; }
  std::size_t size() const { return count_; }

 private:
  static void free_shared(float* data) { hccomm_free(data, nullptr); }
  static void free_private(float* data) { std::free(data); }

  std::unique_ptr<float, void (*)(float*)> data_{nullptr, nullptr};
  std::size_t count_ = 0;
};

// What the probe of the limit copies from: made before the ranks are, so that all of them see it.
struct Probe {
  struct Seen {
    pid_t process;
    const float* data;  // in its memory
  };
  static void* shared(std::size_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) std::_Exit(1);
    return data;
  }
  Probe(int ranks, std::size_t bytes) : seen(static_cast<Seen*>(shared(ranks * sizeof(Seen)))) {
    for (int rank = 0; rank < ranks; ++rank) data.push_back(static_cast<char*>(shared(bytes)));
  }
  Seen* seen;
  std::vector<char*> data;  // of each rank
};

class Rank {
 public:
  Rank(hccomm_comm* comm, std::size_t max_bytes, Placement placement = kPrivate,
       const Probe* probe = nullptr)
      : comm_(comm),
        size_(hccomm_size(comm)),
        rank_(hccomm_rank(comm)),
        placement_(placement),
        probe_(probe) {
    in_ = Floats(max_bytes / 4 * size_ + 64, 1.0f, placement);
    out_ = Floats(max_bytes / 4 * size_ + 64, 0.0f, placement);
    if (probe == nullptr) return;
    probe->seen[rank_] = {getpid(), in_.data()};
    if (placement == kShared) std::memset(probe->data[rank_], 1, max_bytes * size_);
    call(HCCOMM_BARRIER, 0);
    next_ = probe->seen[(rank_ + 1) % size_];
    call(HCCOMM_BARRIER, 0);
  }

  // What each rank must read of others, or copy from its input to its output.
  std::size_t needs(int kind, std::size_t bytes) const {
    switch (kind) {
      case HCCOMM_ALL_REDUCE: return bytes * 2 * (size_ - 1) / size_;
      case HCCOMM_REDUCE_SCATTER: return bytes * (size_ - 1);
      case HCCOMM_ALL_GATHER:
      case HCCOMM_ALL_TO_ALL: return bytes * size_;
      case HCCOMM_BROADCAST: return bytes * (size_ - 1) / size_;  // the root may help
      default: return bytes;
    }
  }

  // As microseconds(), of the copies that the call cannot do without.
  double limit(int kind, std::size_t bytes) {
    constexpr std::size_t kPiece = 256 << 10;
    const std::size_t needed = needs(kind, bytes);
    char* const to = reinterpret_cast<char*>(out_.data());
    const char* const from = probe_->data[(rank_ + 1) % size_];
    call(HCCOMM_BARRIER, 0);
    const auto begin = Clock::now();
    for (std::size_t at = 0; at < needed; at += kPiece) {
      const std::size_t piece = std::min(kPiece, needed - at);
      if (placement_ == kShared) {
        std::memcpy(to + at, from + at, piece);
        continue;
      }
      const iovec here = {to + at, piece};
      const iovec there = {const_cast<char*>(reinterpret_cast<const char*>(next_.data)) + at,
                           piece};
      if (process_vm_readv(next_.process, &here, 1, &there, 1, 0) < 0) std::_Exit(1);
    }
    call(HCCOMM_BARRIER, 0);
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }

  double median_limit(int kind, std::size_t bytes) {
    std::vector<double> all;
    for (int repetition = 0; repetition < 15; ++repetition) all.push_back(limit(kind, bytes));
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
  }

  void call(int kind, std::size_t bytes) {
    hccomm_error error;
    const std::uint64_t count = bytes / 4;
    hccomm_call request{};
    request.struct_size = sizeof request;
    request.collective = kind;
    request.dtype = HCCOMM_F32;
    request.op = HCCOMM_SUM;
    request.count = kind == HCCOMM_BARRIER ? 0 : count;
    request.input = {in_.data(), in_.size(), 0, 0, 0, nullptr};
    request.output = {out_.data(), out_.size(), 0, 0, 0, nullptr};
    if (kind == HCCOMM_BROADCAST) request.input = request.output;
    if (kind != HCCOMM_SEND) {
      require(hccomm_run(comm_, &request, &error), error);
      return;
    }
    hccomm_call receive = request;
    request.root = (rank_ + 1) % size_;
    receive.collective = HCCOMM_RECV;
    receive.root = (rank_ + size_ - 1) % size_;
    require(hccomm_sendrecv(comm_, &request, &receive, nullptr, &error), error);
  }

  void check(int kind, std::size_t bytes) {
    const std::size_t count = bytes / 4;
    if (kind == HCCOMM_BARRIER || kind == HCCOMM_BROADCAST) return;
    std::fill(out_.begin(), out_.end(), 0.0f);
    call(kind, bytes);
    const bool reduces = kind == HCCOMM_ALL_REDUCE || kind == HCCOMM_REDUCE_SCATTER;
    const std::size_t filled =
        kind == HCCOMM_ALL_GATHER || kind == HCCOMM_ALL_TO_ALL ? count * size_ : count;
    for (std::size_t i = 0; i < filled; ++i) {
      if (out_[i] != (reduces ? static_cast<float>(size_) : 1.0f)) {
        std::fprintf(stderr, "wrong: element %zu is %f\n", i, static_cast<double>(out_[i]));
        std::_Exit(1);
      }
    }
  }

  double microseconds(int kind, std::size_t bytes, int repetitions) {
    check(kind, bytes);
    int loops = 20;
    std::vector<double> means;
    for (int repetition = -1; repetition < repetitions; ++repetition) {
      call(HCCOMM_BARRIER, 0);
      const auto begin = Clock::now();
      for (int loop = 0; loop < loops; ++loop) call(kind, bytes);
      const double took = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
      if (repetition < 0) {  // the first one sizes the others to about 20 ms; rank 0 decides
        float wanted = static_cast<float>(std::clamp(20e3 / (took / loops), 3.0, 20e3));
        out_[0] = wanted;
        call(HCCOMM_BROADCAST, 4);
        loops = static_cast<int>(out_[0]);
        continue;
      }
      means.push_back(took / loops);
    }
    std::sort(means.begin(), means.end());
    return means[means.size() / 2];
  }

 private:
  hccomm_comm* comm_;
  int size_, rank_;
  Placement placement_;
  const Probe* probe_;
  Probe::Seen next_{};
  Floats in_, out_;
};

// One size with each placement in turn, three times; the medians' best of each.
void compare(std::vector<Rank>& placements, const Kind& kind, int ranks, std::size_t bytes,
             int repetitions, bool prints, int first) {
  std::vector<double> best(placements.size(), 1e30), limit(placements.size(), 1e30);
  for (int turn = 0; turn < 3; ++turn) {
    for (std::size_t k = 0; k < placements.size(); ++k) {
      limit[k] = std::min(limit[k], placements[k].median_limit(kind.id, bytes));
      best[k] = std::min(best[k], placements[k].microseconds(kind.id, bytes, repetitions));
    }
  }
  if (!prints) return;
  std::printf("%-14s %2d ranks %10zu B", kind.name, ranks, bytes);
  for (std::size_t k = 0; k < placements.size(); ++k) {
    const bool shared = first + static_cast<int>(k) == kShared;
    std::printf("  %s %10.1f us, limit %10.1f us: %3.0f %%", shared ? "shared" : "private", best[k],
                limit[k], 100 * limit[k] / best[k]);
  }
  if (best.size() == 2) std::printf("  %.2fx", best[0] / best[1]);
  std::printf("\n");
  std::fflush(stdout);
}

void run_rank(int rank, int ranks, const std::string& url, const std::string& which,
              std::size_t least, std::size_t most, int repetitions, const std::string& placement,
              const Probe* probe) {
  hccomm_error error;
  hccomm_config config{};
  config.struct_size = sizeof config;
  config.rank = rank;
  config.size = ranks;
  config.rendezvous = url.c_str();
  config.timeout = 60;
  hccomm_comm* comm = nullptr;
  require(hccomm_init(&config, &comm, &error), error);
  for (const Kind& kind : kKinds) {
    if (which != "all" && which != kind.name) continue;
    if (!placement.empty() && kind.id == HCCOMM_BARRIER) continue;
    if (!placement.empty()) {
      std::vector<Rank> placements;
      for (const Placement each : {kPrivate, kShared}) {
        const char* name = each == kPrivate ? "private" : "shared";
        if (placement == "both" || placement == name)
          placements.emplace_back(comm, most, each, probe);
      }
      for (std::size_t bytes = least; bytes <= most; bytes *= 2) {
        compare(placements, kind, ranks, bytes, repetitions, rank == 0,
                placement == "shared" ? kShared : kPrivate);
      }
      continue;
    }
    Rank self(comm, most);
    for (std::size_t bytes = kind.id == HCCOMM_BARRIER ? most : least; bytes <= most; bytes *= 2) {
      const double us = self.microseconds(kind.id, bytes, repetitions);
      if (rank == 0)
        std::printf("%-14s %2d ranks %10zu B %12.2f us\n", kind.name, ranks,
                    kind.id == HCCOMM_BARRIER ? 0 : bytes, us);
      std::fflush(stdout);
    }
  }
  require(hccomm_close(comm, 5, &error), error);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "all";
  const int ranks = argc > 2 ? std::atoi(argv[2]) : 2;
  const std::size_t least = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 8;
  const std::size_t most = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 4 << 20;
  const int repetitions = argc > 5 ? std::atoi(argv[5]) : 9;
  const std::string placement = argc > 6 ? argv[6] : "";
  if (!placement.empty() && placement != "private" && placement != "shared" &&
      placement != "both") {
    std::fprintf(stderr, "placement is \"%s\"; one of: private shared both\n", placement.c_str());
    return 2;
  }
  const auto named = [&](const Kind& kind) { return which == "all" || which == kind.name; };
  if (std::none_of(std::begin(kKinds), std::end(kKinds), named)) {
    std::fprintf(stderr, "collective is \"%s\"; one of: all", which.c_str());
    for (const Kind& kind : kKinds) std::fprintf(stderr, " %s", kind.name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  char folder[] = "/tmp/hccomm-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const std::string url = std::string("file://") + folder + "/meet";
  std::unique_ptr<Probe> probe;
  if (!placement.empty()) probe = std::make_unique<Probe>(ranks, most * ranks + 4096);
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      run_rank(rank, ranks, url, which, least, most, repetitions, placement, probe.get());
      std::_Exit(0);
    }
    children.push_back(child);
  }
  int failures = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failures += status != 0;
    if (WIFSIGNALED(status)) std::fprintf(stderr, "a rank ended by signal %d\n", WTERMSIG(status));
  }
  rmdir(folder);
  return failures == 0 ? 0 : 1;
}
