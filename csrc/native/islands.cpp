// SPDX-License-Identifier: Apache-2.0
#include "native/islands.hpp"

#include <algorithm>

#include "base/text.hpp"

namespace hccomm::native {

std::string why_apart(const Member& member, const Member& other) {
  if (member.label == "none" || other.label == "none") return "a rank asks to be alone";
  if (member.label != other.label) {
    return text("the island is named \"", member.label, "\" here and \"", other.label, "\" there");
  }
  if (member.kind != other.kind) return text(member.kind, " and ", other.kind, " share no library");
  if (member.kind == "host") return "host memory needs no vendor's library";
  if (member.compatible.empty() || other.compatible.empty()) {
    return text("no collective library for ", member.kind);
  }
  if (member.compatible != other.compatible) {
    return text(member.compatible, " and ", other.compatible, " do not mix");
  }
  const bool one_fabric = !member.fabric.empty() && member.fabric == other.fabric;
  if (member.host != other.host && !one_fabric) {
    return text("hosts ", member.host, " and ", other.host, " share no fabric that we know of");
  }
  if (member.host == other.host && member.device == other.device) {
    return text("both use ", member.device, ", which such a library takes once");
  }
  return "";
}

std::vector<std::vector<int>> find_islands(const std::vector<Member>& members) {
  std::vector<std::vector<int>> islands;
  for (int rank = 0; rank < static_cast<int>(members.size()); ++rank) {
    const auto fits = [&](const std::vector<int>& island) {
      return std::ranges::all_of(island, [&](int each) {
        return why_apart(members[static_cast<std::size_t>(each)],
                         members[static_cast<std::size_t>(rank)])
            .empty();
      });
    };
    const auto home = std::ranges::find_if(islands, fits);
    if (home != islands.end()) {
      home->push_back(rank);
    } else {
      islands.push_back({rank});
    }
  }
  return islands;
}

}  // namespace hccomm::native
