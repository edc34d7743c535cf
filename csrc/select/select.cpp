// SPDX-License-Identifier: Apache-2.0
#include "select/select.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "collective/collective.hpp"

namespace hccomm::select {

namespace {

constexpr std::uint64_t kMostSegments = 16384;  // in one buffer: bounds the length of a plan

int most_ranks_of_a_host(const plan::Group& group) {
  if (group.host_of.empty()) return group.size;
  std::vector<int> ranks(static_cast<std::size_t>(group.hosts));
  for (const int host : group.host_of) ++ranks[static_cast<std::size_t>(host)];
  return *std::max_element(ranks.begin(), ranks.end());
}

// Bytes of the large buffer; kNoLimit where not all ranks know them.
std::uint64_t bytes_of(const plan::Call& call, const plan::Group& group) {
  const bool parts = !call.counts.empty();
  const std::uint64_t count = collective::total_count(call, group);
  if (parts && !collective::counts_agree(call.collective)) return kNoLimit;
  return count * dtype::size_of(call.type);
}

// Segments of 64 to 256 KiB: small enough that several stay in cache while they are reduced, large
// enough that a message costs little beside its bytes.
std::uint64_t segment_of(const plan::Call& call, const plan::Group& group, const Facts& facts,
                         Place place, std::uint64_t bytes) {
  const bool memory = place == Place::Shared || place == Place::Crowded;
  std::uint64_t segment = memory ? (group.size <= 4 ? 128 << 10 : 64 << 10) : 256 << 10;
  if (bytes != kNoLimit) segment = std::max(segment, bytes / kMostSegments);
  if (facts.segment_bytes != 0) segment = facts.segment_bytes;
  return std::max<std::uint64_t>(1, segment / dtype::size_of(call.type));
}

std::string in_words(std::uint64_t bytes) {
  if (bytes == kNoLimit) return "sizes known to each rank alone";
  return text(bytes, " bytes");
}

bool serves(const algorithm::Algorithm& each, const plan::Call& call, const plan::Group& group) {
  return each.refuses == nullptr || each.refuses(call, group) == nullptr;
}

}  // namespace

Place place_of(const plan::Group& group, const Facts& facts) {
  const int together = most_ranks_of_a_host(group);
  if (group.hosts > 1) return together > 1 && facts.shm_intra_host ? Place::Hosts : Place::Network;
  if (!facts.shm_intra_host) return Place::Network;
  return facts.cores != 0 && together > facts.cores ? Place::Crowded : Place::Shared;
}

const char* name(Place place) noexcept {
  switch (place) {
    case Place::Shared: return "one host with shared memory";
    case Place::Crowded: return "one host with more ranks than cores";
    case Place::Hosts: return "several hosts with several ranks";
    case Place::Network: return "every two ranks by network";
  }
  return "nowhere";
}

Choice choose(const plan::Call& call, const plan::Group& group, const Facts& facts,
              const Rules& rules, const Table& table) {
  const Place place = place_of(group, facts);
  const std::uint64_t bytes = bytes_of(call, group);
  const std::uint64_t share =
      bytes == kNoLimit ? kNoLimit : bytes / static_cast<std::uint64_t>(group.size);
  const algorithm::Tuning tuning{segment_of(call, group, facts, place, bytes)};
  if (const Rule* rule = rules.find(call.collective, bytes); rule != nullptr) {
    if (serves(*rule->algorithm, call, group)) {
      return {rule->algorithm, tuning, text("HCCOMM_ALGO for ", in_words(bytes))};
    }
    throw Error(Code::InvalidArgument,
                text(collective::describe(call), ": HCCOMM_ALGO asks for ", rule->algorithm->name,
                     ", which does not serve it: ", rule->algorithm->refuses(call, group),
                     "; change the rule"));
  }
  for (const Table::Line* line : table.of(call.collective, place)) {
    if (group.size > line->most_ranks || bytes > line->most_bytes) continue;
    if (!serves(*line->algorithm, call, group)) continue;
    return {line->algorithm, tuning,
            text(name(place), ", ", group.size, " ranks, ", in_words(bytes),
                 ": measured, HCCOMM_TABLE")};
  }
  for (const Default& line : defaults()) {
    if (line.collective != call.collective || line.place != place) continue;
    if (group.size > line.most_ranks || bytes > line.most_bytes || share > line.most_share)
      continue;
    const algorithm::Algorithm* found = algorithm::find(call.collective, line.algorithm);
    HCCOMM_CHECK(found != nullptr, "the table of defaults names algorithms that exist");
    if (!serves(*found, call, group)) continue;
    return {found, tuning,
            text(name(place), ", ", group.size, " ranks, ", in_words(bytes), ": ", line.why)};
  }
  throw Error(Code::Internal, text("no default for ", collective::describe(call)));
}

}  // namespace hccomm::select
