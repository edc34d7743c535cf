// SPDX-License-Identifier: Apache-2.0
//
// Where a sum is made that stays on a device: there, or on the host. A trial at the first use of a
// device, type and operation tells whether the device gives the host's bits, and how long either
// way takes. The choice is this rank's own: no peer can tell, so none need agree.
#pragma once

#include <cstdint>
#include <string>

#include "device/device.hpp"
#include "dtype/reduce.hpp"

namespace hccomm::engine {

// What a trial has shown.
struct SumTrial {
  static constexpr std::uint64_t kBytes[2] = {64 << 10, 1 << 20};

  std::string why_not;  // the device does not add, or not the same bits; else "", and:
  double host[2] = {};  // seconds: the device's part out, the sum, and back, of kBytes
  double device[2] = {};

  // Whether the device is quicker for a piece of so many bytes.
  bool quicker(std::uint64_t bytes) const;
  // Requires: why_not is empty.
  std::string text() const;  // "64 KiB in 20 us (over the host 31), 1 MiB in ..."
};

// Takes milliseconds, and some device memory. Thread: any; never throws.
SumTrial try_sums(device::Runtime& runtime, int index, device::Reduction how, dtype::Reduce kernel,
                  std::size_t element_bytes);

}  // namespace hccomm::engine
