// SPDX-License-Identifier: Apache-2.0
//
// All built-in transports: builtins.inc lists them, one line each; this makes a table of them.
#pragma once

#include <span>

#include "transport/transport.hpp"

namespace hccomm::transport {

std::span<const Builtin> transports();

// Each built-in, from the file of its name.
#define HCCOMM_TRANSPORT(name) Builtin name##_transport();
#include "transport/builtins.inc"
#undef HCCOMM_TRANSPORT

}  // namespace hccomm::transport
