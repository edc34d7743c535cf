// SPDX-License-Identifier: Apache-2.0
//
// What one small message costs when many are in flight: two ranks start N sends and N receives of 8
// bytes and then wait for all of them; prints the mean per message for N = 10 ... 10,000. A flat
// column says that outstanding operations do not slow each other down.
//
//   outstanding [largest N] [repetitions]
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "capi/hccomm.h"

namespace {

void require(int code, const hccomm_error& error) {
  if (code == HCCOMM_OK) return;
  std::fprintf(stderr, "%s\n", error.text);
  std::_Exit(1);
}

hccomm_call message(int collective, int peer, float* data) {
  hccomm_call call{};
  call.struct_size = sizeof call;
  call.collective = collective;
  call.dtype = HCCOMM_F32;
  call.count = 2;
  call.root = peer;
  call.input = call.output = {data, 2, 0, HCCOMM_DEVICE_HOST, 0, nullptr};
  return call;
}

// Microseconds per message, the median over the repetitions.
double measure(hccomm_comm* comm, int many, int repetitions) {
  hccomm_error error{};
  const int peer = 1 - hccomm_rank(comm);
  std::vector<float> in(2 * many, 1.0f), out(2 * many, 0.0f);
  std::vector<hccomm_work*> works(2 * many);
  hccomm_call barrier{};
  barrier.struct_size = sizeof barrier;
  barrier.collective = HCCOMM_BARRIER;
  barrier.dtype = HCCOMM_U8;
  std::vector<double> times;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    require(hccomm_run(comm, &barrier, &error), error);
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < many; ++i) {
      const hccomm_call recv = message(HCCOMM_RECV, peer, &out[2 * i]);
      const hccomm_call send = message(HCCOMM_SEND, peer, &in[2 * i]);
      require(hccomm_start(comm, &recv, &works[2 * i], &error), error);
      require(hccomm_start(comm, &send, &works[2 * i + 1], &error), error);
    }
    for (hccomm_work* work : works) {
      require(hccomm_wait(work, 0, &error), error);
      hccomm_release(work);
    }
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    times.push_back(took.count() / many);
    if (std::count(out.begin(), out.end(), 1.0f) != 2 * many) std::_Exit(2);
    std::fill(out.begin(), out.end(), 0.0f);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void run_rank(int rank, const std::string& url, int largest, int repetitions) {
  hccomm_error error{};
  hccomm_config config{};
  config.struct_size = sizeof config;
  config.rank = rank;
  config.size = 2;
  config.rendezvous = url.c_str();
  config.timeout = 60;
  hccomm_comm* comm = nullptr;
  require(hccomm_init(&config, &comm, &error), error);
  for (int many = 10; many <= largest; many *= 10) {
    const double us = measure(comm, many, repetitions);
    if (rank == 0) std::printf("%6d outstanding  %8.3f us per message\n", many, us);
  }
  require(hccomm_close(comm, 5, &error), error);
}

}  // namespace

int main(int argc, char** argv) {
  const int largest = argc > 1 ? std::atoi(argv[1]) : 10000;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 21;
  char folder[] = "/tmp/hccomm-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const std::string url = std::string("file://") + folder + "/meet";
  pid_t children[2];
  for (int rank = 0; rank < 2; ++rank) {
    children[rank] = fork();
    if (children[rank] == 0) {
      run_rank(rank, url, largest, repetitions);
      std::fflush(stdout);
      std::_Exit(0);
    }
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
