// SPDX-License-Identifier: Apache-2.0
//
// Bytes as text that survives an environment variable.
#pragma once

#include <string>

namespace hccomm::test {

inline std::string hex(const std::string& bytes) {
  static constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (const char each : bytes) {
    out.push_back(kDigits[static_cast<unsigned char>(each) >> 4]);
    out.push_back(kDigits[each & 15]);
  }
  return out;
}

inline std::string unhex(const char* digits) {
  std::string out;
  for (const std::string text = digits; out.size() * 2 < text.size();) {
    out.push_back(static_cast<char>(std::stoi(text.substr(out.size() * 2, 2), nullptr, 16)));
  }
  return out;
}

}  // namespace hccomm::test
