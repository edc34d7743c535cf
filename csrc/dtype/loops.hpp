// SPDX-License-Identifier: Apache-2.0
//
// All kernels, as plain loops that the compiler vectorises. kernels_baseline.cpp, kernels_avx2.cpp
// and kernels_avx512.cpp each compile this file for their instruction set and get one table out
// of it.
//
// Requires: the includer defines HCCOMM_VARIANT (its namespace), HCCOMM_VARIANT_NAME and, where it
// has f16 conversion instructions, HCCOMM_F16_LANES, and sets its target before it includes this.
#pragma once

#include <cstddef>
#include <type_traits>

#include "dtype/kernels.hpp"

// Vectorise in every build type; never contract a * b + c, whose bits would depend on the variant.
// Nobody here reads floating point exception flags, and believing so would block vectorising.
#if defined(__clang__)
#pragma clang fp contract(off)
#pragma clang diagnostic ignored "-Wpass-failed"  // where it cannot vectorise, a plain loop is fine
#define HCCOMM_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define HCCOMM_SCALAR _Pragma("clang loop vectorize(disable) unroll(disable)")
#define HCCOMM_SMALL __attribute__((noinline))
#else
#pragma GCC optimize("O3", "fp-contract=off", "no-trapping-math")
#define HCCOMM_INDEPENDENT _Pragma("GCC ivdep")
#define HCCOMM_SCALAR
#define HCCOMM_SMALL __attribute__((noinline, optimize("no-tree-vectorize")))
#endif

#include "dtype/codec.hpp"
#include "dtype/operations.hpp"

#ifndef HCCOMM_VARIANT_NAME
#define HCCOMM_VARIANT_NAME "baseline"
#endif
#define HCCOMM_NOINLINE __attribute__((noinline))

namespace hccomm::dtype::HCCOMM_VARIANT {

// dst = a op b, each through its own codec. No iteration reads what another one writes: dst is
// exactly a, exactly b, or apart. A unit is kPack elements.
template <typename Op, typename D, typename A, typename B>
HCCOMM_NOINLINE void combine(typename D::Stored* dst, const typename A::Stored* a,
                             const typename B::Stored* b, std::size_t units) {
  std::size_t i = 0;
  if constexpr (D::kPack > 1) {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) {
      float parts[D::kPack];
      for (int j = 0; j < D::kPack; ++j) parts[j] = Op::apply(A::part(a, i, j), B::part(b, i, j));
      D::join(dst, i, parts);
    }
  } else if constexpr (D::kLanes > 1) {
    for (; i + D::kLanes <= units; i += D::kLanes) {
      D::store_lanes(dst + i, Op::apply(A::load_lanes(a + i), B::load_lanes(b + i)));
    }
    for (; i < units; ++i) dst[i] = D::store(Op::apply(A::load(a[i]), B::load(b[i])));
  } else {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) dst[i] = D::store(Op::apply(A::load(a[i]), B::load(b[i])));
  }
}

// dst = src, each through its own codec.
template <typename D, typename A>
HCCOMM_NOINLINE void convert(typename D::Stored* dst, const typename A::Stored* src,
                             std::size_t units) {
  std::size_t i = 0;
  if constexpr (D::kPack > 1) {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) {
      float parts[D::kPack];
      for (int j = 0; j < D::kPack; ++j) parts[j] = A::part(src, i, j);
      D::join(dst, i, parts);
    }
  } else if constexpr (D::kLanes > 1) {
    for (; i + D::kLanes <= units; i += D::kLanes) D::store_lanes(dst + i, A::load_lanes(src + i));
    for (; i < units; ++i) dst[i] = D::store(A::load(src[i]));
  } else {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) dst[i] = D::store(A::load(src[i]));
  }
}

// Like combine(), with the same right operand for all.
template <typename Op, typename C>
HCCOMM_NOINLINE void scale(typename C::Stored* dst, const typename C::Stored* src,
                           std::size_t units, typename C::Work factor) {
  std::size_t i = 0;
  if constexpr (C::kPack > 1) {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) {
      float parts[C::kPack];
      for (int j = 0; j < C::kPack; ++j) parts[j] = Op::apply(C::part(src, i, j), factor);
      C::join(dst, i, parts);
    }
  } else if constexpr (C::kLanes > 1) {
    for (; i + C::kLanes <= units; i += C::kLanes) {
      C::store_lanes(dst + i, Op::apply(C::load_lanes(src + i), factor));
    }
    for (; i < units; ++i) dst[i] = C::store(Op::apply(C::load(src[i]), factor));
  } else {
    HCCOMM_INDEPENDENT
    for (i = 0; i < units; ++i) dst[i] = C::store(Op::apply(C::load(src[i]), factor));
  }
}

// Element by element: for the last ones that fill no unit, and for counts so small that the passes
// below cost more than the work.
template <typename Op, typename C>
HCCOMM_SMALL void reduce_few(typename C::Stored* dst, const void* const* sources,
                             std::size_t sources_count, std::size_t from, std::size_t to) {
  using Stored = typename C::Stored;
  HCCOMM_SCALAR
  for (std::size_t i = from; i < to; ++i) {
    auto sum = C::load(static_cast<const Stored*>(sources[0])[i]);
    HCCOMM_SCALAR
    for (std::size_t s = 1; s < sources_count; ++s) {
      sum = Op::apply(sum, C::load(static_cast<const Stored*>(sources[s])[i]));
    }
    dst[i] = C::store(sum);
  }
}

template <typename Op, typename C>
HCCOMM_SMALL void scale_few(typename C::Stored* dst, const typename C::Stored* src,
                            std::size_t count, typename C::Work factor) {
  HCCOMM_SCALAR
  for (std::size_t i = 0; i < count; ++i) dst[i] = C::store(Op::apply(C::load(src[i]), factor));
}

}  // namespace hccomm::dtype::HCCOMM_VARIANT

#include "dtype/entries.hpp"
