// SPDX-License-Identifier: Apache-2.0
//
// The functions behind the pointers of reduce.hpp, made of the loops, and the table which of them
// serves which (type, operation). The second part of loops.hpp, which includes it.
#pragma once

#include "dtype/loops.hpp"

namespace hccomm::dtype::HCCOMM_VARIANT {

// Block by block: the partial result stays in L1, unrounded, until the last source. dst may be
// a source, since a block of it is written after that block of all sources has been read.
template <typename Op, typename C>
void reduce_blocks(typename C::Stored* dst, const void* const* sources, std::size_t sources_count,
                   std::size_t count) {
  using Stored = typename C::Stored;
  using Wide = typename C::Wide;
  constexpr std::size_t kBlock = kBlockBytes / sizeof(typename C::Work);
  alignas(64) typename C::Work sum[kBlock];
  const std::size_t last = sources_count - 1;
  const std::size_t whole = count - count % C::kPack;
  for (std::size_t at = 0; at < whole; at += kBlock) {
    const std::size_t units = (whole - at < kBlock ? whole - at : kBlock) / C::kPack;
    const auto from = [&](std::size_t s) { return static_cast<const Stored*>(sources[s]) + at; };
    if constexpr (!std::is_same_v<Stored, typename C::Work>) {
      convert<Wide, C>(sum, from(0), units);
      for (std::size_t s = 1; s <= last; ++s) combine<Op, Wide, Wide, C>(sum, sum, from(s), units);
      convert<C, Wide>(dst + at, sum, units);
    } else {
      combine<Op, Wide, C, C>(sum, from(0), from(1), units);
      for (std::size_t s = 2; s < last; ++s) combine<Op, Wide, Wide, C>(sum, sum, from(s), units);
      combine<Op, C, Wide, C>(dst + at, sum, from(last), units);
    }
  }
  if (whole < count) reduce_few<Op, C>(dst, sources, sources_count, whole, count);
}

// kParts numbers make one element: a complex sum is the sum of twice as many reals.
template <typename Op, typename C, int kParts>
void reduce(void* dst, const void* a, const void* b, std::size_t count) noexcept {
  using Stored = typename C::Stored;
  auto* const to = static_cast<Stored*>(dst);
  count *= kParts;
  const void* const sources[] = {a, b};
  if constexpr (C::kSlow) {
    reduce_blocks<Op, C>(to, sources, 2, count);
  } else {
    const std::size_t units = count / C::kPack;
    combine<Op, C, C, C>(to, static_cast<const Stored*>(a), static_cast<const Stored*>(b), units);
    if (C::kPack > 1 && units * C::kPack < count) {
      reduce_few<Op, C>(to, sources, 2, units * C::kPack, count);
    }
  }
}

template <typename Op, typename C, int kParts>
void reduce_many(void* dst, const void* const* sources, std::size_t sources_count,
                 std::size_t count) noexcept {
  constexpr std::size_t kFew = 16;
  auto* const to = static_cast<typename C::Stored*>(dst);
  count *= kParts;
  if (count <= kFew) {
    reduce_few<Op, C>(to, sources, sources_count, 0, count);
  } else if (sources_count == 1) {
    const std::size_t whole = count - count % C::kPack;
    convert<C, C>(to, static_cast<const typename C::Stored*>(sources[0]), whole / C::kPack);
    if (whole < count) reduce_few<Op, C>(to, sources, 1, whole, count);
  } else if (sources_count == 2) {
    reduce<Op, C, 1>(dst, sources[0], sources[1], count);
  } else {
    reduce_blocks<Op, C>(to, sources, sources_count, count);
  }
}

template <typename Op, typename C, int kParts>
void scale_all(void* dst, const void* src, std::size_t count, double factor) noexcept {
  using Stored = typename C::Stored;
  auto* const to = static_cast<Stored*>(dst);
  const auto* const from = static_cast<const Stored*>(src);
  const auto by = static_cast<typename C::Work>(factor);
  count *= kParts;
  const std::size_t whole = count - count % C::kPack;
  scale<Op, C>(to, from, whole / C::kPack, by);
  if (whole < count) scale_few<Op, C>(to + whole, from + whole, count - whole, by);
}

template <typename Op, typename C, int kParts = 1>
constexpr void set(Kernels& table, DType type, RedOp op) {
  table.reduce[static_cast<int>(type)][static_cast<int>(op)] = reduce<Op, C, kParts>;
  table.reduce_many[static_cast<int>(type)][static_cast<int>(op)] = reduce_many<Op, C, kParts>;
}

// AVG and PREMUL_SUM reduce like SUM; the scaling kernels do the rest.
template <typename C, int kParts = 1>
constexpr void set_sums(Kernels& table, DType type) {
  for (const RedOp op : {RedOp::Sum, RedOp::Avg, RedOp::PremulSum}) {
    set<Sum, C, kParts>(table, type, op);
  }
  table.multiply[static_cast<int>(type)] = scale_all<Prod, C, kParts>;
  table.divide[static_cast<int>(type)] = scale_all<Quotient, C, kParts>;
}

template <typename C>
constexpr void set_float(Kernels& table, DType type) {
  set_sums<C>(table, type);
  set<Prod, C>(table, type, RedOp::Prod);
  set<Min, C>(table, type, RedOp::Min);
  set<Max, C>(table, type, RedOp::Max);
}

template <typename T>
constexpr void set_complex(Kernels& table, DType type) {
  set_sums<Real<T>, 2>(table, type);
  set<Prod, Complex<T>>(table, type, RedOp::Prod);
}

// All but the order is the same for signed and unsigned, and wraps only as unsigned.
template <typename T>
constexpr void set_integer(Kernels& table, DType type) {
  using Unsigned = Plain<std::make_unsigned_t<T>>;
  set<Sum, Unsigned>(table, type, RedOp::Sum);
  set<Prod, Unsigned>(table, type, RedOp::Prod);
  set<Band, Unsigned>(table, type, RedOp::Band);
  set<Bor, Unsigned>(table, type, RedOp::Bor);
  set<Bxor, Unsigned>(table, type, RedOp::Bxor);
  set<Min, Plain<T>>(table, type, RedOp::Min);
  set<Max, Plain<T>>(table, type, RedOp::Max);
}

constexpr void set_bool(Kernels& table) {
  for (const RedOp op : {RedOp::Sum, RedOp::Max, RedOp::Bor})
    set<Bor, Truth>(table, DType::Bool, op);
  for (const RedOp op : {RedOp::Prod, RedOp::Min, RedOp::Band}) {
    set<Band, Truth>(table, DType::Bool, op);
  }
  set<Bxor, Truth>(table, DType::Bool, RedOp::Bxor);
}

constexpr Kernels make_table() {
  Kernels table;
  table.name = HCCOMM_VARIANT_NAME;
  set_bool(table);
  set_integer<std::int8_t>(table, DType::I8);
  set_integer<std::int16_t>(table, DType::I16);
  set_integer<std::int32_t>(table, DType::I32);
  set_integer<std::int64_t>(table, DType::I64);
  set_integer<std::uint8_t>(table, DType::U8);
  set_integer<std::uint16_t>(table, DType::U16);
  set_integer<std::uint32_t>(table, DType::U32);
  set_integer<std::uint64_t>(table, DType::U64);
  set_float<F16>(table, DType::F16);
  set_float<Brain>(table, DType::BF16);
  set_float<F8E4M3>(table, DType::F8E4M3);
  set_float<F8E5M2>(table, DType::F8E5M2);
  set_float<Real<float>>(table, DType::F32);
  set_float<Real<double>>(table, DType::F64);
  set_complex<float>(table, DType::C64);
  set_complex<double>(table, DType::C128);
  return table;
}

constinit const Kernels kernels = make_table();

}  // namespace hccomm::dtype::HCCOMM_VARIANT
