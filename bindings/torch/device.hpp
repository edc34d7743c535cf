// SPDX-License-Identifier: Apache-2.0
//
// How the core reaches tensors of a device type: through its own adapter for that vendor where it
// has one that works here, else through torch's streams, events and copies, which every device type
// that torch knows has. The latter needs no vendor's header and no vendor's symbol.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "capi/hccomm.h"
#include "capi/hccomm_device.h"

namespace hccomm::glue {

// The way of one device type, the same for the life of the process.
struct Route {
  int32_t kind = HCCOMM_DEVICE_HOST;  // for hccomm_buffer
  bool native = false;                // the core's own adapter
  std::string adapter;                // its name
  std::string why;                    // and why it and no other
};

// Raises when this device type cannot be reached at all.
const Route& route_of(c10::DeviceType type);

// Fills in where the tensor lies and on which stream its work is. Requires: it is plain.
void place(hccomm_buffer& buffer, const at::Tensor& tensor);

// JSON: the routes of the device types that are present in this process.
std::string describe_devices();

// Torch's streams, events and copies as a device plug-in. The table lives for ever.
const hccomm_device_plugin_v1* generic_device(c10::DeviceType type, const std::string& name);

}  // namespace hccomm::glue
