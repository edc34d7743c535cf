// SPDX-License-Identifier: Apache-2.0
//
// The fake vendor runtimes of tests/fakes, found through the same settings as real libraries.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/clock.hpp"
#include "device/library.hpp"
#include "device/registry.hpp"

namespace hccomm::test {

#ifndef HCCOMM_FAKES  // CMake gives it to the suites that use fakes
#define HCCOMM_FAKES "build/release/tests/fakes"
#endif

// The fake library of a kind, or "" where there is none.
inline std::string fake_path(const std::string& kind) {
  const std::filesystem::path folder = std::filesystem::path(HCCOMM_FAKES) / kind;
  std::error_code none;
  for (const auto& each : std::filesystem::directory_iterator(folder, none)) {
    if (each.path().filename().string().find(".so") != std::string::npos) return each.path();
  }
  return "";
}

// The controls that every fake exports (tests/fakes/fake.h).
//
// Owns:   nothing; the library stays loaded.
// Thread: any.
// Fails:  a test, where the library is no fake.
class Fake {
 public:
  explicit Fake(const std::string& kind) {
    std::string path = fake_path(kind);
    if (path.empty()) path = fake_path(kind + "_driver");
    void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    set_ = reinterpret_cast<int (*)(const char*)>(dlsym(library, "fake_set"));
    count_ = reinterpret_cast<std::int64_t (*)(const char*)>(dlsym(library, "fake_count"));
  }
  bool here() const { return set_ != nullptr; }
  void set(const std::string& setting) const { ASSERT_EQ(set_(setting.c_str()), 0) << setting; }
  std::int64_t count(const char* name) const { return count_(name); }

 private:
  int (*set_)(const char*) = nullptr;
  std::int64_t (*count_)(const char*) = nullptr;
};

// Names the fake of each kind that has one in its HCCOMM_<KIND>_LIB, unless the environment did;
// the real Level Zero loader, where the machine has one, is given a fake driver.
inline void use_fakes() {
  for (const device::Builtin& each : device::builtins()) {
    if (const std::string path = fake_path(each.name); !path.empty()) {
      setenv(device::library_setting(each.name).c_str(), path.c_str(), 0);
    }
  }
  setenv("ZE_ENABLE_ALT_DRIVERS", fake_path("level_zero_driver").c_str(), 0);
}

// Waits at most five seconds for the event. False: it failed or did not come.
inline bool comes(device::Runtime& runtime, device::Event event) {
  const Deadline deadline = Deadline::after(Seconds(5));
  while (!deadline.passed()) {
    auto done = runtime.event_query(event);
    if (!done.ok()) return false;
    if (done.value()) return true;
    sched_yield();
  }
  return false;
}

}  // namespace hccomm::test
