/* SPDX-License-Identifier: Apache-2.0
 *
 * Gives libhccomm.so a C translation unit, which also proves that the header is plain C. */
#include "capi/hccomm.h"

typedef char hccomm_error_is_512_bytes[sizeof(hccomm_error) == 512 ? 1 : -1];
