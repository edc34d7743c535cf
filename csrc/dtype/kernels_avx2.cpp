// SPDX-License-Identifier: Apache-2.0
//
// The kernels for x86-64 since about 2013: 256-bit vectors and f16 conversion.
// The target is set after the standard headers: their inline functions are shared by all
// variants and must stay runnable everywhere.
#include "dtype/kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <limits>
#include <type_traits>

#define HCCOMM_VARIANT avx2
#define HCCOMM_VARIANT_NAME "avx2"
#define HCCOMM_F16_LANES 8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif
#include "dtype/loops.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
