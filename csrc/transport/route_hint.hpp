// SPDX-License-Identifier: Apache-2.0
//
// A host that every rank of the job can reach: the one they meet at. rendezvous/ knows it, and
// transport/tcp listens on the interface that leads there.
#pragma once

#include <string>

namespace hccomm::transport {

// Name or address. Thread: any; counts for transports that are opened later.
void set_route_hint(std::string host);
std::string route_hint();

}  // namespace hccomm::transport
