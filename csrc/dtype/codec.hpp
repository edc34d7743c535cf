// SPDX-License-Identifier: Apache-2.0
//
// How an element is read for computing and written back: a Codec per type. Compiled once for each
// instruction set (see loops.hpp), hence the namespace by macro: two variants of one inline
// function must not share a name, or the linker would keep only one of them.
//
// A Codec has: Stored, what lies in memory; Work, what is computed with; load() and store();
// Wide, the layout of an intermediate block of Work. All NaNs are stored as one quiet NaN, because
// which NaN an addition returns differs between processors and compilers.
// kPack > 1: that many elements share a 32-bit word, and part() and join() take it apart by
// shifting, which vectorises better than converting between element sizes.
// kSlow: conversion costs far more than a pass through L1, so it has no loops of its own for two
// operands, which would only add code.
// kLanes > 1: load_lanes() and store_lanes() move that many, for conversion instructions that
// compilers do not find by themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#ifndef HCCOMM_VARIANT
#define HCCOMM_VARIANT baseline
#endif
#ifndef HCCOMM_F16_LANES
#if defined(__aarch64__)
#define HCCOMM_F16_LANES 4
#else
#define HCCOMM_F16_LANES 1
#endif
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#elif HCCOMM_F16_LANES > 1
#include <immintrin.h>
#endif

#define HCCOMM_INLINE __attribute__((always_inline)) static inline

namespace hccomm::dtype::HCCOMM_VARIANT {

// Of an intermediate block: small enough to stay in the L1 cache beside its sources.
inline constexpr std::size_t kBlockBytes = 4096;

HCCOMM_INLINE std::uint32_t bits_of(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}
HCCOMM_INLINE float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

struct OneByOne {
  static constexpr int kLanes = 1, kPack = 1;
  static constexpr bool kSlow = false;
};

// Memory and arithmetic alike: integers, and the intermediate blocks of everything else.
template <typename T>
struct Plain : OneByOne {
  using Stored = T;
  using Work = T;
  using Wide = Plain;
  HCCOMM_INLINE T load(T value) { return value; }
  HCCOMM_INLINE T store(T value) { return value; }
};

struct Truth : OneByOne {
  using Stored = std::uint8_t;
  using Work = std::uint8_t;
  using Wide = Plain<std::uint8_t>;
  HCCOMM_INLINE std::uint8_t load(std::uint8_t value) { return value != 0 ? 1 : 0; }
  HCCOMM_INLINE std::uint8_t store(std::uint8_t value) { return value; }
};

template <typename T>
struct Real : OneByOne {
  using Stored = T;
  using Work = T;
  using Wide = Plain<T>;
  HCCOMM_INLINE T load(T value) { return value; }
  HCCOMM_INLINE T store(T value) {
    constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
    return value != value ? kNan : value;
  }
};

template <typename T>
struct Pair {
  T re, im;
};

template <typename T>
struct Complex : OneByOne {
  using Stored = Pair<T>;
  using Work = Pair<T>;
  using Wide = Plain<Pair<T>>;
  HCCOMM_INLINE Pair<T> load(Pair<T> value) { return value; }
  HCCOMM_INLINE Pair<T> store(Pair<T> value) {
    return {Real<T>::store(value.re), Real<T>::store(value.im)};
  }
};

// Intermediate block of packed types: first all first parts of the words, then all second parts.
template <int kParts>
struct Planes {
  using Stored = float;
  static constexpr int kLanes = 1, kPack = kParts;
  static constexpr std::size_t kWords = kBlockBytes / sizeof(float) / kParts;
  HCCOMM_INLINE float part(const float* from, std::size_t word, int j) {
    return from[static_cast<std::size_t>(j) * kWords + word];
  }
  HCCOMM_INLINE void join(float* to, std::size_t word, const float (&parts)[kParts]) {
    for (int j = 0; j < kParts; ++j) to[static_cast<std::size_t>(j) * kWords + word] = parts[j];
  }
};

// Packed codecs from decode() and encode() between the low bits of a word and f32. decode() ignores
// the bits above. Both are free of branches, to vectorise, and indifferent to the processor's
// flush-to-zero mode.
template <typename Code, typename Bits, bool kSlowly>
struct Packed {
  using Stored = Bits;
  using Work = float;
  static constexpr int kLanes = 1, kPack = 4 / sizeof(Bits);
  static constexpr bool kSlow = kSlowly;
  static constexpr int kStep = 8 * sizeof(Bits);
  using Wide = Planes<kPack>;
  using Word __attribute__((may_alias, aligned(1))) = std::uint32_t;

  HCCOMM_INLINE float load(Bits value) { return Code::decode(value); }
  HCCOMM_INLINE Bits store(float value) { return static_cast<Bits>(Code::encode(value)); }
  HCCOMM_INLINE float part(const Bits* from, std::size_t word, int j) {
    return Code::decode(reinterpret_cast<const Word*>(from)[word] >> (kStep * j));
  }
  HCCOMM_INLINE void join(Bits* to, std::size_t word, const float (&parts)[kPack]) {
    std::uint32_t joined = 0;
    for (int j = 0; j < kPack; ++j) joined |= Code::encode(parts[j]) << (kStep * j);
    reinterpret_cast<Word*>(to)[word] = joined;
  }
};

// bf16: the upper half of an f32.
struct BrainCode {
  HCCOMM_INLINE float decode(std::uint32_t code) { return float_of(code << 16); }
  HCCOMM_INLINE std::uint32_t encode(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value != value ? 0x7fc0 : rounded;
  }
};

// A float of 1 + kExponent + kMantissa bits. With kInfinity it is laid out like IEEE 754; without,
// the topmost code is the NaN and what is too large becomes it (f8e4m3fn).
template <int kExponent, int kMantissa, bool kInfinity, std::uint32_t kNan>
struct SmallCode {
  static constexpr int kShift = 23 - kMantissa;
  static constexpr std::uint32_t kRebias = (128u - (1u << (kExponent - 1))) << 23;
  static constexpr std::uint32_t kMinNormal = kRebias + (1u << 23);  // as f32 bits
  static constexpr std::uint32_t kSign = 1u << (kExponent + kMantissa);
  static constexpr std::uint32_t kTop = kSign - (1u << kMantissa);  // exponent all ones
  // The f32 bits of what the first code that is no finite number would stand for.
  static constexpr std::uint32_t kLimit = ((kInfinity ? kTop : kSign - 1) << kShift) + kRebias;

  HCCOMM_INLINE float decode(std::uint32_t code) {
    const std::uint32_t sign = (code & kSign) << (31 - kExponent - kMantissa);
    const std::uint32_t magnitude = code & (kSign - 1);
    const std::uint32_t bits = magnitude << kShift;
    // A subnormal is the distance of (1 + mantissa) * 2^e from 1 * 2^e.
    const float subnormal = float_of(bits + kMinNormal) - float_of(kMinNormal);
    std::uint32_t result = magnitude < (1u << kMantissa) ? bits_of(subnormal) : bits + kRebias;
    if constexpr (kInfinity) {
      result = magnitude >= kTop ? bits | 0x7f800000u : result;
    } else {
      result = magnitude == kSign - 1 ? 0x7fc00000u : result;
    }
    return float_of(result | sign);
  }

  // Adding 2^(e + kShift) to a number of exponent e makes the processor round it (to nearest even)
  // at its kMantissa-th bit, and leaves the rounded mantissa in the lowest bits of the sum.
  HCCOMM_INLINE std::uint32_t encode(float value) {
    const std::uint32_t sign = (bits_of(value) & 0x80000000u) >> (31 - kExponent - kMantissa);
    const float magnitude = float_of(bits_of(value) & 0x7fffffffu);
    const float limited = magnitude < float_of(kLimit) ? magnitude : float_of(kLimit);
    const float binade = float_of(bits_of(limited) & 0x7f800000u);
    const float lowest = float_of(kMinNormal);
    const std::uint32_t exponent = bits_of(binade > lowest ? binade : lowest);
    const std::uint32_t magic = exponent + (static_cast<std::uint32_t>(kShift) << 23);
    const std::uint32_t mantissa = bits_of(limited + float_of(magic)) - magic;
    const std::uint32_t code = mantissa + ((exponent - kMinNormal) >> kShift);
    return value != value ? kNan : code | sign;
  }
};

using Brain = Packed<BrainCode, std::uint16_t, false>;
using F8E4M3 = Packed<SmallCode<4, 3, false, 0x7f>, std::uint8_t, true>;
using F8E5M2 = Packed<SmallCode<5, 2, true, 0x7f>, std::uint8_t, true>;
using F16Software = Packed<SmallCode<5, 10, true, 0x7e00>, std::uint16_t, true>;

}  // namespace hccomm::dtype::HCCOMM_VARIANT

#include "dtype/codec_f16.hpp"
