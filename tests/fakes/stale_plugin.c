/* SPDX-License-Identifier: Apache-2.0
 *
 * A device plug-in that was built against a later hccomm: its table is of a version that this one
 * does not know. */
#include <hccomm_device.h>

static const hccomm_device_plugin_v1 table = {
    .struct_size = sizeof table,
    .abi_version = 99,
    .name = "stalechip",
};

HCCOMM_API const hccomm_device_plugin_v1* hccomm_device_plugin(void) { return &table; }
