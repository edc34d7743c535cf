// SPDX-License-Identifier: Apache-2.0
//
// Reductions on OpenCL devices: kernels, compiled when first wanted, once per context and device.
// opencl.cpp calls it for reduce_in.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "base/dynlib.hpp"
#include "device/device.hpp"

namespace hccomm::device {

// Owns:   kernels, which keep their contexts, and for each queue the memory that pieces come into.
// Thread: any; calls on one queue by one thread at a time.
// Fails:  lacks() says what the compiler said; enqueue() gives Code::System with OpenCL's code.
class OpenClSums {
 public:
  void find(const DynamicLibrary& library);
  std::string absent() const;  // why there are no kernels at all, or ""
  // `offsets`: of the memory, or-ed: where elements begin.
  std::string lacks(void* context, void* device, std::uint64_t offsets, const Reduction& how);
  // The queue is of that context and device, and works in order.
  Status enqueue(void* queue, void* context, void* device, Place dst, Place src, const void* host,
                 std::uint64_t count, const Reduction& how);
  void forget(void* queue);  // it is released

 private:
  struct Functions {
    void* (*program)(void* context, std::uint32_t, const char**, const std::size_t*, int*);
    int (*build)(void* program, std::uint32_t, void* const* devices, const char* options, void*,
                 void*);
    int (*build_info)(void* program, void* device, std::uint32_t, std::size_t, void*, std::size_t*);
    int (*program_release)(void*);
    void* (*kernel)(void* program, const char* name, int*);
    int (*argument)(void* kernel, std::uint32_t, std::size_t, const void*);
    int (*launch)(void* queue, void* kernel, std::uint32_t, const std::size_t*, const std::size_t*,
                  const std::size_t*, std::uint32_t, void* const*, void**);
    void* (*buffer)(void* context, std::uint64_t flags, std::size_t, void*, int*);
    int (*buffer_release)(void*);
    int (*write)(void* queue, void* buffer, std::uint32_t blocking, std::size_t offset, std::size_t,
                 const void*, std::uint32_t, void* const*, void**);
  };
  struct Kernel {
    void* native = nullptr;
    std::string why_not;
  };
  struct Scratch {
    void* buffer = nullptr;
    std::uint64_t bytes = 0;
  };
  using Key = std::tuple<void*, void*, std::int32_t, std::int32_t>;  // context, device, type, op

  const Kernel& kernel(void* context, void* device, const Reduction& how);
  Kernel compile(void* context, void* device, const Reduction& how) const;
  Result<void*> scratch(void* queue, void* context, std::uint64_t bytes);
  int launch(void* queue, void* kernel, void* piece, Place dst, Place src, std::size_t count,
             bool host_first) const;

  Functions call_{};  // constant after find()
  bool here_ = false;
  std::mutex mutex_;  // guards the rest, and the arguments of kernels
  std::map<Key, Kernel> kernels_;
  std::map<void*, Scratch> scratch_;  // by queue
};

}  // namespace hccomm::device
