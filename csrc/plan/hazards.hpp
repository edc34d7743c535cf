// SPDX-License-Identifier: Apache-2.0
//
// Who last wrote and who has read since, for every range of one buffer: an interval map from which
// plan/builder.cpp derives the read-after-write, write-after-read and write-after-write waits.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace hccomm::plan {

// Owns:   the intervals; they never overlap, and what no step has touched is in none.
// Thread: one.
// Fails:  never.
class Hazards {
 public:
  enum class Written : std::uint8_t { Nothing, Partly, All };
  struct Range {
    std::uint64_t begin, end;
  };

  // Step `step` reads or writes [begin, end): the steps it must wait for are appended to `waits`,
  // perhaps more than once, perhaps itself. A step that does both must read first.
  // Requires: begin < end.
  void read(std::uint64_t begin, std::uint64_t end, std::uint32_t step,
            std::vector<std::uint32_t>& waits);
  void write(std::uint64_t begin, std::uint64_t end, std::uint32_t step,
             std::vector<std::uint32_t>& waits);

  Written written(std::uint64_t begin, std::uint64_t end) const;
  std::vector<Range> unwritten(std::uint64_t begin, std::uint64_t end) const;

 private:
  static constexpr std::uint32_t kNobody = ~std::uint32_t{0};

  struct Interval {
    std::uint64_t end = 0;
    std::uint32_t writer = kNobody;
    std::uint32_t reader = kNobody;           // the first since the write
    std::vector<std::uint32_t> more_readers;  // rarely any
  };
  using Map = std::map<std::uint64_t, Interval>;

  Map::iterator first_at(std::uint64_t begin);
  void end_at(Map::iterator at, std::uint64_t end);

  Map map_;
};

}  // namespace hccomm::plan
