// SPDX-License-Identifier: Apache-2.0
#include "native/islands.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "base/error.hpp"
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
  const bool told = !member.label.empty();  // the user knows that they can reach each other
  if (member.host != other.host && !one_fabric && !told) {
    return text("hosts ", member.host, " and ", other.host,
                " share no fabric that we know of; HCCOMM_ISLAND can say so");
  }
  if (member.host == other.host && member.device == other.device) {
    return text("both use ", member.device, ", which such a library takes once");
  }
  return "";
}

// "3" or "0-2" at the beginning of a text, which is taken off; false: neither.
static bool take_range(std::string_view& from, int& first, int& last) {
  const auto take = [&from](int& number) {
    const auto [end, error] = std::from_chars(from.data(), from.data() + from.size(), number);
    if (error != std::errc()) return false;
    from.remove_prefix(static_cast<std::size_t>(end - from.data()));
    return number >= 0;
  };
  if (!take(first)) return false;
  last = first;
  if (from.empty() || from[0] != '-') return true;
  from.remove_prefix(1);
  return take(last) && last >= first;
}

std::vector<int> ranks_of(const std::string& what, const std::string& list, int size) {
  const auto wrong = [&](const std::string& why) {
    return Error(Code::InvalidArgument,
                 text(what, ": \"", list, "\" ", why, "; write ranks such as \"0-2,5\""));
  };
  std::vector<int> ranks;
  std::string_view rest = list;
  for (;;) {
    int first = 0, last = 0;
    if (!take_range(rest, first, last)) throw wrong("is no list of ranks");
    if (last >= size) throw wrong(text("has rank ", last, ", which is outside 0..", size - 1));
    for (; first <= last; ++first) ranks.push_back(first);
    if (rest.empty()) break;
    if (rest[0] != ',') throw wrong("is no list of ranks");
    rest.remove_prefix(1);
  }
  std::ranges::sort(ranks);
  if (std::ranges::adjacent_find(ranks) != ranks.end()) throw wrong("has a rank twice");
  return ranks;
}

[[noreturn]] static void refuse(const std::string& setting, const std::string& why) {
  throw Error(Code::InvalidArgument, text("HCCOMM_ISLAND=\"", setting, "\" ", why,
                                          "; write \"auto\", \"off\", a label such as \"left\", "
                                          "or lists of ranks such as \"0-3;4,5\""));
}

// A word that a user may well take for a switch would join ranks on all hosts, as a label.
static bool is_label(const std::string& word) {
  static constexpr const char* kSwitches[] = {"auto", "off",   "on",   "yes",    "no",
                                              "true", "false", "none", "default"};
  std::string lower;
  for (const char each : word) {
    const bool letter = (each >= 'a' && each <= 'z') || (each >= 'A' && each <= 'Z');
    const bool other = (each >= '0' && each <= '9') || each == '-' || each == '_' || each == '.';
    if (!letter && (!other || lower.empty())) return false;
    lower += letter ? static_cast<char>(each | 0x20) : each;
  }
  return !lower.empty() && lower.size() <= 64 && std::ranges::count(kSwitches, lower) == 0;
}

std::string label_of(const std::string& setting, int rank) {
  if (setting.empty() || setting == "auto") return "";
  if (setting == "off") return "none";
  if (setting.find_first_not_of("0123456789-,; ") != std::string::npos) {
    if (!is_label(setting)) refuse(setting, "is neither a label nor lists of ranks");
    return setting;
  }
  std::string compact;
  for (const char each : setting) {
    if (each != ' ') compact += each;
  }
  std::string_view rest = compact;
  std::string label = "none";
  std::vector<std::pair<int, int>> seen;
  for (int list = 0;;) {
    int first = 0, last = 0;
    if (!take_range(rest, first, last)) break;
    for (const auto& [from, to] : seen) {
      if (first <= to && from <= last) {
        refuse(setting, text("has rank ", std::max(first, from), " twice"));
      }
    }
    seen.emplace_back(first, last);
    if (rank >= first && rank <= last) label = text("list ", list);
    if (rest.empty()) return label;
    if (rest[0] == ';') ++list;
    if (rest[0] != ';' && rest[0] != ',') break;
    rest.remove_prefix(1);
  }
  refuse(setting, "is no list of ranks");
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
