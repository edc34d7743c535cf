// SPDX-License-Identifier: Apache-2.0
//
// Just enough JSON to answer describe, info and explain: an object or array written member by
// member.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <type_traits>

namespace hccomm {

inline std::string json_quote(std::string_view value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Value type. Json::object().add("rank", 3).add("who", "me").str()
class Json {
 public:
  static Json object() { return Json('{', '}'); }
  static Json array() { return Json('[', ']'); }

  template <typename T>
  Json& add(std::string_view key, const T& value) {
    separate();
    body_ += json_quote(key) + ":";
    return append(value);
  }
  template <typename T>
  Json& push(const T& value) {
    separate();
    return append(value);
  }
  std::string str() const { return open_ + body_ + close_; }

 private:
  Json(char open, char close) : open_(1, open), close_(1, close) {}
  void separate() {
    if (!body_.empty()) body_ += ',';
  }
  template <typename T>
  Json& append(const T& value) {
    if constexpr (std::is_same_v<T, Json>) {
      body_ += value.str();
    } else if constexpr (std::is_same_v<T, bool>) {
      body_ += value ? "true" : "false";
    } else if constexpr (std::is_arithmetic_v<T>) {
      body_ += std::to_string(value);
    } else {
      body_ += json_quote(value);
    }
    return *this;
  }
  std::string open_, body_, close_;
};

}  // namespace hccomm
