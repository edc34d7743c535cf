// SPDX-License-Identifier: Apache-2.0
//
// Libraries that may be absent: found with dlopen at run time, an already loaded one first.
#pragma once

#include <string>
#include <vector>

#include "base/error.hpp"

namespace hccomm {

// A shared library found by one of its names. Never closed: vendor runtimes do not survive dlclose.
class DynamicLibrary {
 public:
  // Tries each name with RTLD_NOLOAD first, then loads (RTLD_NOW | RTLD_LOCAL). The Status of a
  // failure quotes the last dlerror().
  static Result<DynamicLibrary> open(const std::vector<std::string>& names);

  // The symbol, or nullptr; a version selects dlvsym.
  void* find(const char* symbol, const char* version = nullptr) const noexcept;
  template <typename Function>
  Function* find_as(const char* symbol, const char* version = nullptr) const noexcept {
    return reinterpret_cast<Function*>(find(symbol, version));
  }
  const std::string& path() const noexcept { return path_; }

 private:
  DynamicLibrary(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  void* handle_;
  std::string path_;
};

}  // namespace hccomm
