// SPDX-License-Identifier: Apache-2.0
//
// All built-in transports: builtins.inc lists them, one line each; this makes a table of them.
#pragma once

#include <span>

#include <memory>

#include "transport/transport.hpp"

namespace hccomm::transport {

std::span<const Builtin> transports();

// Each built-in, from the file of its name.
#define HCCOMM_TRANSPORT(name) Builtin name##_transport();
#include "transport/builtins.inc"
#undef HCCOMM_TRANSPORT

// HCCOMM_INTEGRITY: the link with every frame checked from end to end, damage to payload or order
// being Code::Integrity. Both ends must do so. It does not pull: what is not in a frame is not
// seen.
std::unique_ptr<Link> sealed(std::unique_ptr<Link> link);

}  // namespace hccomm::transport
