// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the readers of settings' values: whatever a user writes, it is a value or InvalidArgument.
#include <cstdlib>
#include <string>

#include "base/config.hpp"
#include "base/error.hpp"

using namespace hccomm;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string value(reinterpret_cast<const char*>(data), size);
  try {
    (void)config::parse_bytes(value, "value");
  } catch (const Error& error) {
    HCCOMM_CHECK(error.status().code() == Code::InvalidArgument, "a bad value is the user's");
  }
  value.erase(value.find_first_of('\0') == std::string::npos ? value.size() : value.find('\0'));
  for (const char* name :
       {"HCCOMM_TIMEOUT", "HCCOMM_SPIN_US", "HCCOMM_AUTH", "HCCOMM_TRANSPORTS"}) {
    setenv(name, value.c_str(), 1);
    try {
      config::check_all();
      (void)config::list("HCCOMM_TRANSPORTS");
    } catch (const Error& error) {
      HCCOMM_CHECK(error.status().code() == Code::InvalidArgument, "a bad value is the user's");
    }
    unsetenv(name);
  }
  return 0;
}
