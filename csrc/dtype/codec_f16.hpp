// SPDX-License-Identifier: Apache-2.0
//
// The f16 codec: with the processor's conversion instructions where the variant has them, else in
// software; the same bits either way. The second part of codec.hpp, which includes it.
#pragma once

#include "dtype/codec.hpp"

namespace hccomm::dtype::HCCOMM_VARIANT {

#if HCCOMM_F16_LANES > 1

// Conversions and min/max; other arithmetic uses the operators of the compilers' vector types.
#if defined(__aarch64__)
using Lanes = float32x4_t;
HCCOMM_INLINE Lanes widen(const std::uint16_t* from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}
HCCOMM_INLINE void narrow(std::uint16_t* to, Lanes value) {
  const Lanes clean =
      vbslq_f32(vceqq_f32(value, value), value, vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000)));
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(clean)));
}
HCCOMM_INLINE Lanes lesser(Lanes a, Lanes b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
HCCOMM_INLINE Lanes greater(Lanes a, Lanes b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
HCCOMM_INLINE Lanes nan_or(Lanes value, Lanes otherwise) {
  return vbslq_f32(vceqq_f32(value, value), otherwise, value);
}
HCCOMM_INLINE float widen_one(std::uint16_t value) {
  return static_cast<float>(__builtin_bit_cast(__fp16, value));
}
HCCOMM_INLINE std::uint16_t narrow_one(float value) {
  return __builtin_bit_cast(std::uint16_t, static_cast<__fp16>(value));
}
#else
#if HCCOMM_F16_LANES == 16
using Lanes = __m512;
#else
using Lanes = __m256;
#endif
// Clang moves comparisons before the conversion, where it has no instruction for them and takes
// the elements one by one. An empty instruction that may change the value keeps them behind it.
HCCOMM_INLINE Lanes opaque(Lanes value) {
  __asm__("" : "+v"(value));
  return value;
}
#endif
#if HCCOMM_F16_LANES == 16
// The unmasked forms make GCC 12 warn of its own headers.
constexpr __mmask16 kAll = 0xffff;
HCCOMM_INLINE Lanes widen(const std::uint16_t* from) {
  return opaque(
      _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
HCCOMM_INLINE void narrow(std::uint16_t* to, Lanes value) {
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const Lanes clean =
      _mm512_mask_mov_ps(value, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(kAll, clean, 0 /* nearest even */));
}
HCCOMM_INLINE Lanes lesser(Lanes a, Lanes b) { return _mm512_maskz_min_ps(kAll, a, b); }
HCCOMM_INLINE Lanes greater(Lanes a, Lanes b) { return _mm512_maskz_max_ps(kAll, a, b); }
HCCOMM_INLINE Lanes nan_or(Lanes value, Lanes otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), value);
}
#elif HCCOMM_F16_LANES == 8
HCCOMM_INLINE Lanes widen(const std::uint16_t* from) {
  return opaque(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
HCCOMM_INLINE void narrow(std::uint16_t* to, Lanes value) {
  const Lanes nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const Lanes quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_blendv_ps(value, quiet, nan), 0 /* nearest even */));
}
HCCOMM_INLINE Lanes lesser(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
HCCOMM_INLINE Lanes greater(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
HCCOMM_INLINE Lanes nan_or(Lanes value, Lanes otherwise) {
  return _mm256_blendv_ps(otherwise, value, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
}
#endif
#if !defined(__aarch64__)
HCCOMM_INLINE float widen_one(std::uint16_t value) { return _cvtsh_ss(value); }
HCCOMM_INLINE std::uint16_t narrow_one(float value) { return _cvtss_sh(value, 0); }
#endif

struct F16Wide : Plain<float> {
  using Wide = F16Wide;
  static constexpr int kLanes = HCCOMM_F16_LANES, kPack = 1;
  HCCOMM_INLINE Lanes load_lanes(const float* from) {
    Lanes value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
  }
  HCCOMM_INLINE void store_lanes(float* to, Lanes value) {
    __builtin_memcpy(to, &value, sizeof(value));
  }
};

struct F16 {
  using Stored = std::uint16_t;
  using Work = float;
  using Wide = F16Wide;
  static constexpr int kLanes = HCCOMM_F16_LANES, kPack = 1;
  static constexpr bool kSlow = false;
  HCCOMM_INLINE float load(std::uint16_t value) { return widen_one(value); }
  HCCOMM_INLINE std::uint16_t store(float value) {
    return value != value ? std::uint16_t{0x7e00} : narrow_one(value);
  }
  HCCOMM_INLINE Lanes load_lanes(const std::uint16_t* from) { return widen(from); }
  HCCOMM_INLINE void store_lanes(std::uint16_t* to, Lanes value) { narrow(to, value); }
};

#else
using F16 = F16Software;
#endif

}  // namespace hccomm::dtype::HCCOMM_VARIANT
