// SPDX-License-Identifier: Apache-2.0
#include "native/shares.hpp"

#include <algorithm>
#include <numeric>

namespace hccomm::native {

static constexpr std::uint32_t kEqual = 64;  // an equal share: the resolution of all others

static std::uint64_t sum_of(const Shares& shares) {
  return std::accumulate(shares.begin(), shares.end(), std::uint64_t{0});
}

std::vector<std::uint64_t> part_begins(std::uint64_t count, const Shares& shares) {
  const std::uint64_t all = std::max<std::uint64_t>(sum_of(shares), 1);
  std::vector<std::uint64_t> begins{0};
  std::uint64_t before = 0;
  for (const std::uint32_t each : shares) {
    before += each;
    begins.push_back(count / all * before + count % all * before / all);
  }
  return begins;
}

std::vector<Rail> rails_of(std::uint64_t count, const std::vector<Shares>& islands) {
  std::vector<std::vector<std::uint64_t>> begins;
  for (const Shares& each : islands) begins.push_back(part_begins(count, each));
  std::vector<std::size_t> at(islands.size(), 0);
  std::vector<Rail> rails;
  for (std::uint64_t begin = 0; begin < count;) {
    Rail rail{begin, count, {}};
    for (std::size_t island = 0; island < islands.size(); ++island) {
      while (begins[island][at[island] + 1] <= begin) ++at[island];
      rail.end = std::min(rail.end, begins[island][at[island] + 1]);
      rail.owners.push_back(static_cast<int>(at[island]));
    }
    begin = rail.end;
    rails.push_back(std::move(rail));
  }
  return rails;
}

Shares only(std::size_t ranks, int place) {
  Shares shares(ranks, 0);
  shares[static_cast<std::size_t>(place)] = kEqual;
  return shares;
}

int owner_of_piece(std::size_t n, const Shares& shares) {
  // Smooth weighted round robin, from the beginning: islands are small.
  std::vector<std::int64_t> credit(shares.size(), 0);
  const auto all = static_cast<std::int64_t>(sum_of(shares));
  std::size_t best = 0;
  for (std::size_t turn = 0; turn <= n % static_cast<std::size_t>(std::max<std::int64_t>(all, 1));
       ++turn) {
    for (std::size_t each = 0; each < shares.size(); ++each) credit[each] += shares[each];
    best = static_cast<std::size_t>(std::ranges::max_element(credit) - credit.begin());
    credit[best] -= all;
  }
  return static_cast<int>(best);
}

void settle_ends(std::vector<std::vector<double>>& rates) {
  for (auto& island : rates) {
    for (auto& other : rates) {
      if (other.size() != island.size()) continue;
      for (std::size_t place = 0; place < island.size(); ++place) {
        island[place] = other[place] = std::min(island[place], other[place]);
      }
    }
  }
}

Shares reshare(const Shares& old, const std::vector<double>& rates) {
  if (old.size() < 2 || std::ranges::any_of(rates, [](double rate) { return !(rate > 0); })) {
    return old;
  }
  const double all = std::accumulate(rates.begin(), rates.end(), 0.0);
  const double former = static_cast<double>(sum_of(old));
  const auto ranks = static_cast<double>(old.size());
  bool differs = false;
  Shares shares;
  for (std::size_t each = 0; each < old.size(); ++each) {
    const double part = std::max(rates[each] / all * ranks, 0.25);  // 1: an equal share
    const double before = old[each] / former * ranks;
    differs = differs || part > before * 1.2 || part < before / 1.2;
    shares.push_back(static_cast<std::uint32_t>(part * kEqual + 0.5));
  }
  return differs ? shares : old;
}

}  // namespace hccomm::native
