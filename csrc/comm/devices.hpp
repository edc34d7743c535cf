// SPDX-License-Identifier: Apache-2.0
//
// Buffers on devices, as the C ABI gives them: which runtime serves them, and which of two are the
// same memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.hpp"
#include "engine/parts.hpp"

namespace hccomm::comm {

struct Memory;

// What a caller says of a buffer. kind 0 is the host, and the rest is ignored then.
struct DeviceBuffer {
  std::int32_t kind = 0;
  std::int32_t index = 0;
  void* handle = nullptr;
  std::uint64_t offset = 0;  // bytes
  void* stream = nullptr;
};

// Finds the runtime, loading it at the first use of its kind. InvalidArgument where there is no
// such kind or device; Unavailable with the reason where its runtime is not here.
Result<engine::Where> locate(const char* what, const DeviceBuffer& buffer);

// Gives the data of two buffers, of which not both are the host's, addresses that compare as the
// memory does: where handles are no addresses, or the buffers lie apart, they are made up.
void make_comparable(Memory& input, Memory& output);

}  // namespace hccomm::comm
