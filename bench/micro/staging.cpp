// SPDX-License-Identifier: Apache-2.0
//
// Times collectives on device buffers: staged as a pipeline, and for the mixed group beside it the
// whole buffer copied out, sent and copied in, one after the other. Three groups of two ranks take
// turns: vendor A, vendor B, and one of each. The efficiency of the mixed group is
//
//   busbw of the mixed group / the lesser of the busbw of the two homogeneous ones, at one size
//
//   staging [allreduce|bcast|alltoall] [kind A] [kind B] [min bytes] [max bytes] [rounds]
//
// Kinds are names of runtimes that are here; fakes serve, with rates as HCCOMM_TEST_FAKE_<NAME>
// says. Each figure is the median over rounds; in each round every group measures once, and the
// efficiency is the median of those of the rounds, so that what else the machine does hits all
// alike. HCCOMM_HOST=own puts each rank on a host of its own: then the wire is TCP.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "capi/hccomm.h"
#include "device/registry.hpp"

using Clock = std::chrono::steady_clock;
using hccomm::device::Registry;
using hccomm::device::Runtime;

namespace {

struct Plan {
  int collective = HCCOMM_ALL_REDUCE;
  std::string kinds[2];
  std::size_t least = 0, most = 0;
  int rounds = 0;
};

void require(int code, const hccomm_error& error) {
  if (code == HCCOMM_OK) return;
  std::fprintf(stderr, "%s\n", error.text);
  std::_Exit(1);
}

void require(const hccomm::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.text().c_str());
  std::_Exit(1);
}

// One rank: a device buffer, and pinned memory for the serial way.
class Rank {
 public:
  Rank(hccomm_comm* comm, const std::string& kind, std::size_t bytes)
      : comm_(comm), kind_(hccomm_device_kind(kind.c_str())) {
    runtime_ = Registry::global().runtime(static_cast<hccomm::device::Kind>(kind_)).take();
    place_ = runtime_->allocate(0, 2 * bytes).take();  // all_to_all has an output of its own
    pinned_ = static_cast<float*>(runtime_->host_allocate(0, 2 * bytes).take());
    stream_ = runtime_->stream_create(0).take();
    event_ = runtime_->event_create(0).take();
    fill(bytes, 1.0f);
  }
  ~Rank() {
    runtime_->event_destroy(event_);
    runtime_->stream_destroy(stream_);
    runtime_->host_free(0, pinned_);
    runtime_->release(0, place_);
  }

  void staged(int collective, std::size_t bytes) { call(collective, bytes, place_.handle, kind_); }

  void serial(int collective, std::size_t bytes) {
    require(runtime_->copy_out(stream_, pinned_, place_, bytes));
    await();
    call(collective, bytes, pinned_, HCCOMM_DEVICE_HOST);
    const std::size_t at = collective == HCCOMM_ALL_TO_ALL ? bytes : 0;
    const hccomm::device::Place out{place_.handle, place_.offset + at};
    require(runtime_->copy_in(stream_, out, pinned_ + at / 4, bytes));
    await();
  }

  // Seconds of one call: the mean of as many as take about 20 ms.
  double seconds(int collective, std::size_t bytes, bool pipeline) {
    const auto once = [&] { pipeline ? staged(collective, bytes) : serial(collective, bytes); };
    once();
    const double guess = timed(1, once);
    float loops = static_cast<float>(std::clamp(20e-3 / guess, 2.0, 200.0));
    share(loops);
    return timed(static_cast<int>(loops), once);
  }

  void check(std::size_t bytes) {
    fill(bytes, 1.0f);
    staged(HCCOMM_ALL_REDUCE, bytes);
    require(runtime_->copy_out(stream_, pinned_, place_, bytes));
    await();
    for (std::size_t i = 0; i < bytes / 4; ++i) {
      if (pinned_[i] == 2.0f) continue;
      std::fprintf(stderr, "wrong: element %zu is %f\n", i, static_cast<double>(pinned_[i]));
      std::_Exit(1);
    }
    fill(bytes, 0.0f);  // so that repeated sums stay what they are
  }

 private:
  void fill(std::size_t bytes, float value) {
    std::fill_n(pinned_, bytes / 4, value);
    require(runtime_->copy_in(stream_, place_, pinned_, bytes));
    await();
  }
  void await() {
    require(runtime_->event_record(event_, stream_));
    while (!runtime_->event_query(event_).take()) std::this_thread::yield();
  }
  void call(int collective, std::size_t bytes, void* data, int kind) {
    hccomm_error error;
    hccomm_call request{};
    request.struct_size = sizeof request;
    request.collective = collective;
    request.dtype = HCCOMM_F32;
    const bool parts = collective == HCCOMM_ALL_TO_ALL;
    request.count = bytes / 4 / (parts ? 2 : 1);
    request.input = request.output = {data, bytes / 4, 0, kind, 0, nullptr};
    if (parts) request.output.data = static_cast<std::byte*>(data) + bytes;
    require(hccomm_run(comm_, &request, &error), error);
  }
  void share(float& value) {
    hccomm_error error;
    hccomm_call request{};
    request.struct_size = sizeof request;
    request.collective = HCCOMM_BROADCAST;
    request.dtype = HCCOMM_F32;
    request.count = 1;
    request.input = request.output = {&value, 1, 0, HCCOMM_DEVICE_HOST, 0, nullptr};
    require(hccomm_run(comm_, &request, &error), error);
  }
  template <typename Once>
  double timed(int loops, Once&& once) {
    float ignored = 0;
    share(ignored);  // begin together
    const auto begin = Clock::now();
    for (int loop = 0; loop < loops; ++loop) once();
    return std::chrono::duration<double>(Clock::now() - begin).count() / loops;
  }

  hccomm_comm* comm_;
  int kind_;
  Runtime* runtime_;
  hccomm::device::Place place_;
  float* pinned_;
  hccomm::device::Stream stream_;
  hccomm::device::Event event_;
};

// Waits for orders (a size, and whether as a pipeline) on `orders` and answers with seconds.
[[noreturn]] void serve(int rank, const Plan& plan, const std::string& kind, const std::string& url,
                        int orders, int answers) {
  const char* host = std::getenv("HCCOMM_HOST");
  if (host != nullptr && std::strcmp(host, "own") == 0) {
    setenv("HCCOMM_HOST", ("host" + std::to_string(rank)).c_str(), 1);
  }
  hccomm_error error;
  hccomm_config config{};
  config.struct_size = sizeof config;
  config.rank = rank;
  config.size = 2;
  config.rendezvous = url.c_str();
  config.timeout = 60;
  hccomm_comm* comm = nullptr;
  require(hccomm_init(&config, &comm, &error), error);
  {
    Rank self(comm, kind, plan.most);
    self.check(plan.most);
    std::size_t order[2];
    while (read(orders, order, sizeof order) == sizeof order) {
      const double took = self.seconds(plan.collective, order[0], order[1] != 0);
      if (rank == 0 && write(answers, &took, sizeof took) != sizeof took) break;
    }
  }
  require(hccomm_close(comm, 5, &error), error);
  std::_Exit(0);
}

// Two ranks, in processes of their own.
class Group {
 public:
  Group(const Plan& plan, const std::string& a, const std::string& b) : name(a + "+" + b) {
    char place[] = "/tmp/hccomm_staging.XXXXXX";
    const std::string url = std::string("file://") + mkdtemp(place) + "/store";
    int answers[2];
    if (pipe(answers) != 0) std::_Exit(1);
    for (const int rank : {0, 1}) {
      int orders[2];
      if (pipe(orders) != 0) std::_Exit(1);
      pids_[rank] = fork();
      if (pids_[rank] == 0) {
        for (int fd = 3; fd < 64; ++fd) {
          if (fd != orders[0] && fd != answers[1]) close(fd);
        }
        serve(rank, plan, rank == 0 ? a : b, url, orders[0], answers[1]);
      }
      close(orders[0]);
      orders_[rank] = orders[1];
    }
    close(answers[1]);
    answers_ = answers[0];
  }
  void end() {
    for (const int rank : {0, 1}) close(orders_[rank]);
    for (const int rank : {0, 1}) waitpid(pids_[rank], nullptr, 0);
  }
  void measure(std::size_t bytes, bool pipeline) {
    const std::size_t order[2] = {bytes, pipeline ? std::size_t{1} : 0};
    for (const int rank : {0, 1}) {
      if (write(orders_[rank], order, sizeof order) != sizeof order) std::_Exit(1);
    }
    double took = 0;
    if (read(answers_, &took, sizeof took) != sizeof took) std::_Exit(1);
    seconds_[{bytes, pipeline}].push_back(took);
  }
  const std::vector<double>& of(std::size_t bytes, bool pipeline) {
    return seconds_[{bytes, pipeline}];
  }

  std::string name;

 private:
  pid_t pids_[2];
  int orders_[2], answers_;
  std::map<std::pair<std::size_t, bool>, std::vector<double>> seconds_;
};

double median(std::vector<double> all) {
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

void print(std::vector<Group>& groups, std::size_t bytes) {
  for (Group& group : groups) {  // of two ranks: the factor of busbw is 1
    const double staged = median(group.of(bytes, true));
    std::printf("%-12s %10zu %12.1f %10.3f", group.name.c_str(), bytes, staged * 1e6,
                static_cast<double>(bytes) / staged / 1e9);
    if (&group == &groups.back()) {
      const double serial = median(group.of(bytes, false));
      std::vector<double> ratios;
      for (std::size_t round = 0; round < group.of(bytes, true).size(); ++round) {
        const double slower =
            std::max(groups[0].of(bytes, true)[round], groups[1].of(bytes, true)[round]);
        ratios.push_back(slower / group.of(bytes, true)[round]);
      }
      std::printf(" %12.1f %6.2fx %9.1f %%", serial * 1e6, serial / staged, 100 * median(ratios));
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Plan plan;
  const std::string what = argc > 1 ? argv[1] : "allreduce";
  if (what == "bcast") plan.collective = HCCOMM_BROADCAST;
  if (what == "alltoall") plan.collective = HCCOMM_ALL_TO_ALL;
  plan.kinds[0] = argc > 2 ? argv[2] : "cuda";
  plan.kinds[1] = argc > 3 ? argv[3] : "musa";
  plan.least = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 1 << 10;
  plan.most = argc > 5 ? std::strtoull(argv[5], nullptr, 10) : 64 << 20;
  plan.rounds = argc > 6 ? std::atoi(argv[6]) : 7;
  const auto& [a, b] = plan.kinds;
  std::vector<Group> groups = {Group(plan, a, a), Group(plan, b, b), Group(plan, a, b)};

  std::printf("%-12s %10s %12s %10s %12s %7s %11s\n", "group", "bytes", "staged us", "busbw GB/s",
              "serial us", "gain", "efficiency");
  for (std::size_t bytes = plan.least; bytes <= plan.most; bytes *= 4) {
    for (int round = 0; round < plan.rounds; ++round) {
      for (Group& group : groups) group.measure(bytes, true);
      groups.back().measure(bytes, false);
    }
    print(groups, bytes);
  }
  for (Group& group : groups) group.end();
  return 0;
}
