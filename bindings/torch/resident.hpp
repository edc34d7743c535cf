// SPDX-License-Identifier: Apache-2.0
//
// Device tensors that operations are using, found by address. The core copies bytes of an address;
// torch copies tensors, and a vendor's own kind of storage cannot be made of an address. So whoever
// starts an operation keeps its tensors here until it has ended.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace hccomm::glue {

// One plain device tensor in use.
//
// Owns:   a share of the tensor's memory.
// Thread: any.
// Fails:  the constructor may throw what torch throws.
class Resident {
 public:
  // Requires: the tensor is plain, on a device, and not empty.
  explicit Resident(const at::Tensor& tensor);
  ~Resident();
  Resident(Resident&& other) noexcept : id_(other.id_) { other.id_ = 0; }
  Resident& operator=(Resident&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }

 private:
  uint64_t id_;  // 0: moved from
};

// The bytes at `address` as a tensor, told to live as long as `stream` works on them. Raises when
// no tensor in use has them.
at::Tensor resident_bytes(const c10::Stream& stream, const void* address, int64_t bytes);

}  // namespace hccomm::glue
