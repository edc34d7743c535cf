// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/provider.hpp"

#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "base/config.hpp"
#include "transport/ofi/card.hpp"
#include "transport/tcp/port.hpp"

namespace hccomm::transport::ofi {

// Real fabrics, best first; of each name also its layered forms ("verbs;ofi_rxm").
static constexpr const char* kFabrics[] = {"cxi", "efa", "opx", "psm3", "verbs", "ucx"};
// Deprecated, unreliable, or for tests of libfabric itself.
static constexpr const char* kNever[] = {"sockets", "udp", "off_coll", "psm", "psm2"};
static constexpr std::size_t kImmediateBytes = 4;
static constexpr int kEveryMode =
    FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;

// "tcp" is "tcp;ofi_rxm", too.
static bool is_of(const std::string& provider, const std::string& name) {
  return provider == name || provider.starts_with(name + ";");
}

// What we need of a provider. Some refuse bits of the memory registration that they do not know.
static Info hints(const Library& library, int mr_mode, std::uint64_t more = 0) {
  Info out(library.dupinfo(nullptr), {&library});
  if (out == nullptr) throw std::bad_alloc();
  out->caps = FI_MSG | FI_RMA | FI_SEND | FI_RECV | FI_WRITE | FI_REMOTE_WRITE | more;
  out->mode = FI_CONTEXT | FI_CONTEXT2;
  out->ep_attr->type = FI_EP_RDM;
  out->domain_attr->mr_mode = mr_mode;
  out->domain_attr->threading = FI_THREAD_DOMAIN;  // one mutex guards all we do
  out->domain_attr->data_progress = FI_PROGRESS_MANUAL;
  out->domain_attr->control_progress = FI_PROGRESS_MANUAL;
  out->domain_attr->resource_mgmt = FI_RM_ENABLED;
  out->domain_attr->cq_data_size = kImmediateBytes;
  return out;
}

static Info all_infos(const Library& library) {
  const KeptSignals kept;
  Info all(nullptr, {&library});
  for (const int mode : {kEveryMode, int{FI_MR_ENDPOINT | FI_MR_ALLOCATED}}) {
    const Info wanted = hints(library, mode);
    fi_info* found = nullptr;
    if (library.getinfo(FI_VERSION(1, 17), nullptr, nullptr, 0, wanted.get(), &found) != 0)
      continue;
    if (all == nullptr) {
      all.reset(found);
      continue;
    }
    fi_info* last = all.get();
    while (last->next != nullptr) last = last->next;
    last->next = found;
  }
  return all;
}

// Looked at once: a thread may be moved between two looks.
struct Here {
  tcp::Ip address;
  int node = node_here();
};

static bool nearer(const fi_info& one, const fi_info& other, const Here& here) {
  return std::pair(distance(one, here.node), detour(one, here.address)) <
         std::pair(distance(other, here.node), detour(other, here.address));
}

static std::vector<std::string> wanted_names() {
  std::vector<std::string> names = config::list("HCCOMM_OFI_PROVIDER");
  if (names.empty()) names.assign(std::begin(kFabrics), std::end(kFabrics));
  return names;
}

static std::string names_in(const fi_info* all) {
  std::set<std::string> names;
  for (const fi_info* each = all; each != nullptr; each = each->next) {
    const std::string name = provider_of(*each);
    if (std::ranges::none_of(kNever, [&](const char* bad) { return is_of(name, bad); })) {
      names.insert(name);
    }
  }
  std::string out;
  for (const std::string& each : names) out += (out.empty() ? "" : ", ") + each;
  return out.empty() ? "none" : out;
}

// "mlx5_0, mlx5_1": the cards of the wanted providers that have no link.
static std::string down_ones(const fi_info* all) {
  std::set<std::string> domains;
  const auto names = wanted_names();
  for (const fi_info* each = all; each != nullptr; each = each->next) {
    const std::string provider = provider_of(*each);
    const auto is_one = [&](const std::string& name) { return is_of(provider, name); };
    if (link_down(*each) && std::ranges::any_of(names, is_one)) domains.insert(domain_of(*each));
  }
  std::string out;
  for (const std::string& each : domains) out += (out.empty() ? "" : ", ") + each;
  return out;
}

static Status nothing_fits(const Library& library, const fi_info* all) {
  if (const std::string down = down_ones(all); !down.empty()) {
    return {Code::Unavailable, text("ofi: no card has a link: ", down, " of ", library.readable(),
                                    "; see to the cable, the port or the subnet manager")};
  }
  const std::string here = library.readable() + " offers " + names_in(all);
  const std::string asked = config::raw("HCCOMM_OFI_PROVIDER");
  if (asked.empty()) {
    return {Code::Unavailable, text("ofi: no RDMA fabric here: ", here,
                                    "; HCCOMM_OFI_PROVIDER=NAME takes one of these, for tests")};
  }
  for (const char* never : kNever) {
    if (asked == never) {
      return {Code::InvalidArgument,
              text("ofi: HCCOMM_OFI_PROVIDER=", asked, " is not reliable enough; ", here)};
    }
  }
  return {Code::InvalidArgument, text("ofi: HCCOMM_OFI_PROVIDER=", asked, " is not here; ", here)};
}

// The infos of the first wanted name that has one, one for each card with a link, nearest first.
static std::vector<const fi_info*> cards_of(const fi_info* all, const Here& here) {
  for (const std::string& name : wanted_names()) {
    if (std::ranges::find(kNever, name) != std::end(kNever)) continue;
    // The first form that the library lists is the one it thinks best.
    std::string form;
    std::map<std::string, const fi_info*> cards;
    for (const fi_info* each = all; each != nullptr; each = each->next) {
      const std::string provider = provider_of(*each);
      if (!is_of(provider, name) || (!form.empty() && form != provider)) continue;
      if (link_down(*each)) continue;
      form = provider;
      const fi_info*& best = cards[domain_of(*each)];
      if (best == nullptr || nearer(*each, *best, here)) best = each;
    }
    std::vector<const fi_info*> out;
    for (const auto& [domain, info] : cards) out.push_back(info);
    std::ranges::stable_sort(
        out, [&](const fi_info* one, const fi_info* other) { return nearer(*one, *other, here); });
    if (!out.empty()) return out;
  }
  return {};
}

// Those that carry the links. By themselves several are taken only where they are real cards and
// equally near; each port of one network has an address of its own, which does not matter then.
static std::vector<const fi_info*> rails_of(const fi_info* all, const Here& here) {
  std::vector<const fi_info*> cards = cards_of(all, here);
  const bool all_near = config::raw("HCCOMM_OFI_RAILS") == "auto";
  const std::int64_t wanted = all_near ? 0 : config::integer("HCCOMM_OFI_RAILS");
  std::size_t most = std::min<std::size_t>(cards.size(), kMaxRails);
  if (wanted > 0) most = std::min<std::size_t>(most, static_cast<std::size_t>(wanted));
  std::size_t taken = std::min<std::size_t>(most, 1);
  while (taken < most &&
         (wanted > 0 || (is_real(*cards[taken]) &&
                         distance(*cards[taken], here.node) == distance(*cards[0], here.node)))) {
    ++taken;
  }
  cards.resize(taken);
  return cards;
}

static std::string card_of(const fi_info& info) {
  return text(provider_of(info), " on ", domain_of(info));
}

// The cards that say they can reach the memory of devices. Some say so where there is no device.
static Info infos_with_devices(const Library& library) {
  const KeptSignals kept;
  const Info wanted = hints(library, kEveryMode | FI_MR_HMEM, FI_HMEM | FI_READ | FI_REMOTE_READ);
  fi_info* found = nullptr;
  const int code = library.getinfo(FI_VERSION(1, 17), nullptr, nullptr, 0, wanted.get(), &found);
  return Info(code == 0 ? found : nullptr, {&library});
}

static Info with_devices(const Library& library, const fi_info& card, const fi_info* reaching) {
  for (const fi_info* each = reaching; each != nullptr; each = each->next) {
    const auto mine = ip_of(card), theirs = ip_of(*each);
    if (card_of(*each) != card_of(card) || each->addr_format != card.addr_format) continue;
    if (mine && theirs && mine->bytes != theirs->bytes) continue;
    return Info(library.dupinfo(each), {&library});
  }
  return Info(nullptr, {&library});
}

Result<std::vector<Choice>> choose(const tcp::Ip& near) {
  auto found = library();
  if (!found) return found.status();
  const Library& lib = *found.value();
  const Info all = all_infos(lib);
  const auto rails = rails_of(all.get(), {near});
  if (rails.empty()) return nothing_fits(lib, all.get());
  // Software providers offer it, too, where there is no device.
  const bool wanted = config::bytes("HCCOMM_OFI_DEVICE") != 0 && is_real(*rails.front());
  const Info reaching = wanted ? infos_with_devices(lib) : Info(nullptr, {&lib});
  std::vector<Choice> choices;
  for (const fi_info* each : rails) {
    Choice& choice = choices.emplace_back();
    choice.library = &lib;
    choice.info = Info(lib.dupinfo(each), {&lib});
    if (choice.info == nullptr) throw std::bad_alloc();
    choice.with_devices = with_devices(lib, *each, reaching.get());
    choice.provider = provider_of(*each);
    choice.domain = domain_of(*each);
  }
  return choices;
}

static std::set<std::string> reach_devices(const Library& library) {
  const Info all = infos_with_devices(library);
  std::set<std::string> out;
  for (const fi_info* each = all.get(); each != nullptr; each = each->next) {
    out.insert(card_of(*each));
  }
  return out;
}

// Whether a device's memory can be registered is known when one is used: describe() says it then.
static std::string device_memory(const fi_info& info, bool reaches_devices) {
  if (!reaches_devices) return "staged (no FI_HMEM)";
  if (!is_real(info)) return "staged (FI_HMEM offered by software)";
  if (config::bytes("HCCOMM_OFI_DEVICE") == 0) return "staged (HCCOMM_OFI_DEVICE=0)";
  return "direct where it can be registered (FI_HMEM)";
}

static std::string capabilities(const fi_info& info, bool reaches_devices) {
  const int mr = info.domain_attr->mr_mode;
  const std::string place = place_of(info);
  return text(
      place, place.empty() ? "" : ", ", "device memory ", device_memory(info, reaches_devices),
      ", inject ", info.tx_attr->inject_size, ", immediate ", info.domain_attr->cq_data_size,
      " bytes, ", info.domain_attr->data_progress == FI_PROGRESS_AUTO ? "automatic" : "manual",
      " progress, registration:", (mr & FI_MR_LOCAL) != 0 ? " local" : "",
      (mr & FI_MR_VIRT_ADDR) != 0 ? " virtual" : "", (mr & FI_MR_PROV_KEY) != 0 ? " own-keys" : "",
      (mr & FI_MR_ENDPOINT) != 0 ? " endpoint" : "",
      (mr & (FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_PROV_KEY | FI_MR_ENDPOINT)) == 0 ? " none" : "");
}

// Why a card carries links: "" where there was nothing to choose.
static std::string why(const fi_info& info, const Here& here) {
  if (!is_real(info)) return "";
  const int node = node_of(info);
  if (node < 0) return "the system does not say which card is near";
  if (node == here.node) return "on this process's memory node";
  return text("no nearer one has a link, or HCCOMM_OFI_RAILS: this process is on memory node ",
              here.node);
}

static std::string why_not(const fi_info& info, const std::vector<const fi_info*>& rails,
                           const Here& here) {
  const std::string provider = provider_of(info);
  for (const char* never : kNever) {
    if (is_of(provider, never)) return "never: not reliable or deprecated";
  }
  const auto names = wanted_names();
  if (std::ranges::none_of(names, [&](const auto& each) { return is_of(provider, each); })) {
    return config::is_set("HCCOMM_OFI_PROVIDER") ? "not in HCCOMM_OFI_PROVIDER"
                                                 : "no real fabric; taken when asked for";
  }
  if (link_down(info)) return "its link is down";
  if (rails.empty() || provider_of(*rails.front()) != provider) return "another is listed first";
  if (distance(info, here.node) > distance(*rails.front(), here.node)) {
    return text("farther: this process is on memory node ", here.node);
  }
  return is_real(info) ? text("HCCOMM_OFI_RAILS: ", rails.size(), " of those as near ",
                              rails.size() == 1 ? "is" : "are", " taken")
                       : "another one is nearer or listed first";
}

Result<std::vector<Finding>> survey() {
  auto found = library();
  if (!found) return found.status();
  const Info all = all_infos(*found.value());
  const auto reaching = reach_devices(*found.value());
  auto near = tcp::chosen_interfaces();
  const Here here{near ? near.value().front().ip : tcp::Ip{}};
  const auto rails = rails_of(all.get(), here);
  const auto chosen = [&](const fi_info* each) {
    return std::ranges::find(rails, each) != rails.end();
  };
  std::vector<Finding> findings;
  std::set<std::string> seen;
  // One line for each card, whatever its addresses; the one that is taken before its likes.
  for (const bool used : {true, false}) {
    for (const fi_info* each = all.get(); each != nullptr; each = each->next) {
      std::string what = card_of(*each);
      const bool reaches = reaching.contains(what);
      if (chosen(each) != used || !seen.insert(what).second) continue;
      const auto ip = used ? ip_of(*each) : std::nullopt;
      if (ip) what += ", " + ip->text();
      findings.push_back({std::move(what), capabilities(*each, reaches), used,
                          used ? why(*each, here) : why_not(*each, rails, here)});
    }
  }
  return findings;
}

std::string mismatch(const Library& library, const std::string& mine, const std::string& theirs,
                     Distance distance) {
  if (mine != theirs) {
    return text("it uses provider ", theirs, " of libfabric, this process ", mine,
                "; set HCCOMM_OFI_PROVIDER alike on all ranks");
  }
  if (!is_of(mine, "shm")) return "";
  if (distance == Distance::Apart) return "provider shm stays within one machine";
  // 2.5.1 was seen to crash in fi_cq_read when both endpoints were of one process.
  if (distance == Distance::SameProcess && library.version >= FI_VERSION(2, 0)) {
    return "provider shm of libfabric 2 does not join two endpoints of one process";
  }
  return "";
}

}  // namespace hccomm::transport::ofi
