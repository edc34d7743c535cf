// SPDX-License-Identifier: Apache-2.0
//
// Elements in the memory of a fake vendor's device (tests/fakes/fake.h), which fake network cards
// reach (tests/fakes/cards_fabric.c); or on the host, where no kind is named.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "device/library.hpp"
#include "device/registry.hpp"
#include "engine/parts.hpp"

namespace hccomm::test {

// Owns:   the memory.
// Thread: one at a time.
// Fails:  aborts where there is no such fake.
class CardArray {
 public:
  CardArray(const char* kind, const std::vector<std::int64_t>& values)
      : kind_(kind != nullptr ? kind : ""), bytes_(values.size() * sizeof values[0]) {
    if (kind == nullptr) {
      host_ = values;
      return;
    }
    auto& registry = device::Registry::global();
    runtime_ = registry.runtime(registry.kind(kind_).take()).take();
    place_ = runtime_->allocate(0, bytes_).take();
    std::memcpy(inside(), values.data(), bytes_);
  }
  CardArray(CardArray&& other) noexcept
      : kind_(std::move(other.kind_)),
        bytes_(other.bytes_),
        runtime_(std::exchange(other.runtime_, nullptr)),
        place_(std::exchange(other.place_, {})),
        host_(std::move(other.host_)) {}
  ~CardArray() {
    if (runtime_ != nullptr) runtime_->release(0, place_);
  }
  std::vector<std::int64_t> values() {
    if (runtime_ == nullptr) return host_;
    std::vector<std::int64_t> all(bytes_ / sizeof(std::int64_t));
    std::memcpy(all.data(), inside(), bytes_);
    return all;
  }
  engine::Where where(void* stream = nullptr) const {
    if (runtime_ == nullptr) return {};
    return {runtime_, 0, false, place_, stream, kind_};
  }
  // Null on a device: nobody but the device and the cards may use the address.
  std::byte* data() {
    return runtime_ != nullptr ? nullptr : reinterpret_cast<std::byte*>(host_.data());
  }
  std::size_t bytes() const { return bytes_; }
  device::Runtime* runtime() const { return runtime_; }

 private:
  void* inside() {
    const bool driver = kind_ == "level_zero";  // the runtime is the real loader
    const std::string setting = driver ? "ZE_ENABLE_ALT_DRIVERS" : device::library_setting(kind_);
    void* const library = dlopen(std::getenv(setting.c_str()), RTLD_NOW | RTLD_NOLOAD);
    auto* const view =
        reinterpret_cast<void* (*)(const void*, std::size_t)>(dlsym(library, "fake_host_view"));
    void* const at = view(place_.handle, bytes_);
    dlclose(library);
    if (at == nullptr) std::abort();
    return at;
  }

  std::string kind_;
  std::size_t bytes_;
  device::Runtime* runtime_ = nullptr;
  device::Place place_;
  std::vector<std::int64_t> host_;
};

}  // namespace hccomm::test
