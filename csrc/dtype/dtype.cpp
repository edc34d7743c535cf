// SPDX-License-Identifier: Apache-2.0
//
// The table of element types and the rules which operation has a meaning for which of them.
#include "dtype/dtype.hpp"

namespace hccomm::dtype {

namespace {

enum class Family : std::uint8_t { Bool, Integer, Float, Complex };

struct Info {
  const char* name;
  std::uint8_t bytes;
  Family family;
};

// In the order of DType.
constexpr Info kTypes[kDTypes] = {
    {"bool", 1, Family::Bool},    {"i8", 1, Family::Integer},    {"i16", 2, Family::Integer},
    {"i32", 4, Family::Integer},  {"i64", 8, Family::Integer},   {"u8", 1, Family::Integer},
    {"u16", 2, Family::Integer},  {"u32", 4, Family::Integer},   {"u64", 8, Family::Integer},
    {"f16", 2, Family::Float},    {"bf16", 2, Family::Float},    {"f8e4m3", 1, Family::Float},
    {"f8e5m2", 1, Family::Float}, {"f32", 4, Family::Float},     {"f64", 8, Family::Float},
    {"c64", 8, Family::Complex},  {"c128", 16, Family::Complex},
};
static_assert(static_cast<int>(DType::C128) == kDTypes - 1);

constexpr const char* kOps[kRedOps] = {"sum",  "avg", "prod", "min",       "max",
                                       "band", "bor", "bxor", "premul_sum"};
static_assert(static_cast<int>(RedOp::PremulSum) == kRedOps - 1);

// A number from the wire may be out of range: it then names nothing and has no meaning.
bool known(DType type) { return static_cast<int>(type) < kDTypes; }
bool known(RedOp op) { return static_cast<int>(op) < kRedOps; }
const Info& info(DType type) { return kTypes[static_cast<int>(type)]; }

}  // namespace

std::size_t size_of(DType type) noexcept { return known(type) ? info(type).bytes : 0; }
const char* name(DType type) noexcept { return known(type) ? info(type).name : "unknown dtype"; }
const char* name(RedOp op) noexcept {
  return known(op) ? kOps[static_cast<int>(op)] : "unknown operation";
}

bool defined(DType type, RedOp op) noexcept {
  if (!known(type) || !known(op)) return false;
  const bool bitwise = op == RedOp::Band || op == RedOp::Bor || op == RedOp::Bxor;
  const bool rounds = op == RedOp::Avg || op == RedOp::PremulSum;
  const bool orders = op == RedOp::Min || op == RedOp::Max;
  switch (info(type).family) {
    case Family::Bool:
    case Family::Integer: return !rounds;
    case Family::Float: return !bitwise;
    case Family::Complex: return !bitwise && !orders;
  }
  return false;
}

}  // namespace hccomm::dtype
