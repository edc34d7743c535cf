// SPDX-License-Identifier: Apache-2.0
//
// What the reduction operations compute, on Work values of the codecs. Part of loops.hpp, which
// includes it under the flags that forbid contraction.
#pragma once

#include <type_traits>

#include "dtype/codec.hpp"

namespace hccomm::dtype::HCCOMM_VARIANT {

HCCOMM_INLINE float negated(float value) { return float_of(bits_of(value) ^ 0x80000000u); }
HCCOMM_INLINE double negated(double value) {
  return __builtin_bit_cast(double, __builtin_bit_cast(std::uint64_t, value) ^ (1ull << 63));
}

// For vectors, codec_f16.hpp has these as instructions.
template <typename T>
HCCOMM_INLINE T lesser(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
HCCOMM_INLINE T greater(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
HCCOMM_INLINE T nan_or(T value, T otherwise) {
  return value != value ? value : otherwise;
}

// The operations, for numbers and for vectors of them.

struct Sum {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    return static_cast<T>(a + b);
  }
};
struct Prod {
  template <typename T, typename U>
  HCCOMM_INLINE T apply(T a, U b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(1u * a * b);  // two u16 would multiply as int and overflow
    } else {
      return a * b;
    }
  }
  // The textbook product; no recovery of infinities as in C's annex G.
  template <typename T>
  HCCOMM_INLINE Pair<T> apply(Pair<T> a, Pair<T> b) {
    // Subtracted by turning the sign bit: GCC 12 fuses the plain form into multiply-add-subtract on
    // AVX-512 even where contraction is off.
    return {a.re * b.re + negated(a.im) * b.im, a.re * b.im + a.im * b.re};
  }
};
struct Quotient {
  template <typename T, typename U>
  HCCOMM_INLINE T apply(T a, U b) {
    return a / b;
  }
};
// Either operand NaN gives NaN; of equal operands (-0 and +0) the right one is taken.
struct Min {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return lesser(a, b);
    } else {
      return nan_or(a, lesser(a, b));
    }
  }
};
struct Max {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return greater(a, b);
    } else {
      return nan_or(a, greater(a, b));
    }
  }
};
struct Band {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Bor {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct Bxor {
  template <typename T>
  HCCOMM_INLINE T apply(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};

}  // namespace hccomm::dtype::HCCOMM_VARIANT
