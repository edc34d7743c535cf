// SPDX-License-Identifier: Apache-2.0
//
// How fast the reduction kernels are on one core: payload rate (bytes of the result per second) of
// every type and operation, for every variant this processor can run, or the time of small calls.
//
//   reduce_rate [bytes = 65536] [sources = 2] [variant = the best one | all]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "dtype/kernels.hpp"

using namespace hccomm;
using namespace hccomm::dtype;

// Seconds per call: the best of some rounds, because the machine is shared.
template <typename Call>
static double seconds_per_call(Call call) {
  const auto time = [&](std::size_t repeats) {
    const auto start = Clock::now();
    for (std::size_t i = 0; i < repeats; ++i) call();
    return Seconds(Clock::now() - start).count();
  };
  std::size_t repeats = 1;
  while (time(repeats) < 1e-3) repeats *= 2;
  double best = 1e9;
  for (int round = 0; round < 10; ++round) best = std::min(best, time(repeats));
  return best / static_cast<double>(repeats);
}

static void report(const Kernels& kernels, std::size_t bytes, std::size_t sources_count) {
  // Half a page apart, so that the sources do not compete for the same cache sets.
  const std::size_t pitch = bytes + 2048 + 64;
  std::vector<unsigned char> raw(sources_count * pitch + 64, 0x11);
  unsigned char* const storage =
      raw.data() + 64 - reinterpret_cast<std::uintptr_t>(raw.data()) % 64;
  std::vector<const void*> sources{storage};  // dst is the first source, as in the engine
  for (std::size_t s = 1; s < sources_count; ++s) sources.push_back(&storage[s * pitch]);
  std::printf("%s, %zu bytes, %zu sources: GB/s (ns per call)\n", kernels.name, bytes,
              sources_count);
  for (int t = 0; t < kDTypes; ++t) {
    const auto type = static_cast<DType>(t);
    const std::size_t count = bytes / size_of(type);
    std::printf("%8s", name(type));
    for (const RedOp op : {RedOp::Sum, RedOp::Prod, RedOp::Min, RedOp::Max, RedOp::Bxor}) {
      if (!defined(type, op)) continue;
      const auto two = kernels.reduce[t][static_cast<int>(op)];
      const auto many = kernels.reduce_many[t][static_cast<int>(op)];
      const double seconds = seconds_per_call([&] {
        if (sources_count == 2)
          two(storage, sources[0], sources[1], count);
        else
          many(storage, sources.data(), sources_count, count);
      });
      std::printf("  %s %6.1f (%.0f)", name(op), static_cast<double>(bytes) / seconds / 1e9,
                  seconds * 1e9);
    }
    if (kernels.divide[t] != nullptr) {
      const double seconds =
          seconds_per_call([&] { kernels.divide[t](storage, sources[0], count, 3.0); });
      std::printf("  div %6.1f (%.0f)", static_cast<double>(bytes) / seconds / 1e9, seconds * 1e9);
    }
    std::printf("\n");
  }
}

int main(int argc, char** argv) {
  const std::size_t bytes = argc > 1 ? std::strtoull(argv[1], nullptr, 0) : 65536;
  const std::size_t sources_count = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 2;
  const std::string wanted = argc > 3 ? argv[3] : simd_name();
  if (bytes < 16 || sources_count < 2) {
    std::fprintf(stderr, "reduce_rate: at least 16 bytes and 2 sources\n");
    return 2;
  }
  for (const Kernels* kernels : variants()) {
    if (wanted == "all" || wanted == kernels->name) report(*kernels, bytes, sources_count);
  }
}
