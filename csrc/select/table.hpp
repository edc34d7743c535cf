// SPDX-License-Identifier: Apache-2.0
//
// A measured table of choices, as `hccomm tune` writes it and HCCOMM_TABLE names it:
//
//   # collective place most_ranks most_bytes algorithm
//   allreduce crowded 4 64K scatter_gather
//   allreduce crowded 4 any halving_doubling
//
// The first line that holds for a call decides; where none does, the table of defaults. Text from
// `#` on is a remark.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "algorithm/algorithms.hpp"

namespace hccomm::select {

enum class Place : std::uint8_t;

// Value. All ranks must have the same table, as they must make the same choice.
class Table {
 public:
  struct Line {
    Place place;
    int most_ranks = 0;
    std::uint64_t most_bytes = 0;
    const algorithm::Algorithm* algorithm = nullptr;
  };

  Table() = default;
  // Throws Error(InvalidArgument) that names `where`, the line, what is wrong and what may stand
  // there.
  static Table parse(std::string_view text, const std::string& where);
  // The lines for one collective and place, in order.
  std::vector<const Line*> of(plan::Collective collective, Place place) const;
  bool empty() const noexcept { return lines_.empty(); }

 private:
  std::vector<Line> lines_;
};

// The text of the file that HCCOMM_TABLE names; "" where it names none. Throws Error when it cannot
// be read.
std::string table_text();
// Table::parse() of it.
Table table_of_environment();

}  // namespace hccomm::select
