// SPDX-License-Identifier: Apache-2.0
//
// Element types and reduction operations: their names, sizes, and which pairs have a meaning.
// The numbers are the C ABI's (capi/hccomm.h) and travel on the wire.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hccomm::dtype {

enum class DType : std::uint8_t {
  Bool,
  I8,
  I16,
  I32,
  I64,
  U8,
  U16,
  U32,
  U64,
  F16,
  BF16,
  F8E4M3,
  F8E5M2,
  F32,
  F64,
  C64,
  C128,
};
inline constexpr int kDTypes = 17;

enum class RedOp : std::uint8_t { Sum, Avg, Prod, Min, Max, Band, Bor, Bxor, PremulSum };
inline constexpr int kRedOps = 9;

std::size_t size_of(DType type) noexcept;  // bytes: 1, 2, 4, 8 or 16
const char* name(DType type) noexcept;     // "f32"
const char* name(RedOp op) noexcept;       // "sum"

// Whether `op` has a meaning for `type`:
//   Bool            SUM and MAX are OR, PROD and MIN are AND, and the three bitwise ones
//   integers        all but AVG and PREMUL_SUM (they would silently round)
//   floats          all but the bitwise ones
//   complex         SUM AVG PROD PREMUL_SUM
bool defined(DType type, RedOp op) noexcept;

}  // namespace hccomm::dtype
