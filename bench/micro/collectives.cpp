// SPDX-License-Identifier: Apache-2.0
//
// Times collectives through the C ABI as IMB-MPI1 does: forks the ranks, runs each size many times
// back to back, prints the median over repetitions of the mean time of one call, in microseconds.
//
//   micro_collectives [collective|all] [ranks] [min bytes] [max bytes] [repetitions]
//
// Sizes are those of IMB: of the whole buffer for allreduce, bcast and sendrecv, per rank (or pair)
// for the others. Results are checked once per size.
#include <sys/mman.h>
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

// Floats on huge pages where the system gives them on request, as the buffers of IMB-MPI1 under
// Intel MPI are: pages decide what a single copy costs.
class Floats {
 public:
  Floats() = default;
  Floats(std::size_t count, float value) : count_(count) {
    constexpr std::size_t kHuge = std::size_t{2} << 20;
    const std::size_t bytes = (count * sizeof(float) + kHuge - 1) / kHuge * kHuge;
    data_.reset(static_cast<float*>(std::aligned_alloc(kHuge, bytes)));
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
    std::fill_n(data_.get(), count, value);
  }
  float* data() { return data_.get(); }
  float* begin() { return data_.get(); }
  float* end() { return data_.get() + count_; }
  float& operator[](std::size_t i) { return data_.get()[i]; }
  std::size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  std::size_t count_ = 0;
};

class Rank {
 public:
  Rank(hccomm_comm* comm, std::size_t max_bytes)
      : comm_(comm), size_(hccomm_size(comm)), rank_(hccomm_rank(comm)) {
    in_ = Floats(max_bytes / 4 * size_ + 64, 1.0f);
    out_ = Floats(max_bytes / 4 * size_ + 64, 0.0f);
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
  Floats in_, out_;
};

void run_rank(int rank, int ranks, const std::string& url, const std::string& which,
              std::size_t least, std::size_t most, int repetitions) {
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
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      run_rank(rank, ranks, url, which, least, most, repetitions);
      std::_Exit(0);
    }
    children.push_back(child);
  }
  int failures = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failures += status != 0;
  }
  rmdir(folder);
  return failures == 0 ? 0 : 1;
}
