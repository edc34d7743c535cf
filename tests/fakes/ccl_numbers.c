/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fake collective libraries (ccl.h) do with elements: reduce and scale them. */
#include <string.h>

#include "ccl.h"

uint64_t ccl_size_of(int type) {
  static const uint64_t sizes[TYPES] = {1, 1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  return type >= 0 && type < TYPES ? sizes[type] : 0;
}

#ifdef __FLT16_MANT_DIG__
typedef _Float16 half;
#define CONVERTS
#else /* clang below 15 on x86: without the instruction it wants a function that nobody has */
typedef __fp16 half;
#define CONVERTS __attribute__((target("f16c")))
#endif

CONVERTS static float half_to_float(uint16_t bits) {
  half value;
  memcpy(&value, &bits, sizeof value);
  return (float)value;
}
CONVERTS static uint16_t float_to_half(float wide) {
  const half value = (half)wide;
  uint16_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static float brain_to_float(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
static uint16_t float_to_brain(float value) { /* to nearest even; no NaN is tested */
  uint32_t wide;
  memcpy(&wide, &value, sizeof wide);
  return (uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

void ccl_combine(int type, int op, char* into, const char* with, uint64_t bytes) {
#define EACH(number, c_type, wide, load, store)             \
  if (type == number) {                                     \
    for (uint64_t i = 0; i < bytes / sizeof(c_type); ++i) { \
      c_type x, y;                                          \
      memcpy(&x, into + i * sizeof x, sizeof x);            \
      memcpy(&y, with + i * sizeof y, sizeof y);            \
      const wide a = load(x), b = load(y);                  \
      x = store((wide)(op == PROD  ? a * b                  \
                       : op == MAX ? (a > b ? a : b)        \
                       : op == MIN ? (a < b ? a : b)        \
                                   : a + b));               \
      memcpy(into + i * sizeof x, &x, sizeof x);            \
    }                                                       \
  }
  EACH(I8, int8_t, int, (int), (int8_t))
  EACH(U8, uint8_t, unsigned, (unsigned), (uint8_t))
  EACH(I16, int16_t, int, (int), (int16_t))
  EACH(I32, int32_t, uint32_t, (uint32_t), (int32_t))
  EACH(U32, uint32_t, uint32_t, (uint32_t), (uint32_t))
  EACH(I64, int64_t, int64_t, (int64_t), (int64_t))
  EACH(U64, uint64_t, uint64_t, (uint64_t), (uint64_t))
  EACH(F16, uint16_t, float, half_to_float, float_to_half)
  EACH(BF16, uint16_t, float, brain_to_float, float_to_brain)
  EACH(F32, float, float, (float), (float))
  EACH(F64, double, double, (double), (double))
#undef EACH
}

void ccl_scale(int type, char* data, uint64_t bytes, double factor) {
#define EACH(number, c_type, load, store)                   \
  if (type == number) {                                     \
    for (uint64_t i = 0; i < bytes / sizeof(c_type); ++i) { \
      c_type x;                                             \
      memcpy(&x, data + i * sizeof x, sizeof x);            \
      x = store(load(x) * factor);                          \
      memcpy(data + i * sizeof x, &x, sizeof x);            \
    }                                                       \
  }
  EACH(F16, uint16_t, half_to_float, float_to_half)
  EACH(BF16, uint16_t, brain_to_float, float_to_brain)
  EACH(F32, float, (double), (float))
  EACH(F64, double, (double), (double))
#undef EACH
}
