// SPDX-License-Identifier: Apache-2.0
//
// The instruction has a latency of three cycles and takes one a cycle, so three parts of a block
// are computed side by side and joined: the crc of A followed by B is shift(crc(A), |B|) ^ crc(B).
// shift() is linear over GF(2): a table for each byte of its argument.
//
// Where the processor multiplies polynomials in wide registers (VPCLMULQDQ), 256 bytes are folded
// onto the next 256 at a time: 16 lanes of 128 bits, each moved on by 2048 bits, that is multiplied
// by x^2048 mod P, half by half. What is left at the end, 16 bytes congruent to all that went
// before, goes through the instruction.
//
// Zen takes two cycles for such a multiplication, and its unit for the instruction has nothing to
// do meanwhile: there long blocks are cut in two, one part folded while the other goes through the
// instruction.
#include "base/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace hccomm {

static constexpr std::uint32_t kPolynomial = 0x82F63B78;  // reflected
static constexpr std::size_t kPart = 4096;                // bytes of one of three parts

using Table = std::array<std::uint32_t, 256>;

static constexpr std::uint32_t shift_one_bit(std::uint32_t crc) {
  return (crc >> 1) ^ (kPolynomial & (0u - (crc & 1u)));
}

// tables[k][b]: what byte b contributes once k more zero bytes have passed.
static constexpr std::array<Table, 8> make_tables() {
  std::array<Table, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = shift_one_bit(crc);
    tables[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}
static constexpr std::array<Table, 8> kTables = make_tables();

std::uint32_t detail::crc32c_by_tables(std::uint32_t crc, const void* data,
                                       std::size_t bytes) noexcept {
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint32_t state = ~crc;
  for (; bytes >= 8; bytes -= 8, at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, sizeof word);
    word ^= state;
    state = 0;
    for (std::size_t k = 0; k < 8; ++k) state ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; bytes > 0; --bytes, ++at) state = (state >> 8) ^ kTables[0][(state ^ *at) & 0xff];
  return ~state;
}

#if defined(__x86_64__) || (defined(__aarch64__) && defined(__ARM_FEATURE_CRC32))

#if defined(__x86_64__)
#define HCCOMM_CRC_TARGET __attribute__((target("sse4.2")))
HCCOMM_CRC_TARGET static inline std::uint64_t step(std::uint64_t state, std::uint64_t word) {
  return _mm_crc32_u64(state, word);
}
HCCOMM_CRC_TARGET static inline std::uint64_t step(std::uint64_t state, unsigned char byte) {
  return _mm_crc32_u8(static_cast<std::uint32_t>(state), byte);
}
#else
#define HCCOMM_CRC_TARGET
static inline std::uint64_t step(std::uint64_t state, std::uint64_t word) {
  return __crc32cd(static_cast<std::uint32_t>(state), word);
}
static inline std::uint64_t step(std::uint64_t state, unsigned char byte) {
  return __crc32cb(static_cast<std::uint32_t>(state), byte);
}
#endif

static constexpr std::uint32_t shift_zeros(std::uint32_t crc, std::size_t bytes) {
  for (std::size_t k = 0; k < bytes; ++k) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
  return crc;
}

// The 32 columns of shift by kPart bytes, spread over one table for each byte of the argument.
static std::array<Table, 4> make_shift() {
  std::array<Table, 4> tables{};
  std::array<std::uint32_t, 32> column{};
  for (std::size_t bit = 0; bit < 32; ++bit) column[bit] = shift_zeros(1u << bit, kPart);
  for (std::size_t k = 0; k < 4; ++k) {
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      for (std::size_t bit = 0; bit < 8; ++bit) {
        if ((byte >> bit & 1) != 0) tables[k][byte] ^= column[8 * k + bit];
      }
    }
  }
  return tables;
}

static std::uint64_t shift_part(std::uint64_t state) {
  static const std::array<Table, 4> tables = make_shift();
  return tables[0][state & 0xff] ^ tables[1][state >> 8 & 0xff] ^ tables[2][state >> 16 & 0xff] ^
         tables[3][state >> 24 & 0xff];
}

HCCOMM_CRC_TARGET static std::uint64_t three_parts(std::uint64_t first, const unsigned char* at) {
  std::uint64_t second = 0, third = 0;
  for (std::size_t k = 0; k < kPart; k += 8) {
    std::uint64_t a, b, c;
    std::memcpy(&a, at + k, sizeof a);
    std::memcpy(&b, at + kPart + k, sizeof b);
    std::memcpy(&c, at + 2 * kPart + k, sizeof c);
    first = step(first, a);
    second = step(second, b);
    third = step(third, c);
  }
  return shift_part(shift_part(first) ^ second) ^ third;
}

HCCOMM_CRC_TARGET static std::uint32_t by_instruction(std::uint32_t crc, const void* data,
                                                      std::size_t bytes) noexcept {
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint64_t state = ~crc;
  for (; bytes >= 3 * kPart; bytes -= 3 * kPart, at += 3 * kPart) state = three_parts(state, at);
  for (; bytes >= 8; bytes -= 8, at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, sizeof word);
    state = step(state, word);
  }
  for (; bytes > 0; --bytes, ++at) state = step(state, *at);
  return ~static_cast<std::uint32_t>(state);
}

#if defined(__x86_64__)
#define HCCOMM_FOLD_TARGET \
  __attribute__((target("avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.2")))

// x^bits mod P as the multiplication of reflected halves wants it: one place up.
static constexpr std::uint64_t power(std::size_t bits) {
  std::uint32_t value = 0x80000000u;  // 1
  for (std::size_t k = 0; k < bits; ++k) value = shift_one_bit(value);
  return std::uint64_t{value} << 1;
}

// What moves a lane on by `Bits`: its first half is 64 bits further from the end than its second.
template <std::size_t Bits>
HCCOMM_FOLD_TARGET static inline __m512i mover() {
  constexpr std::uint64_t kFirst = power(Bits + 32), kSecond = power(Bits - 32);
  return _mm512_set4_epi64(static_cast<long long>(kSecond), static_cast<long long>(kFirst),
                           static_cast<long long>(kSecond), static_cast<long long>(kFirst));
}

HCCOMM_FOLD_TARGET static inline __m512i moved_onto(__m512i lanes, __m512i by, __m512i next) {
  constexpr int kXor3 = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, by, 0x00),
                                   _mm512_clmulepi64_epi128(lanes, by, 0x11), next, kXor3);
}

HCCOMM_FOLD_TARGET static inline __m512i at_64(const unsigned char* at, std::size_t index) {
  return _mm512_loadu_si512(at + 64 * index);
}

// 16 bytes congruent to the four lanes, through the instruction.
HCCOMM_FOLD_TARGET static std::uint64_t remainder_of(__m512i lanes) {
  const __m128i by = _mm_set_epi64x(static_cast<long long>(power(128 - 32)),
                                    static_cast<long long>(power(128 + 32)));
  alignas(64) __m128i parts[4];
  _mm512_store_si512(parts, lanes);
  __m128i left = parts[0];
  for (int each = 1; each < 4; ++each) {
    left = _mm_xor_si128(
        _mm_xor_si128(_mm_clmulepi64_si128(left, by, 0x00), _mm_clmulepi64_si128(left, by, 0x11)),
        parts[each]);
  }
  const auto first = static_cast<std::uint64_t>(_mm_extract_epi64(left, 0));
  return step(step(std::uint64_t{0}, first),
              static_cast<std::uint64_t>(_mm_extract_epi64(left, 1)));
}

static constexpr std::size_t kFold = 256;  // bytes of one step
static constexpr std::size_t kWorthFolding = 512;

HCCOMM_FOLD_TARGET static std::uint32_t by_folding(std::uint32_t crc, const void* data,
                                                   std::size_t bytes) noexcept {
  if (bytes < kWorthFolding) return by_instruction(crc, data, bytes);
  const auto* at = static_cast<const unsigned char*>(data);
  const __m512i before = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~crc)));
  __m512i a = _mm512_xor_si512(at_64(at, 0), before), b = at_64(at, 1), c = at_64(at, 2),
          d = at_64(at, 3);
  const __m512i far = mover<8 * kFold>(), near = mover<512>();
  for (at += kFold, bytes -= kFold; bytes >= kFold; at += kFold, bytes -= kFold) {
    a = moved_onto(a, far, at_64(at, 0));
    b = moved_onto(b, far, at_64(at, 1));
    c = moved_onto(c, far, at_64(at, 2));
    d = moved_onto(d, far, at_64(at, 3));
  }
  __m512i all = moved_onto(moved_onto(moved_onto(a, near, b), near, c), near, d);
  for (; bytes >= 64; at += 64, bytes -= 64) all = moved_onto(all, near, at_64(at, 0));
  return by_instruction(~static_cast<std::uint32_t>(remainder_of(all)), at, bytes);
}

static constexpr std::size_t kTurns = kPart / 32;  // 32 bytes of each of four parts in a turn
static constexpr std::size_t kFolded = kTurns * kFold, kBeside = kFolded + 4 * kPart;

static inline void fetch(const unsigned char* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}

// kBeside bytes: the first kFolded are folded, four parts behind them go through the instruction.
HCCOMM_FOLD_TARGET static std::uint64_t beside(std::uint64_t state, const unsigned char* at) {
  const unsigned char* parts = at + kFolded;
  const __m512i before = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
  __m512i a = _mm512_xor_si512(at_64(at, 0), before), b = at_64(at, 1), c = at_64(at, 2),
          d = at_64(at, 3);
  const __m512i far = mover<8 * kFold>(), near = mover<512>();
  std::uint64_t sums[4] = {};
  for (std::size_t turn = 0;; parts += 32) {
    for (std::size_t k = 0; k < 4; ++k) {  // so many streams want to be told what comes
      fetch(at + kFold + kPart + 64 * k);
      if (turn % 2 == 0) fetch(parts + 1024 + k * kPart);
    }
    for (std::size_t word = 0; word < 32; word += 8) {
      for (std::size_t k = 0; k < 4; ++k) {
        std::uint64_t next;
        std::memcpy(&next, parts + k * kPart + word, sizeof next);
        sums[k] = step(sums[k], next);
      }
    }
    if (++turn == kTurns) break;
    at += kFold;
    a = moved_onto(a, far, at_64(at, 0));
    b = moved_onto(b, far, at_64(at, 1));
    c = moved_onto(c, far, at_64(at, 2));
    d = moved_onto(d, far, at_64(at, 3));
  }
  std::uint64_t sum =
      remainder_of(moved_onto(moved_onto(moved_onto(a, near, b), near, c), near, d));
  for (const std::uint64_t each : sums) sum = shift_part(sum) ^ each;
  return sum;
}

HCCOMM_FOLD_TARGET static std::uint32_t by_both(std::uint32_t crc, const void* data,
                                                std::size_t bytes) noexcept {
  const auto* at = static_cast<const unsigned char*>(data);
  for (; bytes >= kBeside; bytes -= kBeside, at += kBeside) {
    crc = ~static_cast<std::uint32_t>(beside(static_cast<std::uint32_t>(~crc), at));
  }
  return by_folding(crc, at, bytes);
}

static bool slow_to_fold() { return __builtin_cpu_is("amd"); }

static bool folds() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
}
#else
static bool folds() { return false; }
static bool slow_to_fold() { return false; }
static constexpr auto by_folding = by_instruction, by_both = by_instruction;
#endif

static bool has_instruction() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2");
#else
  return true;
#endif
}

#else

static bool has_instruction() { return false; }
static bool folds() { return false; }
static bool slow_to_fold() { return false; }
static constexpr auto by_instruction = detail::crc32c_by_tables, by_folding = by_instruction,
                      by_both = by_instruction;

#endif

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) noexcept {
  static const auto way = folds()             ? slow_to_fold() ? by_both : by_folding
                          : has_instruction() ? by_instruction
                                              : detail::crc32c_by_tables;
  return way(crc, data, bytes);
}

const char* crc32c_kind() noexcept {
  if (folds()) return "vpclmulqdq";
  if (!has_instruction()) return "tables";
#if defined(__x86_64__)
  return "sse4.2";
#else
  return "armv8";
#endif
}

}  // namespace hccomm
