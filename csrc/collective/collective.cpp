// SPDX-License-Identifier: Apache-2.0
#include "collective/collective.hpp"

#include <numeric>

#include "base/error.hpp"

namespace hccomm::collective {

#define HCCOMM_COLLECTIVE(name) Descriptor name();
#include "collective/builtins.inc"
#undef HCCOMM_COLLECTIVE

std::span<const Descriptor> collectives() {
#define HCCOMM_COLLECTIVE(name) name(),
  static const Descriptor kAll[] = {
#include "collective/builtins.inc"
  };
#undef HCCOMM_COLLECTIVE
  return kAll;
}

static const Descriptor* look_up(plan::Collective id) {
  for (const Descriptor& each : collectives()) {
    if (each.id == id) return &each;
  }
  return nullptr;
}

const Descriptor& find(plan::Collective id) {
  const Descriptor* found = look_up(id);
  if (found == nullptr) {
    throw Error(Code::InvalidArgument, text("there is no collective number ", static_cast<int>(id),
                                            "; hccomm.h lists them"));
  }
  return *found;
}

void check(const plan::Call& call, const plan::Group& group) {
  find(call.collective).check(call, group);
}

bool counts_agree(plan::Collective collective) noexcept {
  return collective == plan::Collective::AllGather || collective == plan::Collective::ReduceScatter;
}

std::uint64_t total_count(const plan::Call& call, const plan::Group& group) {
  if (!call.counts.empty()) {
    if (!counts_agree(call.collective)) return 0;
    return std::accumulate(call.counts.begin(), call.counts.end(), std::uint64_t{0});
  }
  const bool one_buffer =
      plan::same_shape(call.collective) || call.collective == plan::Collective::Barrier;
  return call.count * (one_buffer ? 1 : static_cast<std::uint64_t>(group.size));
}

// ---- fingerprint: collective 5 bits, type 5, op 4, root 14, count 36 ----------------------------

namespace {

constexpr int kCountBits = 36, kRootBits = 14, kOpBits = 4, kTypeBits = 5;
constexpr std::uint64_t kHashed = std::uint64_t{1} << 35;  // the count field is no plain count
constexpr std::uint64_t kVector = std::uint64_t{1} << 34;  // and it is several counts
constexpr std::uint64_t kHashMask = kVector - 1;

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {  // splitmix64
  hash += value + 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
  return hash ^ (hash >> 31);
}

std::uint64_t count_field(const plan::Call& call) {
  if (call.counts.empty()) {
    return call.count < kHashed ? call.count : kHashed | (mix(0, call.count) & kHashMask);
  }
  std::uint64_t hash = 0;
  if (counts_agree(call.collective)) {
    for (const std::uint64_t count : call.counts) hash = mix(hash, count);
  }
  return kHashed | kVector | (hash & kHashMask);
}

std::uint64_t low_bits(std::uint64_t value, int bits) {
  return value & ((std::uint64_t{1} << bits) - 1);
}

}  // namespace

std::uint64_t fingerprint(const plan::Call& call) {
  const Descriptor& about = find(call.collective);
  const bool untyped = call.collective == plan::Collective::Barrier;
  std::uint64_t code = static_cast<std::uint64_t>(call.collective);
  code = code << kTypeBits | (untyped ? 0 : static_cast<std::uint64_t>(call.type));
  code = code << kOpBits | (about.reduces ? static_cast<std::uint64_t>(call.op) : 0);
  code = code << kRootBits |
         (about.rooted ? low_bits(static_cast<std::uint64_t>(call.root), kRootBits) : 0);
  return code << kCountBits | (untyped ? 0 : count_field(call));
}

static std::string describe_parts(const Descriptor& about, const std::string& count,
                                  dtype::DType type, dtype::RedOp op, int root) {
  if (about.id == plan::Collective::Barrier) return text(about.name, "()");
  std::string parts = text(about.name, "(", count, ", ", dtype::name(type));
  if (about.reduces) parts += text(", ", dtype::name(op));
  if (about.rooted) parts += text(", root=", root);
  return parts + ")";
}

static std::string list_counts(const std::vector<std::uint64_t>& counts) {
  constexpr std::size_t kShown = 8;
  std::string list = "counts=[";
  for (std::size_t r = 0; r < counts.size() && r < kShown; ++r) {
    list += text(r == 0 ? "" : ", ", counts[r]);
  }
  return list + (counts.size() > kShown ? ", ...]" : "]");
}

std::string describe(const plan::Call& call) {
  const std::string count =
      call.counts.empty() ? text("count=", call.count) : list_counts(call.counts);
  return describe_parts(find(call.collective), count, call.type, call.op, call.root);
}

std::string describe_fingerprint(std::uint64_t code) {
  const std::uint64_t field = low_bits(code, kCountBits);
  const auto root = static_cast<int>(low_bits(code >> kCountBits, kRootBits));
  const std::uint64_t op = low_bits(code >> (kCountBits + kRootBits), kOpBits);
  const std::uint64_t type = low_bits(code >> (kCountBits + kRootBits + kOpBits), kTypeBits);
  const std::uint64_t id = code >> (kCountBits + kRootBits + kOpBits + kTypeBits);
  const Descriptor* about = look_up(static_cast<plan::Collective>(id));
  if (about == nullptr || type >= dtype::kDTypes || op >= dtype::kRedOps) {
    return text("an unknown call (fingerprint ", code, ")");
  }
  std::string count = text("count=", field);
  if ((field & kHashed) != 0) count = text("count of 2^35 or more, #", field & kHashMask);
  if ((field & kHashed) != 0 && (field & kVector) != 0) {
    count = (field & kHashMask) == 0 ? "counts by rank" : text("counts #", field & kHashMask);
  }
  return describe_parts(*about, count, static_cast<dtype::DType>(type),
                        static_cast<dtype::RedOp>(op), root);
}

}  // namespace hccomm::collective
