// SPDX-License-Identifier: Apache-2.0
#include "transport/route_hint.hpp"

#include <mutex>

namespace hccomm::transport {

static std::mutex mutex;  // guards hint
static std::string hint;

void set_route_hint(std::string host) {
  const std::lock_guard lock(mutex);
  hint = std::move(host);
}

std::string route_hint() {
  const std::lock_guard lock(mutex);
  return hint;
}

}  // namespace hccomm::transport
