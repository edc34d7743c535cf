// SPDX-License-Identifier: Apache-2.0
//
// What torch's parts of the simulated device share: which device and stream are current on this
// thread, and memory as torch allocates it.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "runtime.hpp"

namespace simdevice {

inline constexpr auto kType = c10::DeviceType::PrivateUse1;

int current_device();
void set_current_device(int index);
int64_t current_stream(int device);
Stream& current(int device);
Stream& stream_of(const c10::Stream& stream);

// Device memory, returned in stream order; use on other streams must be recorded.
c10::Allocator& device_allocator();
// Page-locked host memory.
c10::Allocator& pinned_allocator();
bool is_pinned(const void* address);
int64_t live_pinned();
std::atomic<int64_t>& fail_pinned_after();

// What has gone through the vendor's own functions (native.cpp): copies in all, streams alive.
int64_t native_copies();
int64_t native_streams();

}  // namespace simdevice
