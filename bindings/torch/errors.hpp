// SPDX-License-Identifier: Apache-2.0
//
// How trouble reaches torch. A wrong call is a RuntimeError with Gloo's words, which existing
// scripts match; a failure of the world is a torch.distributed.DistBackendError (a RuntimeError
// too). Both begin with "hccomm" and the name of the code, so that people can tell them apart.
#pragma once

#include <exception>
#include <string>

#include "capi/hccomm.h"

namespace hccomm::glue {

// "PeerLost"
const char* code_name(int code) noexcept;

// The call itself is wrong, found out before a byte moved.
[[noreturn]] void invalid(const char* operation, const std::string& what);

// What the core said, as the exception that torch shows to Python. `timeout` is the operation's, in
// seconds; a timeout repeats it in the words that torch's own tests look for.
std::exception_ptr exception_of(const hccomm_error& error, double timeout);
[[noreturn]] void raise(const hccomm_error& error, double timeout);

}  // namespace hccomm::glue
