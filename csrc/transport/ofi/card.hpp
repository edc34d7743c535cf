// SPDX-License-Identifier: Apache-2.0
//
// What an info of libfabric says about its card: whose it is, where it is plugged in, whether its
// link is up, and how far it is from this process.
#pragma once

#include <optional>
#include <string>

#include "transport/ofi/library.hpp"
#include "transport/tcp/interface.hpp"

namespace hccomm::transport::ofi {

std::string provider_of(const fi_info& info);  // "verbs;ofi_rxm"
std::string domain_of(const fi_info& info);    // "mlx5_0"
std::optional<tcp::Ip> ip_of(const fi_info& info);

// What it is connected to, as far as one knows: libfabric's name of the fabric (InfiniBand's has
// the subnet's prefix), and the network of its address, where it has one: "IB-0xfe80000000000000,
// 192.168.1.0/24". Cards of two hosts with the same reach each other.
std::string network_of(const fi_info& info);

// It says on which bus it is: no software provider does.
bool is_real(const fi_info& info);
bool link_down(const fi_info& info);
// The memory node of the card, -1 where the system does not say.
int node_of(const fi_info& info);
// The one that runs this thread, -1 where the system does not say.
int node_here();

// Smaller is better: 0 on memory node `here`.
int distance(const fi_info& info, int here);
// Smaller is better: 0 has the address `near`.
int detour(const fi_info& info, const tcp::Ip& near);

// "PCI 0000:81:00.0, memory node 1, 200 Gbit/s, link up"; "" where it is no real card.
std::string place_of(const fi_info& info);

}  // namespace hccomm::transport::ofi
