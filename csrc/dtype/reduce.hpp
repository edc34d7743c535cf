// SPDX-License-Identifier: Apache-2.0
//
// The reduction kernels: dst = a op b, element by element, on host memory. engine/ calls them with
// pieces of 64 KiB or so that are still in cache. The best variant for this processor is chosen
// once, at the first call.
//
// Numeric contract: the operands are taken in the order given; MIN and MAX propagate NaN (either
// operand NaN gives NaN) and take the right one of -0 and +0; every NaN result is the one positive
// quiet NaN of its type (f8e4m3 overflow alone keeps its sign); integers wrap; bool reads any
// non-zero byte as true and writes 0 or 1; f16, bf16 and f8 compute in f32 and round to nearest
// even (overflow: e5m2 gives infinity; e4m3fn, which has none, gives NaN, whereas the casts of
// torch 2.13 saturate to 448). All variants of one kernel give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype/dtype.hpp"

namespace hccomm::dtype {

// dst[i] = a[i] op b[i]. dst may be a or b; otherwise no overlap. Any alignment of the element
// size. AVG and PREMUL_SUM reduce like SUM here; divide() and multiply() do the rest.
using Reduce = void (*)(void* dst, const void* a, const void* b, std::size_t count) noexcept;

// dst[i] = ((s0[i] op s1[i]) op s2[i]) ...: in this order. Half types accumulate in f32 and round
// once at the end. dst may be one of the sources. Requires: sources_count >= 1.
using ReduceMany = void (*)(void* dst, const void* const* sources, std::size_t sources_count,
                            std::size_t count) noexcept;

// dst[i] = src[i] op factor, in f32 for the small floats and f32; dst may be src.
using Scale = void (*)(void* dst, const void* src, std::size_t count, double factor) noexcept;

// Requires: defined(type, op).
Reduce reduce(DType type, RedOp op) noexcept;
ReduceMany reduce_many(DType type, RedOp op) noexcept;
// Requires: a floating or complex type. multiply() serves PREMUL_SUM; divide() serves AVG
// (a true division, so that an exact mean stays exact).
Scale multiply(DType type) noexcept;
Scale divide(DType type) noexcept;

const char* simd_name() noexcept;  // "avx512", "avx2", "baseline" or "neon": for `hccomm info`

}  // namespace hccomm::dtype
