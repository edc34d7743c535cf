// SPDX-License-Identifier: Apache-2.0
//
// From hccomm_error to c10's exceptions, which torch turns into Python's.
#include "errors.hpp"

#include <c10/util/Exception.h>

#include <cmath>

namespace hccomm::glue {

const char* code_name(int code) noexcept {
  switch (code) {
    case HCCOMM_OK: return "Ok";
    case HCCOMM_INVALID_ARGUMENT: return "InvalidArgument";
    case HCCOMM_MISMATCH: return "Mismatch";
    case HCCOMM_UNAVAILABLE: return "Unavailable";
    case HCCOMM_PEER_LOST: return "PeerLost";
    case HCCOMM_TIMEOUT: return "Timeout";
    case HCCOMM_ABORTED: return "Aborted";
    case HCCOMM_INTEGRITY: return "Integrity";
    case HCCOMM_SYSTEM: return "System";
    default: return "Internal";
  }
}

void invalid(const char* operation, const std::string& what) {
  TORCH_CHECK(false, "hccomm InvalidArgument: ", operation, ": ", what);
}

std::exception_ptr exception_of(const hccomm_error& error, double timeout) {
  std::string text = c10::str("hccomm ", code_name(error.code), ": ", error.text);
  const c10::SourceLocation here{__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)};
  if (error.code == HCCOMM_INVALID_ARGUMENT) {
    return std::make_exception_ptr(c10::Error(here, std::move(text)));
  }
  if (error.code == HCCOMM_TIMEOUT && timeout > 0) {
    text += c10::str(". Timed out waiting ", std::llround(timeout * 1000), "ms");
  }
  return std::make_exception_ptr(c10::DistBackendError(here, std::move(text)));
}

void raise(const hccomm_error& error, double timeout) {
  std::rethrow_exception(exception_of(error, timeout));
}

}  // namespace hccomm::glue
