// SPDX-License-Identifier: Apache-2.0
//
// A test device that adds i64, rightly or not: what tests of sums on devices use.
#pragma once

#include "support/test_device.hpp"

namespace hccomm::test {

class SummingDevice final : public TestDevice {
 public:
  // A sum takes `seconds` beside what a copy takes.
  explicit SummingDevice(std::string name, double seconds = 0, double latency = 0,
                         bool right = true)
      : TestDevice(std::move(name), latency), seconds_(seconds), right_(right) {}

  std::atomic<int> sums{0};  // so far, those of trials included

  std::string lacks(device::Feature feature) const override {
    return feature == device::Feature::Reduce ? std::string() : TestDevice::lacks(feature);
  }
  std::string lacks_reduction(int, device::Place, device::Place,
                              device::Reduction how) noexcept override {
    return how.type == 4 && how.op == 0 ? "" : "it adds i64 alone";
  }
  Status reduce_in(device::Stream stream, device::Place dst, device::Place src, const void* host,
                   std::uint64_t count, device::Reduction) noexcept override {
    const std::size_t bytes = count * sizeof(std::uint64_t);
    auto* const to = reinterpret_cast<std::uint64_t*>(inside(address(dst), bytes));
    const auto* const from = reinterpret_cast<const std::uint64_t*>(inside(address(src), bytes));
    const auto* const came = static_cast<const std::uint64_t*>(host);
    auto* const pinned = static_cast<std::byte*>(const_cast<void*>(host));
    if (to == nullptr || from == nullptr || !is_pinned(pinned, bytes)) {
      ADD_FAILURE() << name() << ": a sum outside of device or pinned memory";
      return {Code::System, "bad sum"};
    }
    if (is_lost()) return gone("reduce");
    ++sums;
    worker(stream).add({[=, this, wrong = right_ ? 0u : 1u] {
                          const std::shared_lock runs(running_);
                          for (std::uint64_t k = 0; k < count && !lost_; ++k) {
                            to[k] = from[k] + came[k] + wrong;
                          }
                        },
                        seconds_ + latency_});
    return {};
  }

 private:
  const double seconds_;
  const bool right_;
};

}  // namespace hccomm::test
