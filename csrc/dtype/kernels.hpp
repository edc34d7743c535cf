// SPDX-License-Identifier: Apache-2.0
//
// One variant of all kernels: the same loops compiled for one instruction set. reduce.cpp picks the
// best one; the tests compare them all. Private to dtype/.
#pragma once

#include <vector>

#include "dtype/reduce.hpp"

namespace hccomm::dtype {

// Null where the operation has no meaning for the type.
struct Kernels {
  const char* name = nullptr;
  Reduce reduce[kDTypes][kRedOps] = {};
  ReduceMany reduce_many[kDTypes][kRedOps] = {};
  Scale multiply[kDTypes] = {};
  Scale divide[kDTypes] = {};
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// The variants that this processor can run, best first; the last one is always "baseline" or
// "neon". Thread: any.
std::vector<const Kernels*> variants();

}  // namespace hccomm::dtype
