// SPDX-License-Identifier: Apache-2.0
//
// The kernels for x86-64 with 512-bit vectors (the set of the first servers that had them).
// The target is set after the standard headers: their inline functions are shared by all
// variants and must stay runnable everywhere.
#include "dtype/kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <limits>
#include <type_traits>

#define HCCOMM_VARIANT avx512
#define HCCOMM_VARIANT_NAME "avx512"
#define HCCOMM_F16_LANES 16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c")
#endif
#include "dtype/loops.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
