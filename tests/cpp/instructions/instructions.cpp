// SPDX-License-Identifier: Apache-2.0
//
// Fixed work whose machine instructions are counted: `instructions CASE TIMES` does one case so
// many times, in measured(), which callgrind collects. tools/check_instructions.py runs it and
// compares with what was committed, so that a slower path is seen where timings say nothing.
//
// Two ranks live in one thread, and each is asked in turn whether it is done: nothing spins and
// nothing depends on the scheduler.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "capi/hccomm.h"
#include "support/cluster.hpp"

namespace hccomm::test {
namespace {

// What callgrind collects: everything that happens inside.
extern "C" __attribute__((noinline)) void measured(const std::function<void()>& body, int times) {
  for (int i = 0; i < times; ++i) body();
}

class TwoRanks {
 public:
  explicit TwoRanks(const char* transport) : cluster_(transport, 2) {
    for (int warm = 0; warm < 50; ++warm) allreduce(2, "direct");
  }

  void allreduce(std::uint64_t count, const char* algorithm) {
    plan::Call call;
    call.collective = plan::Collective::AllReduce;
    call.type = dtype::DType::F32;
    call.count = count;
    call.in_place = false;
    engine::Operation* running[2];
    for (int rank = 0; rank < 2; ++rank) {
      Node& node = cluster_[rank];
      auto& recipe = recipes_[{rank, count}];
      if (recipe == nullptr) recipe = recipe_of(call, node, algorithm);
      input_[rank].resize(count, 1.0f);
      output_[rank].resize(count);
      running[rank] =
          node.engine().start(node.context(), {recipe, bytes(input_[rank]), bytes(output_[rank])},
                              engine::Follow::Wait);
    }
    finish(running);
  }

  void sendrecv() {
    engine::Operation* running[2];
    engine::Parcel parcel{.peer = 1, .tag = 3, .data = bytes(input_[0]), .bytes = 8};
    parcel.follow = engine::Follow::Wait;
    running[0] =
        cluster_[0].engine().start(cluster_[0].context(), engine::OperationKind::Send, parcel);
    parcel.peer = 0;
    parcel.data = bytes(output_[1]);
    running[1] =
        cluster_[1].engine().start(cluster_[1].context(), engine::OperationKind::Recv, parcel);
    finish(running);
  }

 private:
  static std::byte* bytes(std::vector<float>& values) {
    return reinterpret_cast<std::byte*>(values.data());
  }
  void finish(engine::Operation* (&running)[2]) {
    bool done = false;
    for (long looks = 0; !done && looks < 100'000'000; ++looks) {
      const bool first = cluster_[0].engine().test(*running[0]);
      done = cluster_[1].engine().test(*running[1]) && first;
    }
    for (int rank = 0; rank < 2; ++rank) {
      if (!done || !running[rank]->status.ok()) {
        std::fprintf(stderr, "rank %d: %s\n", rank, running[rank]->status.text().c_str());
        std::_Exit(1);
      }
      cluster_[rank].engine().release(*running[rank]);
    }
  }

  Cluster cluster_;
  std::map<std::pair<int, std::uint64_t>, std::shared_ptr<const engine::Recipe>> recipes_;
  std::vector<float> input_[2], output_[2];
};

void require(int code, const hccomm_error& error) {
  if (code == HCCOMM_OK) return;
  std::fprintf(stderr, "%s\n", error.text);
  std::_Exit(1);
}

// Two ranks behind the C ABI. Their calls are made so that each finds what it waits for.
class TwoCallers {
 public:
  TwoCallers() {
    ::setenv("HCCOMM_TRANSPORTS", "shm", 1);
    std::string folder = std::filesystem::temp_directory_path() / "hccomm-instructions-XXXXXX";
    if (::mkdtemp(folder.data()) == nullptr) std::_Exit(1);
    std::thread other([&] { join(1, folder); });
    join(0, folder);
    other.join();
    std::thread first([&] { warm(0); });
    warm(1);
    first.join();
    std::filesystem::remove_all(folder);
  }

  void broadcast() {
    const hccomm_call call = call_of(HCCOMM_BROADCAST, 0);
    for (const int rank : {0, 1}) require(hccomm_run(comm_[rank], &call, &error_), error_);
  }

  void sendrecv() {
    hccomm_work* first = nullptr;
    const hccomm_call to_1 = call_of(HCCOMM_SEND, 1), to_0 = call_of(HCCOMM_SEND, 0);
    const hccomm_call from_0 = call_of(HCCOMM_RECV, 0), from_1 = call_of(HCCOMM_RECV, 1);
    require(hccomm_start(comm_[0], &to_1, &first, &error_), error_);
    hccomm_release(first);
    require(hccomm_sendrecv(comm_[1], &to_0, &from_0, nullptr, &error_), error_);
    require(hccomm_run(comm_[0], &from_1, &error_), error_);
  }

 private:
  hccomm_call call_of(int collective, int peer) {
    hccomm_call call{};
    call.struct_size = sizeof call;
    call.collective = collective;
    call.dtype = HCCOMM_F32;
    call.count = 2;
    call.root = peer;
    call.input = call.output = {values_, 2, 0, HCCOMM_DEVICE_HOST, 0, nullptr};
    return call;
  }
  void join(int rank, const std::string& folder) {
    const std::string url = "file://" + folder + "/meet";
    hccomm_config config{};
    config.struct_size = sizeof config;
    config.rank = rank;
    config.size = 2;
    config.rendezvous = url.c_str();
    config.flags = HCCOMM_THREAD_RANK;
    hccomm_error error{};
    require(hccomm_init(&config, &comm_[rank], &error), error);
  }
  // The link is made, and the first broadcast of its kind has been confirmed.
  void warm(int rank) {
    hccomm_error error{};
    hccomm_call call = call_of(HCCOMM_BARRIER, 0);
    call.count = 0;
    require(hccomm_run(comm_[rank], &call, &error), error);
    call = call_of(HCCOMM_BROADCAST, 0);
    for (int i = 0; i < 50; ++i) require(hccomm_run(comm_[rank], &call, &error), error);
  }

  hccomm_comm* comm_[2] = {};
  hccomm_error error_{};
  float values_[2] = {1, 2};
};

void alone(int times) {
  hccomm_config config{};
  config.struct_size = sizeof config;
  config.rank = 0;
  config.size = 1;
  hccomm_comm* comm = nullptr;
  hccomm_error error{};
  require(hccomm_init(&config, &comm, &error), error);
  float in[2] = {1, 2}, out[2] = {};
  hccomm_call call{};
  call.struct_size = sizeof call;
  call.collective = HCCOMM_ALL_REDUCE;
  call.dtype = HCCOMM_F32;
  call.count = 2;
  call.input = {in, 2, 0, HCCOMM_DEVICE_HOST, 0, nullptr};
  call.output = {out, 2, 0, HCCOMM_DEVICE_HOST, 0, nullptr};
  measured([&] { hccomm_run(comm, &call, &error); }, times);
  hccomm_close(comm, 1, &error);
}

void make_plan(int times) {
  plan::Call call;
  call.collective = plan::Collective::AllReduce;
  call.count = 1 << 20;
  plan::Group group;
  group.rank = 5;
  group.size = 64;
  const algorithm::Algorithm* ring = algorithm::find(call.collective, "ring");
  measured(
      [&] {
        engine::Recipe recipe;
        recipe.plan = ring->make(call, group, {1 << 14});
        recipe.element_bytes = 4;
        engine::finish_recipe(recipe);
      },
      times);
}

int run(const std::string& name, int times) {
  if (name == "alone") return alone(times), 0;
  if (name == "plan") return make_plan(times), 0;
  if (name.starts_with("c_")) {
    TwoCallers callers;
    if (name == "c_broadcast_8B") return measured([&] { callers.broadcast(); }, times), 0;
    if (name == "c_sendrecv_8B") return measured([&] { callers.sendrecv(); }, times), 0;
  }
  TwoRanks ranks("shm");
  if (name == "allreduce_8B") return measured([&] { ranks.allreduce(2, "direct"); }, times), 0;
  if (name == "allreduce_512K") {
    return measured([&] { ranks.allreduce(1 << 17, "scatter_gather"); }, times), 0;
  }
  if (name == "sendrecv_8B") return measured([&] { ranks.sendrecv(); }, times), 0;
  std::fprintf(stderr,
               "instructions: \"%s\" is no case; alone, plan, allreduce_8B, allreduce_512K, "
               "sendrecv_8B, c_broadcast_8B, c_sendrecv_8B\n",
               name.c_str());
  return 2;
}

}  // namespace
}  // namespace hccomm::test

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: instructions CASE TIMES\n");
    return 2;
  }
  return hccomm::test::run(argv[1], std::atoi(argv[2]));
}
