// SPDX-License-Identifier: Apache-2.0
//
// The job key: 32 secret bytes that all ranks of a job hold and that every connection proves.
// comm/ loads it once and puts it into the identity that the transports get.
#pragma once

#include <string>

#include "base/error.hpp"

namespace hccomm::wire {

inline constexpr std::size_t kKeyBytes = 32;

// From HCCOMM_KEY_FILE (a regular file of ours that nobody else may read: 32 raw bytes, or base64
// of them), else from HCCOMM_KEY (base64; removed from the environment so that children do not
// inherit it, and remembered for this process), else empty: no key.
//
// Code::InvalidArgument says what is wrong and what to do; it never quotes the key.
// Thread: any, but see unsetenv(3): call it before other threads read the environment.
Result<std::string> load_job_key();

}  // namespace hccomm::wire
