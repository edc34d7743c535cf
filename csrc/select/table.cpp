// SPDX-License-Identifier: Apache-2.0
#include "select/table.hpp"

#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/config.hpp"
#include "base/error.hpp"
#include "base/text.hpp"
#include "select/select.hpp"

namespace hccomm::select {

namespace {

constexpr const char* kPlaces[] = {"shared", "crowded", "hosts", "network"};  // as Place counts

[[noreturn]] void refuse(const std::string& where, int line, const std::string& what) {
  throw Error(Code::InvalidArgument,
              text("HCCOMM_TABLE=\"", where, "\", line ", line, ": ", what,
                   "; a line is `collective place most_ranks most_bytes algorithm`, made by "
                   "`hccomm tune`"));
}

plan::Collective collective_of(const std::string& word, const std::string& where, int line) {
  for (int id = 1; id <= plan::kCollectives; ++id) {
    const auto collective = static_cast<plan::Collective>(id);
    if (plan::means(word, collective)) return collective;
  }
  refuse(where, line, text("\"", word, "\" is no collective"));
}

Place place_of(const std::string& word, const std::string& where, int line) {
  for (int id = 0; id < 4; ++id) {
    if (word == kPlaces[id]) return static_cast<Place>(id);
  }
  refuse(where, line, text("\"", word, "\" is no place: shared, crowded, hosts or network"));
}

int ranks_of(const std::string& word, const std::string& where, int line) {
  if (word == "any") return INT_MAX;
  int ranks = 0;
  const char* end = word.data() + word.size();
  const auto [rest, error] = std::from_chars(word.data(), end, ranks);
  if (error != std::errc() || rest != end || ranks < 1) {
    refuse(where, line, text("\"", word, "\" is no number of ranks: 1, 2, ... or any"));
  }
  return ranks;
}

std::uint64_t bytes_of(const std::string& word, const std::string& where, int line) {
  if (word == "any") return kNoLimit;
  try {
    return config::parse_bytes(word, "most_bytes");
  } catch (const Error& error) {
    refuse(where, line, error.what());
  }
}

const algorithm::Algorithm* algorithm_of(const std::string& word, plan::Collective collective,
                                         const std::string& where, int line) {
  if (const auto* found = algorithm::find(collective, word.c_str())) return found;
  refuse(where, line, text("\"", word, "\" is no algorithm for ", plan::name(collective)));
}

}  // namespace

Table Table::parse(std::string_view all, const std::string& where) {
  Table table;
  std::istringstream lines{std::string(all)};
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string collective, place, ranks, bytes, algorithm, more;
    if (!(words >> collective)) continue;
    if (!(words >> place >> ranks >> bytes >> algorithm) || words >> more) {
      refuse(where, number, "it has not five words");
    }
    const plan::Collective which = collective_of(collective, where, number);
    table.lines_.push_back({place_of(place, where, number), ranks_of(ranks, where, number),
                            bytes_of(bytes, where, number),
                            algorithm_of(algorithm, which, where, number)});
  }
  return table;
}

std::vector<const Table::Line*> Table::of(plan::Collective collective, Place place) const {
  std::vector<const Line*> found;
  for (const Line& line : lines_) {
    if (line.place == place && line.algorithm->collective == collective) found.push_back(&line);
  }
  return found;
}

std::string table_text() {
  const std::string path = config::raw("HCCOMM_TABLE");
  if (path.empty()) return {};
  std::ifstream in(path, std::ios::binary);
  std::ostringstream all;
  if (in) all << in.rdbuf();
  if (!in || in.bad()) {
    throw Error(Code::InvalidArgument,
                text("HCCOMM_TABLE=\"", path, "\" cannot be read: ", std::strerror(errno),
                     "; make it with `hccomm tune`, or unset it"));
  }
  return all.str();
}

Table table_of_environment() {
  const std::string all = table_text();
  return all.empty() ? Table() : Table::parse(all, config::raw("HCCOMM_TABLE"));
}

}  // namespace hccomm::select
