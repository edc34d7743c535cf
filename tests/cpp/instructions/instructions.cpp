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
#include <functional>
#include <map>
#include <string>
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

void alone(int times) {
  hccomm_config config{};
  config.struct_size = sizeof config;
  config.rank = 0;
  config.size = 1;
  hccomm_comm* comm = nullptr;
  hccomm_error error{};
  if (hccomm_init(&config, &comm, &error) != HCCOMM_OK) {
    std::fprintf(stderr, "%s\n", error.text);
    std::_Exit(1);
  }
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
  TwoRanks ranks("shm");
  if (name == "allreduce_8B") return measured([&] { ranks.allreduce(2, "direct"); }, times), 0;
  if (name == "allreduce_512K") {
    return measured([&] { ranks.allreduce(1 << 17, "scatter_gather"); }, times), 0;
  }
  if (name == "sendrecv_8B") return measured([&] { ranks.sendrecv(); }, times), 0;
  std::fprintf(stderr,
               "instructions: \"%s\" is no case; alone, plan, allreduce_8B, allreduce_512K, "
               "sendrecv_8B\n",
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
