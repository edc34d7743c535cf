// SPDX-License-Identifier: Apache-2.0
#include "plan/hazards.hpp"

#include <algorithm>
#include <iterator>

namespace hccomm::plan {

// The first interval that begins at or after `begin`, once one that straddles `begin` is cut there.
Hazards::Map::iterator Hazards::first_at(std::uint64_t begin) {
  const auto at = map_.lower_bound(begin);
  if (at == map_.begin()) return at;
  const auto before = std::prev(at);
  if (before->second.end <= begin) return at;
  const auto cut = map_.emplace_hint(at, begin, before->second);
  before->second.end = begin;
  return cut;
}

// Cuts the interval at `at` so that it does not reach beyond `end`.
void Hazards::end_at(Map::iterator at, std::uint64_t end) {
  if (at->second.end <= end) return;
  map_.emplace_hint(std::next(at), end, at->second);
  at->second.end = end;
}

void Hazards::read(std::uint64_t begin, std::uint64_t end, std::uint32_t step,
                   std::vector<std::uint32_t>& waits) {
  auto at = first_at(begin);
  for (std::uint64_t next = begin; next < end; ++at) {
    if (at == map_.end() || at->first > next) {  // untouched so far
      const std::uint64_t until = at == map_.end() ? end : std::min(end, at->first);
      at = map_.emplace_hint(at, next, Interval{until, kNobody, step, {}});
      next = until;
      continue;
    }
    end_at(at, end);
    Interval& here = at->second;
    next = here.end;
    if (here.writer != kNobody) waits.push_back(here.writer);
    if (here.reader == kNobody) {
      here.reader = step;
    } else if (here.reader != step &&
               (here.more_readers.empty() || here.more_readers.back() != step)) {
      here.more_readers.push_back(step);
    }
  }
}

void Hazards::write(std::uint64_t begin, std::uint64_t end, std::uint32_t step,
                    std::vector<std::uint32_t>& waits) {
  auto at = first_at(begin);
  while (at != map_.end() && at->first < end) {
    end_at(at, end);
    const Interval& here = at->second;
    if (here.reader != kNobody) {  // the readers wait for the writer already
      waits.push_back(here.reader);
      waits.insert(waits.end(), here.more_readers.begin(), here.more_readers.end());
    } else if (here.writer != kNobody) {
      waits.push_back(here.writer);
    }
    at = map_.erase(at);
  }
  map_.emplace_hint(at, begin, Interval{end, step, kNobody, {}});
}

std::vector<Hazards::Range> Hazards::unwritten(std::uint64_t begin, std::uint64_t end) const {
  std::vector<Range> ranges;
  const auto add = [&](std::uint64_t from, std::uint64_t to) {
    if (from >= to) return;
    if (!ranges.empty() && ranges.back().end == from) {
      ranges.back().end = to;
    } else {
      ranges.push_back({from, to});
    }
  };
  std::uint64_t next = begin;
  auto at = map_.upper_bound(begin);
  if (at != map_.begin()) --at;
  for (; at != map_.end() && at->first < end; ++at) {
    if (at->second.end <= begin) continue;
    const std::uint64_t from = std::max(at->first, begin);
    const std::uint64_t to = std::min(at->second.end, end);
    add(next, from);
    if (at->second.writer == kNobody) add(from, to);
    next = to;
  }
  add(next, end);
  return ranges;
}

Hazards::Written Hazards::written(std::uint64_t begin, std::uint64_t end) const {
  const std::vector<Range> gaps = unwritten(begin, end);
  if (gaps.empty()) return Written::All;
  const bool nothing = gaps.size() == 1 && gaps[0].begin == begin && gaps[0].end == end;
  return nothing ? Written::Nothing : Written::Partly;
}

}  // namespace hccomm::plan
