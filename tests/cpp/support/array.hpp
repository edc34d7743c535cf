// SPDX-License-Identifier: Apache-2.0
//
// The buffers of staging tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/parts.hpp"
#include "support/test_device.hpp"

namespace hccomm::test {

// Elements somewhere: in host memory, or on a device.
class Array {
 public:
  Array(TestDevice* device, const std::vector<std::int64_t>& values)
      : device_(device), bytes_(values.size() * sizeof values[0]) {
    if (device_ == nullptr) {
      host_ = values;
      return;
    }
    place_ = device_->allocate(0, std::max<std::size_t>(bytes_, 1)).take();
    if (bytes_ != 0) std::memcpy(inside(), values.data(), bytes_);
  }
  Array(Array&& other) noexcept
      : device_(other.device_),
        bytes_(other.bytes_),
        place_(other.place_),
        host_(std::move(other.host_)) {
    other.place_ = {};
  }
  ~Array() {
    if (place_.handle != nullptr) device_->release(0, place_);
  }
  std::vector<std::int64_t> values() {
    if (device_ == nullptr) return host_;
    std::vector<std::int64_t> all(bytes_ / sizeof(std::int64_t));
    if (bytes_ != 0) std::memcpy(all.data(), inside(), bytes_);
    return all;
  }
  engine::Where where(std::uint64_t offset = 0, void* stream = nullptr) const {
    if (device_ == nullptr) return {};
    return {device_, 0, false, {place_.handle, offset * 8}, stream, device_->name()};
  }
  // Null on a device: nobody but the device may use the address.
  std::byte* data(std::uint64_t offset = 0) {
    return device_ != nullptr ? nullptr : reinterpret_cast<std::byte*>(host_.data() + offset);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* inside() { return device_->inside(place_.handle, std::max<std::size_t>(bytes_, 1)); }

  TestDevice* device_;
  std::size_t bytes_;
  device::Place place_;
  std::vector<std::int64_t> host_;
};

}  // namespace hccomm::test
