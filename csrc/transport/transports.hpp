// SPDX-License-Identifier: Apache-2.0
//
// All built-in transports: builtins.inc lists them, one line each; this makes a table of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "transport/transport.hpp"

namespace hccomm::transport {

std::span<const Builtin> transports();

// Each built-in, from the file of its name.
#define HCCOMM_TRANSPORT(name) Builtin name##_transport();
#include "transport/builtins.inc"
#undef HCCOMM_TRANSPORT

// HCCOMM_INTEGRITY: what is checked from end to end, damage to payload or order being
// Code::Integrity. Both ends must do the same.
enum class Seal : std::uint8_t {
  Nothing,
  Frames,      // crc32c: what one process copies from another's memory is in no frame
  Everything,  // crc32c-all: so nothing is copied past them
};

// Requires: seal is not Nothing.
std::unique_ptr<Link> sealed(std::unique_ptr<Link> link, Seal seal);

}  // namespace hccomm::transport
