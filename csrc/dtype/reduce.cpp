// SPDX-License-Identifier: Apache-2.0
//
// Picks the best variant of the kernels for this processor, once.
#include "dtype/reduce.hpp"

#include <array>

#include "base/error.hpp"
#include "dtype/kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace hccomm::dtype {

#if defined(__x86_64__)
static bool has_f16c() {  // not among the names every compiler's __builtin_cpu_supports() knows
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

using Found = std::array<const Kernels*, 3>;

// What this processor can run, best first; how many that are.
static std::size_t find_variants(Found& found) noexcept {
  std::size_t count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && has_f16c();
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found[count++] = &avx512::kernels;
  }
  if (has_avx2) found[count++] = &avx2::kernels;
#endif
  found[count++] = &baseline::kernels;
  return count;
}

std::vector<const Kernels*> variants() {
  Found found{};
  const std::size_t count = find_variants(found);
  return {found.begin(), found.begin() + count};
}

static const Kernels& best() noexcept {
  static const Kernels& chosen = [&]() -> const Kernels& {
    Found found{};
    find_variants(found);
    return *found[0];
  }();
  return chosen;
}

template <typename Kernel>
static Kernel checked(Kernel kernel) {
  HCCOMM_CHECK(kernel != nullptr, "a kernel is asked for only where defined(type, op)");
  return kernel;
}

Reduce reduce(DType type, RedOp op) noexcept {
  return checked(best().reduce[static_cast<int>(type)][static_cast<int>(op)]);
}
ReduceMany reduce_many(DType type, RedOp op) noexcept {
  return checked(best().reduce_many[static_cast<int>(type)][static_cast<int>(op)]);
}
Scale multiply(DType type) noexcept { return checked(best().multiply[static_cast<int>(type)]); }
Scale divide(DType type) noexcept { return checked(best().divide[static_cast<int>(type)]); }

const char* simd_name() noexcept { return best().name; }

}  // namespace hccomm::dtype
