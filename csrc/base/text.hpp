// SPDX-License-Identifier: Apache-2.0
//
// text("send to rank ", peer, ": ", reason): builds a message from its parts. For messages to
// people only; never on a hot path, and so never inlined into one.
#pragma once

#include <sstream>
#include <string>

namespace hccomm {

template <typename... Parts>
[[gnu::cold, gnu::noinline]] std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace hccomm
