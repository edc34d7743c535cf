// SPDX-License-Identifier: Apache-2.0
//
// The kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define HCCOMM_VARIANT baseline
#if defined(__aarch64__)
#define HCCOMM_VARIANT_NAME "neon"
#else
#define HCCOMM_VARIANT_NAME "baseline"
#endif
#include "dtype/loops.hpp"
