// SPDX-License-Identifier: Apache-2.0
#include "comm/explain.hpp"

#include <algorithm>

#include "comm/archipelago.hpp"
#include "device/registry.hpp"
#include "native/islands.hpp"

namespace hccomm::comm {

static constexpr const char* kWhat = "explain islands";

static Json numbers(const std::vector<int>& all) {
  Json list = Json::array();
  for (const int each : all) list.push(each);
  return list;
}

// "cuda:0-2;musa:3,4" and the ranks that it leaves out, in the order of first ranks.
static Chart parse(const std::string& islands, int size) {
  std::vector<std::pair<std::vector<int>, std::string>> all;
  std::vector<bool> taken(static_cast<std::size_t>(size), false);
  for (std::size_t begin = 0; begin <= islands.size();) {
    const std::size_t end = std::min(islands.find(';', begin), islands.size());
    const std::string one = islands.substr(begin, end - begin);
    const std::size_t colon = one.find(':');
    if (colon == std::string::npos || colon == 0) {
      throw Error(Code::InvalidArgument, text(kWhat, ": \"", one,
                                              "\" names no kind of device; write islands such as "
                                              "\"cuda:0-2;musa:3,4\""));
    }
    const std::string kind = one.substr(0, colon);
    (void)device::Registry::global().kind(kind).take();  // or there is none of that name
    std::vector<int> ranks = native::ranks_of(kWhat, one.substr(colon + 1), size);
    for (const int each : ranks) {
      if (taken[static_cast<std::size_t>(each)]) {
        throw Error(Code::InvalidArgument,
                    text(kWhat, ": rank ", each, " is in two islands; name it once"));
      }
      taken[static_cast<std::size_t>(each)] = true;
      if (kind == "host") all.push_back({{each}, kind});  // needs no library: each by itself
    }
    if (kind != "host") all.emplace_back(std::move(ranks), kind);
    begin = end + 1;
  }
  for (int rank = 0; rank < size; ++rank) {
    if (!taken[static_cast<std::size_t>(rank)]) all.push_back({{rank}, "host"});
  }
  std::ranges::sort(all);
  Chart chart;
  for (auto& [ranks, kind] : all) {
    chart.islands.push_back(std::move(ranks));
    chart.kinds.push_back(std::move(kind));
  }
  return chart;
}

// What the libraries that are here say to the call, each with its name or why it is missing.
static Json ask_libraries(const plan::Call& call, Chart& chart) {
  const auto type = static_cast<std::size_t>(call.type);
  const bool divided = chart.islands.size() > 1 && call.op == dtype::RedOp::Avg;
  chart.reduces[type] = ~0u;
  chart.messages = true;
  Json all = Json::array();
  for (std::size_t each = 0; each < chart.islands.size(); ++each) {
    std::string name = "none: one rank", missing;
    if (chart.islands[each].size() > 1) {
      const device::Kind kind = device::Registry::global().kind(chart.kinds[each]).take();
      auto library = native::library(kind);
      if (library.ok()) {
        name = library.value()->compatible();
        const dtype::RedOp op = divided ? dtype::RedOp::Sum : call.op;
        if (!library.value()->refuses(call.type, op).empty()) {
          chart.reduces[type] &= ~(1u << static_cast<int>(call.op));
        }
        chart.messages = chart.messages && library.value()->lacks_messages().empty();
      } else {
        name = "not here: taken to do all";
        missing = library.status().text();
      }
    }
    all.push(Json::object()
                 .add("kind", chart.kinds[each])
                 .add("ranks", numbers(chart.islands[each]))
                 .add("library", name)
                 .add("missing", missing));
  }
  return all;
}

// Who exchanges what of the first block, while all rails are taken to be alike.
static Json rails(const plan::Call& call, const Chart& chart) {
  const std::uint64_t block =
      std::min(call.count, block_elements(chart, dtype::size_of(call.type)));
  std::vector<native::Shares> shares;
  for (const auto& island : chart.islands) shares.emplace_back(island.size(), 64u);
  Json all = Json::array();
  for (const native::Rail& each : native::rails_of(block, shares)) {
    std::vector<int> ranks;
    for (std::size_t island = 0; island < each.owners.size(); ++island) {
      ranks.push_back(chart.islands[island][static_cast<std::size_t>(each.owners[island])]);
    }
    all.push(Json::object()
                 .add("first", each.begin)
                 .add("count", each.end - each.begin)
                 .add("ranks", numbers(ranks)));
  }
  return all;
}

Json explain_islands(const plan::Call& call, int size, const std::string& islands) {
  Chart chart = parse(islands, size);
  Json libraries = ask_libraries(call, chart);
  std::string own = refuses(chart, call, size);
  if (chart.islands.size() == static_cast<std::size_t>(size) && size > 1) {
    own = "every rank is alone: no library joins any";
  }
  const bool crosses =
      own.empty() && chart.islands.size() > 1 && call.collective == plan::Collective::AllReduce;
  return Json::object()
      .add("islands", libraries)
      .add("way", own.empty() ? std::string(way(chart)) : "hccomm's own way: " + own)
      .add("rails", crosses ? rails(call, chart) : Json::array());
}

}  // namespace hccomm::comm
