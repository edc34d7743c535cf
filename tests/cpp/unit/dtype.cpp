// SPDX-License-Identifier: Apache-2.0
//
// The reduction kernels, every variant that this processor can run, against a reference that is
// slow and obvious: small floats are decoded by ldexp and encoded by searching the nearest code.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "dtype/codec.hpp"
#include "dtype/kernels.hpp"

namespace hccomm::dtype {
namespace {

using Bytes = std::vector<unsigned char>;

// ---- The reference ------------------------------------------------------------------------------

// A float format of 1 + exponent + mantissa bits.
struct Format {
  int exponent, mantissa;
  bool infinity;      // else the topmost code is the only NaN
  std::uint32_t nan;  // the one that is stored

  std::uint32_t sign_bit() const { return 1u << (exponent + mantissa); }
  int min_exponent() const { return 2 - (1 << (exponent - 1)); }
  std::uint32_t first_special() const {
    return infinity ? sign_bit() - (1u << mantissa) : sign_bit() - 1;
  }
  double decode(std::uint32_t code) const {
    const std::uint32_t magnitude = code & (sign_bit() - 1);
    const double sign = (code & sign_bit()) != 0 ? -1.0 : 1.0;
    if (magnitude >= first_special()) {
      return infinity && magnitude == first_special() ? sign * HUGE_VAL : std::nan("");
    }
    const int field = static_cast<int>(magnitude >> mantissa);
    const double fraction = magnitude & ((1u << mantissa) - 1);
    const double hidden = field != 0 ? std::ldexp(1.0, mantissa) : 0.0;
    return sign * std::ldexp(fraction + hidden, std::max(field - 1, 0) + min_exponent() - mantissa);
  }
  std::uint32_t encode(double value) const {
    if (std::isnan(value)) return nan;
    const std::uint32_t sign = std::signbit(value) ? sign_bit() : 0;
    const std::uint32_t too_large = infinity ? first_special() : nan;
    const double size = std::abs(value);
    if (std::isinf(size)) return too_large | sign;
    // Nearest multiple of the last place, ties to even, is what nearbyint() does.
    const int binade = size == 0 ? min_exponent() : std::max(std::ilogb(size), min_exponent());
    const double nearest =
        std::ldexp(std::nearbyint(std::ldexp(size, mantissa - binade)), binade - mantissa);
    std::uint32_t low = 0, high = first_special();  // the first code not below `nearest`
    while (low < high) {
      const std::uint32_t middle = (low + high) / 2;
      if (decode(middle) < nearest)
        low = middle + 1;
      else
        high = middle;
    }
    return (low == first_special() ? too_large : low) | sign;
  }
};

constexpr Format kF16{5, 10, true, 0x7e00};
constexpr Format kBF16{8, 7, true, 0x7fc0};
constexpr Format kF8E4M3{4, 3, false, 0x7f};
constexpr Format kF8E5M2{5, 2, true, 0x7f};

template <typename T>
struct Number {
  using Stored = T;
  using Work = T;
  static T load(T value) { return value; }
  static T store(T value) {
    if constexpr (std::is_floating_point_v<T>) {
      return std::isnan(value) ? std::numeric_limits<T>::quiet_NaN() : value;
    } else {
      return value;
    }
  }
};
struct Logical {
  using Stored = std::uint8_t;
  using Work = bool;
  static bool load(std::uint8_t value) { return value != 0; }
  static std::uint8_t store(bool value) { return value ? 1 : 0; }
};
template <typename Bits, const Format& kFormat>
struct Half {
  using Stored = Bits;
  using Work = float;
  static float load(Bits value) { return static_cast<float>(kFormat.decode(value)); }
  static Bits store(float value) { return static_cast<Bits>(kFormat.encode(value)); }
};
template <typename T>
struct Compound {
  using Stored = std::complex<T>;
  using Work = std::complex<T>;
  static Work load(Stored value) { return value; }
  static Stored store(Work value) {
    return {Number<T>::store(value.real()), Number<T>::store(value.imag())};
  }
};

template <typename T>
T apply(RedOp op, T a, T b) {
  using Wide = std::conditional_t<std::is_integral_v<T>, unsigned long long, T>;
  switch (op) {
    case RedOp::Sum:
    case RedOp::Avg:
    case RedOp::PremulSum: return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    case RedOp::Prod: return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case RedOp::Min: return a != a ? a : a < b ? a : b;
    case RedOp::Max: return a != a ? a : a > b ? a : b;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == RedOp::Band) return static_cast<T>(a & b);
    if (op == RedOp::Bor) return static_cast<T>(a | b);
    return static_cast<T>(a ^ b);
  }
  return a;
}
template <>
bool apply(RedOp op, bool a, bool b) {
  if (op == RedOp::Sum || op == RedOp::Max || op == RedOp::Bor) return a || b;
  return op == RedOp::Bxor ? a != b : a && b;
}
template <typename T>
std::complex<T> apply(RedOp op, std::complex<T> a, std::complex<T> b) {
  if (op != RedOp::Prod) return {a.real() + b.real(), a.imag() + b.imag()};
  // Each product rounded by itself: the compiler must not contract them.
  const volatile T rr = a.real() * b.real(), ii = a.imag() * b.imag();
  const volatile T ri = a.real() * b.imag(), ir = a.imag() * b.real();
  return {rr - ii, ri + ir};
}

// Calls body.template operator()<Codec>(type) for every type.
template <typename Body>
void for_each_type(Body body) {
  body.template operator()<Logical>(DType::Bool);
  body.template operator()<Number<std::int8_t>>(DType::I8);
  body.template operator()<Number<std::int16_t>>(DType::I16);
  body.template operator()<Number<std::int32_t>>(DType::I32);
  body.template operator()<Number<std::int64_t>>(DType::I64);
  body.template operator()<Number<std::uint8_t>>(DType::U8);
  body.template operator()<Number<std::uint16_t>>(DType::U16);
  body.template operator()<Number<std::uint32_t>>(DType::U32);
  body.template operator()<Number<std::uint64_t>>(DType::U64);
  body.template operator()<Half<std::uint16_t, kF16>>(DType::F16);
  body.template operator()<Half<std::uint16_t, kBF16>>(DType::BF16);
  body.template operator()<Half<std::uint8_t, kF8E4M3>>(DType::F8E4M3);
  body.template operator()<Half<std::uint8_t, kF8E5M2>>(DType::F8E5M2);
  body.template operator()<Number<float>>(DType::F32);
  body.template operator()<Number<double>>(DType::F64);
  body.template operator()<Compound<float>>(DType::C64);
  body.template operator()<Compound<double>>(DType::C128);
}

// ---- Inputs -------------------------------------------------------------------------------------

constexpr RedOp op_at(int index) { return static_cast<RedOp>(index); }

// Random bit patterns (so every NaN and subnormal is met), special values, and ordinary numbers.
template <typename Codec>
std::vector<typename Codec::Stored> sample(std::size_t count, unsigned seed) {
  using Stored = typename Codec::Stored;
  std::mt19937_64 random(seed);
  std::vector<Stored> values(count);
  for (Stored& value : values) {
    const std::uint64_t bits[2] = {random(), random()};
    std::memcpy(&value, bits, sizeof(value));
    if constexpr (std::is_floating_point_v<typename Codec::Work>) {
      using Work = typename Codec::Work;
      using Limits = std::numeric_limits<Work>;
      static const Work specials[] = {0,
                                      -Work{0},
                                      1,
                                      -1,
                                      Limits::infinity(),
                                      -Limits::infinity(),
                                      Limits::quiet_NaN(),
                                      Limits::max(),
                                      Limits::denorm_min()};
      const auto kind = random() % 4;
      if (kind == 0) value = Codec::store(specials[random() % std::size(specials)]);
      if (kind == 1) value = Codec::store(static_cast<Work>(static_cast<int>(random() % 41)) - 20);
    }
  }
  return values;
}

// Storage for `count` elements, `shift` elements from where the allocator put it, with guards.
template <typename Stored>
class Buffer {
 public:
  Buffer(const std::vector<Stored>& values, std::size_t shift)
      : shift_(shift), all_(shift, guard()) {
    all_.insert(all_.end(), values.begin(), values.end());
    all_.insert(all_.end(), 4, guard());
  }
  Stored* data() { return all_.data() + shift_; }
  bool guards_hold() const {
    const Stored expected = guard();
    const auto same = [&](const Stored& e) { return std::memcmp(&e, &expected, sizeof(e)) == 0; };
    return std::all_of(all_.begin(), all_.begin() + static_cast<long>(shift_), same) &&
           std::all_of(all_.end() - 4, all_.end(), same);
  }

 private:
  static Stored guard() {
    Stored value;
    std::memset(static_cast<void*>(&value), 0x5a, sizeof(value));
    return value;
  }
  std::size_t shift_;
  std::vector<Stored> all_;
};

// Empty, or where and how the bits differ.
template <typename Stored>
std::string difference(const std::vector<Stored>& expected, const Stored* actual) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::memcmp(&expected[i], actual + i, sizeof(Stored)) == 0) continue;
    std::uint64_t bits[2] = {0, 0}, wanted[2] = {0, 0};
    std::memcpy(bits, actual + i, sizeof(Stored));
    std::memcpy(wanted, &expected[i], sizeof(Stored));
    std::ostringstream text;
    text << "element " << i << " of " << expected.size() << std::hex << ": " << bits[1] << " "
         << bits[0] << " instead of " << wanted[1] << " " << wanted[0];
    return text.str();
  }
  return "";
}

template <typename Codec>
using Columns = std::vector<std::vector<typename Codec::Stored>>;

template <typename Codec>
std::vector<typename Codec::Stored> chain(RedOp op, const Columns<Codec>& sources) {
  std::vector<typename Codec::Stored> result(sources[0].size());
  for (std::size_t i = 0; i < result.size(); ++i) {
    typename Codec::Work sum = Codec::load(sources[0][i]);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      sum = apply(op, sum, Codec::load(sources[s][i]));
    }
    result[i] = Codec::store(sum);
  }
  return result;
}

std::string label(const Kernels& kernels, DType type, RedOp op) {
  return std::string(kernels.name) + " " + name(type) + " " + name(op);
}

// ---- Tests --------------------------------------------------------------------------------------

TEST(DType, SizesNamesAndMeaningsAreThoseOfTheContract) {
  for_each_type([]<typename Codec>(DType type) {
    EXPECT_EQ(size_of(type), sizeof(typename Codec::Stored)) << name(type);
    int meanings = 0;
    for (int op = 0; op < kRedOps; ++op) meanings += defined(type, op_at(op)) ? 1 : 0;
    const bool complex = type == DType::C64 || type == DType::C128;
    const bool real = !complex && !std::is_integral_v<typename Codec::Work>;
    EXPECT_EQ(meanings, complex ? 4 : real ? 6 : 7) << name(type);
  });
  EXPECT_STREQ(name(DType::F8E4M3), "f8e4m3");
  EXPECT_STREQ(name(RedOp::PremulSum), "premul_sum");
  EXPECT_FALSE(defined(DType::I32, RedOp::Avg));
  EXPECT_FALSE(defined(DType::F32, RedOp::Bor));
  EXPECT_FALSE(defined(DType::C64, RedOp::Max));
  EXPECT_FALSE(defined(static_cast<DType>(kDTypes), RedOp::Sum));
  EXPECT_EQ(size_of(static_cast<DType>(kDTypes)), 0u);
}

TEST(DType, EveryVariantHasAKernelExactlyWhereTheOperationIsDefined) {
  for (const Kernels* kernels : variants()) {
    for (int t = 0; t < kDTypes; ++t) {
      for (int o = 0; o < kRedOps; ++o) {
        const bool expected = defined(static_cast<DType>(t), op_at(o));
        EXPECT_EQ(kernels->reduce[t][o] != nullptr, expected) << name(static_cast<DType>(t)) << o;
        EXPECT_EQ(kernels->reduce_many[t][o] != nullptr, expected);
      }
      const bool scales = defined(static_cast<DType>(t), RedOp::Avg);
      EXPECT_EQ(kernels->multiply[t] != nullptr, scales);
      EXPECT_EQ(kernels->divide[t] != nullptr, scales);
    }
  }
}

TEST(DType, TheChosenVariantIsTheFirstThatThisProcessorCanRun) {
  const Kernels& best = *variants().front();

  EXPECT_STREQ(simd_name(), best.name);
  EXPECT_EQ(reduce(DType::F32, RedOp::Sum), best.reduce[static_cast<int>(DType::F32)][0]);
  EXPECT_EQ(divide(DType::BF16), best.divide[static_cast<int>(DType::BF16)]);
}

template <typename Codec>
void check_reduce(const Kernels& kernels, DType type, RedOp op, std::size_t count) {
  const Columns<Codec> sources = {sample<Codec>(count, 1 + static_cast<unsigned>(count)),
                                  sample<Codec>(count, 100 + static_cast<unsigned>(count))};
  const auto expected = chain<Codec>(op, sources);
  const auto kernel = kernels.reduce[static_cast<int>(type)][static_cast<int>(op)];

  for (std::size_t alias = 0; alias < 3; ++alias) {  // apart, dst == a, dst == b
    Buffer a(sources[0], count % 5), b(sources[1], count % 3), c(sources[0], count % 7);
    Buffer<typename Codec::Stored>& dst = alias == 0 ? c : alias == 1 ? a : b;
    kernel(dst.data(), a.data(), b.data(), count);

    ASSERT_EQ(difference(expected, dst.data()), "") << label(kernels, type, op) << " " << alias;
    ASSERT_TRUE(dst.guards_hold()) << label(kernels, type, op) << " count " << count;
  }
}

TEST(DType, ReduceGivesTheReferenceBitsForAnyCountAlignmentAndAlias) {
  for (const Kernels* kernels : variants()) {
    for_each_type([&]<typename Codec>(DType type) {
      for (int op = 0; op < kRedOps; ++op) {
        if (!defined(type, op_at(op))) continue;
        for (std::size_t count = 0; count <= 67; ++count) {
          check_reduce<Codec>(*kernels, type, op_at(op), count);
        }
        check_reduce<Codec>(*kernels, type, op_at(op), 2111);
      }
    });
  }
}

template <typename Codec>
void check_many(const Kernels& kernels, DType type, RedOp op, std::size_t n, std::size_t count) {
  using Stored = typename Codec::Stored;
  Columns<Codec> sources;
  for (std::size_t s = 0; s < n; ++s) {
    sources.push_back(sample<Codec>(count, static_cast<unsigned>(count + 1000 * s)));
  }
  const auto expected = chain<Codec>(op, sources);
  const auto kernel = kernels.reduce_many[static_cast<int>(type)][static_cast<int>(op)];

  for (const std::size_t alias : {n, std::size_t{0}, n - 1}) {  // apart, the first, the last
    std::vector<Buffer<Stored>> buffers;
    std::vector<const void*> pointers;
    for (std::size_t s = 0; s < n; ++s) buffers.emplace_back(sources[s], s % 4);
    buffers.emplace_back(sources[0], 1);
    for (std::size_t s = 0; s < n; ++s) pointers.push_back(buffers[s].data());
    kernel(buffers[alias].data(), pointers.data(), n, count);

    ASSERT_EQ(difference(expected, buffers[alias].data()), "")
        << label(kernels, type, op) << ", " << n << " sources, dst " << alias;
    ASSERT_TRUE(buffers[alias].guards_hold()) << label(kernels, type, op) << " count " << count;
  }
}

TEST(DType, ReduceManyIsTheChainInOrderWithOneRounding) {
  for (const Kernels* kernels : variants()) {
    for_each_type([&]<typename Codec>(DType type) {
      for (int op = 0; op < kRedOps; ++op) {
        if (!defined(type, op_at(op)) || op_at(op) == RedOp::Avg) continue;
        for (const std::size_t n : {1, 2, 3, 4, 9}) {
          for (const std::size_t count : {0, 1, 2, 7, 16, 17, 19, 34, 67}) {
            check_many<Codec>(*kernels, type, op_at(op), n, count);
          }
        }
        check_many<Codec>(*kernels, type, op_at(op), 3, 4097);  // more than a block of any type
      }
    });
  }
}

TEST(DType, HalvesAccumulateInF32SoThatSmallTermsCount) {
  struct Case {
    DType type;
    std::uint32_t big, small, expected;  // big + small + small
  };
  for (const Case& c :
       {Case{DType::F16, kF16.encode(2048), kF16.encode(1), kF16.encode(2050)},
        Case{DType::BF16, kBF16.encode(256), kBF16.encode(1), kBF16.encode(258)},
        Case{DType::F8E4M3, kF8E4M3.encode(16), kF8E4M3.encode(1), kF8E4M3.encode(18)},
        Case{DType::F8E5M2, kF8E5M2.encode(8), kF8E5M2.encode(1), kF8E5M2.encode(10)}}) {
    for (const std::size_t count : {1, 100}) {
      const std::size_t bytes = size_of(c.type);
      Bytes big(count * bytes), small(count * bytes), dst(count * bytes);
      for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(&big[i * bytes], &c.big, bytes);  // little-endian, like every host we have
        std::memcpy(&small[i * bytes], &c.small, bytes);
      }
      const void* const sources[] = {big.data(), small.data(), small.data()};

      reduce_many(c.type, RedOp::Sum)(dst.data(), sources, 3, count);

      for (std::size_t i = 0; i < count; ++i) {
        EXPECT_EQ(std::memcmp(&dst[i * bytes], &c.expected, bytes), 0) << name(c.type) << " " << i;
      }
    }
  }
}

// What the kernels convert with, at every code, every midpoint of two codes and its neighbours.
template <typename Codec>
void check_conversion(const Format& format, bool exact_ties) {
  using Stored = typename Codec::Stored;
  for (std::uint32_t code = 0; code < 2 * format.sign_bit(); ++code) {
    const double value = format.decode(code);
    const float decoded = Codec::load(static_cast<Stored>(code));
    ASSERT_TRUE(std::isnan(value) ? std::isnan(decoded) : decoded == value) << std::hex << code;
    ASSERT_EQ(std::signbit(decoded), (code & format.sign_bit()) != 0) << std::hex << code;
    const std::uint32_t back = std::isnan(value) ? format.nan : code;
    ASSERT_EQ(Codec::store(decoded), back) << std::hex << code;
    if ((code & (format.sign_bit() - 1)) >= format.first_special() - 1 || !exact_ties) continue;
    const float middle = static_cast<float>((value + format.decode(code + 1)) / 2);
    for (const float near :
         {std::nextafter(middle, -INFINITY), middle, std::nextafter(middle, INFINITY)}) {
      ASSERT_EQ(Codec::store(near), format.encode(near)) << near;
    }
  }
  for (const float limit :
       {464.f,   464.01f,  479.f,   480.f,   500.f,         57344.f,       61439.9f,      61440.f,
        65504.f, 65519.9f, 65520.f, 65536.f, 3.3895314e38f, 3.3961775e38f, 3.4028235e38f, INFINITY,
        1e-45f,  1e-40f,   1e-20f,  NAN}) {
    ASSERT_EQ(Codec::store(limit), format.encode(limit)) << limit;
    ASSERT_EQ(Codec::store(-limit), format.encode(-limit)) << -limit;
  }
}

TEST(DType, ConversionsOfSmallFloatsRoundToNearestEvenAtEveryCode) {
  check_conversion<baseline::F8E4M3>(kF8E4M3, true);
  check_conversion<baseline::F8E5M2>(kF8E5M2, true);
  check_conversion<baseline::F16Software>(kF16, true);
  check_conversion<baseline::F16>(kF16, true);
  check_conversion<baseline::Brain>(kBF16, true);
}

template <typename Codec, typename Factor>
void check_scale(const Kernels& kernels, DType type, Factor factor) {
  using Stored = typename Codec::Stored;
  std::vector<Stored> values = sample<Codec>(1003, 7);
  if constexpr (sizeof(Stored) <= 2) {  // all there are, and some for the tail
    for (std::uint32_t code = 0; code < 1u << (8 * sizeof(Stored)); ++code) {
      values.push_back(static_cast<Stored>(code));
    }
  }
  std::vector<Stored> products, quotients;
  for (const Stored& value : values) {
    products.push_back(Codec::store(Codec::load(value) * factor));
    quotients.push_back(Codec::store(Codec::load(value) / factor));
  }
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{5}, values.size()}) {
    for (const bool in_place : {false, true}) {
      Buffer src(values, 1), apart(values, 2), again(values, 1);
      Buffer<Stored>& dst = in_place ? src : apart;
      kernels.multiply[static_cast<int>(type)](dst.data(), src.data(), count, double{factor});
      const std::vector<Stored> expected(products.begin(),
                                         products.begin() + static_cast<long>(count));
      ASSERT_EQ(difference(expected, dst.data()), "")
          << kernels.name << name(type) << " * " << factor;
      kernels.divide[static_cast<int>(type)](again.data(), again.data(), count, double{factor});
      const std::vector<Stored> shares(quotients.begin(),
                                       quotients.begin() + static_cast<long>(count));
      ASSERT_EQ(difference(shares, again.data()), "")
          << kernels.name << name(type) << " / " << factor;
      ASSERT_TRUE(dst.guards_hold() && again.guards_hold());
    }
  }
}

TEST(DType, MultiplyAndDivideRoundEachElementOnce) {
  for (const Kernels* kernels : variants()) {
    for_each_type([&]<typename Codec>(DType type) {
      if constexpr (!std::is_integral_v<typename Codec::Work>) {
        using Factor = std::conditional_t<sizeof(typename Codec::Work) == sizeof(double) &&
                                              std::is_same_v<typename Codec::Work, double>,
                                          double, float>;
        using Part = std::conditional_t<std::is_same_v<Codec, Compound<double>>, double, Factor>;
        for (const double factor : {1.0, 3.0, 0.5, 1.0009765625, -7.1, 8192.0}) {
          check_scale<Codec>(*kernels, type, static_cast<Part>(factor));
        }
      }
    });
  }
}

TEST(DType, AMeanThatIsExactStaysExact) {
  std::vector<float> values;
  for (int i = 0; i < 100; ++i) values.push_back(static_cast<float>(3 * 7 * i));

  divide(DType::F32)(values.data(), values.data(), values.size(), 3.0);

  for (int i = 0; i < 100; ++i) EXPECT_EQ(values[static_cast<std::size_t>(i)], 7.0f * i);
}

}  // namespace
}  // namespace hccomm::dtype
