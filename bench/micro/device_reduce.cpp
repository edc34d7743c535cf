// SPDX-License-Identifier: Apache-2.0
//
// What sums that end on a device take there, and over the host: the trial by which the engine
// chooses (csrc/engine/sums.hpp), for every device here whose adapter can reduce.
//
//   device_reduce [trials = 5]
//
// Each line is one trial; HCCOMM_PLUGINS and HCCOMM_<KIND>_LIB are heeded.
#include <cstdio>
#include <cstdlib>

#include "device/registry.hpp"
#include "dtype/reduce.hpp"
#include "engine/sums.hpp"

using namespace hccomm;

static void try_all(device::Runtime& runtime, int index, int trials) {
  for (const auto type : {dtype::DType::F32, dtype::DType::F64, dtype::DType::I32,
                          dtype::DType::I64, dtype::DType::F16, dtype::DType::BF16}) {
    const device::Reduction how{static_cast<std::int32_t>(type), 0};
    const dtype::Reduce kernel = dtype::reduce(type, dtype::RedOp::Sum);
    for (int k = 0; k < trials; ++k) {
      const engine::SumTrial trial =
          engine::try_sums(runtime, index, how, kernel, dtype::size_of(type));
      const std::string words = trial.why_not.empty() ? trial.text() : "not: " + trial.why_not;
      std::printf("  sum of %s: %s\n", dtype::name(type), words.c_str());
      if (!trial.why_not.empty()) break;
    }
  }
}

int main(int argc, char** argv) {
  const int trials = argc > 1 ? std::atoi(argv[1]) : 5;
  std::printf("the host's kernels: %s\n", dtype::simd_name());
  for (const auto& each : device::Registry::global().survey()) {
    if (each.runtime == nullptr) continue;
    const std::string why = each.runtime->lacks(device::Feature::Reduce);
    if (!why.empty()) std::printf("%s: %s\n", each.name.c_str(), why.c_str());
    auto count = each.runtime->count();
    for (int index = 0; why.empty() && count.ok() && index < count.value(); ++index) {
      std::printf("%s:%d, %s\n", each.name.c_str(), index, each.runtime->describe(index).c_str());
      try_all(*each.runtime, index, trials);
    }
  }
}
