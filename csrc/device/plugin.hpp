// SPDX-License-Identifier: Apache-2.0
//
// Runtimes that come from outside as a C table (capi/hccomm_device.h): by HCCOMM_PLUGINS, or by
// hccomm_device_register. Their probe runs at the first use of their kind, as that of built-ins.
#pragma once

#include "capi/hccomm_device.h"
#include "device/registry.hpp"

namespace hccomm::device {

// Adds the table's kind; the table stays the caller's and must outlive the registry. The same table
// again gives the same kind. A wrong version or a missing function is InvalidArgument.
Result<Kind> register_plugin(const hccomm_device_plugin_v1* table, const std::string& origin,
                             Registry& registry);

// Loads the library and registers what its hccomm_device_plugin() returns; the reason names `path`.
Result<Kind> load_plugin(const std::string& path, Registry& registry);

}  // namespace hccomm::device
