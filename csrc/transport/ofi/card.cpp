// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/card.hpp"

#include <rdma/fabric.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace hccomm::transport::ofi {

static constexpr std::size_t kGigabit = 1'000'000'000;

std::string provider_of(const fi_info& info) {
  return info.fabric_attr->prov_name != nullptr ? info.fabric_attr->prov_name : "?";
}

std::string domain_of(const fi_info& info) {
  return info.domain_attr->name != nullptr ? info.domain_attr->name : "?";
}

std::optional<tcp::Ip> ip_of(const fi_info& info) {
  if (info.addr_format != FI_SOCKADDR_IN && info.addr_format != FI_SOCKADDR_IN6) return {};
  return info.src_addr != nullptr ? tcp::Ip::of(static_cast<const sockaddr*>(info.src_addr))
                                  : std::nullopt;
}

std::string network_of(const fi_info& info) {
  const char* const name = info.fabric_attr->name;
  std::string out = name != nullptr ? name : "?";
  const auto ip = ip_of(info);
  if (!ip) return out;
  auto all = tcp::interfaces();
  if (!all) return out;
  const auto found = std::ranges::find(all.value(), *ip, &tcp::Interface::ip);
  return found == all.value().end() ? out : text(out, ", ", found->network());
}

bool is_real(const fi_info& info) {
  return info.nic != nullptr && info.nic->bus_attr != nullptr &&
         info.nic->bus_attr->bus_type == FI_BUS_PCI;
}

static const fi_link_attr* link_of(const fi_info& info) {
  return info.nic != nullptr ? info.nic->link_attr : nullptr;
}

bool link_down(const fi_info& info) {
  const fi_link_attr* const link = link_of(info);
  return link != nullptr && link->state == FI_LINK_DOWN;
}

// "0000:81:00.0", as the kernel names it.
static std::string bus_of(const fi_info& info) {
  const fi_pci_attr& at = info.nic->bus_attr->attr.pci;
  char name[32];
  std::snprintf(name, sizeof name, "%04x:%02x:%02x.%x", unsigned{at.domain_id}, unsigned{at.bus_id},
                unsigned{at.device_id}, unsigned{at.function_id});
  return name;
}

// Machines without cards have a test say where they would be.
int node_of(const fi_info& info) {
  if (!is_real(info)) return -1;
  const char* const test = std::getenv("HCCOMM_TEST_OFI_PCI");
  const std::string devices = test != nullptr ? test : "/sys/bus/pci/devices";
  int node = -1;
  if (!(std::ifstream(devices + "/" + bus_of(info) + "/numa_node") >> node)) return -1;
  return node;
}

int node_here() {
  unsigned cpu = 0, node = 0;
  return getcpu(&cpu, &node) == 0 ? static_cast<int>(node) : -1;
}

int distance(const fi_info& info, int here) {
  const int node = node_of(info);
  return node >= 0 && node != here ? 1 : 0;
}

int detour(const fi_info& info, const tcp::Ip& near) {
  const auto ip = ip_of(info);
  if (!ip || ip->bytes == near.bytes) return 0;
  return ip->link_local() ? 3 : ip->loopback() ? 2 : 1;
}

std::string place_of(const fi_info& info) {
  if (!is_real(info)) return "";
  std::string out = "PCI " + bus_of(info);
  if (const int node = node_of(info); node >= 0) out += text(", memory node ", node);
  const fi_link_attr* const link = link_of(info);
  if (link == nullptr) return out;
  if (link->speed >= kGigabit) out += text(", ", link->speed / kGigabit, " Gbit/s");
  if (link->state == FI_LINK_UP) out += ", link up";
  if (link->state == FI_LINK_DOWN) out += ", link down";
  return out;
}

}  // namespace hccomm::transport::ofi
