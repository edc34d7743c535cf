// SPDX-License-Identifier: Apache-2.0
//
// The memory of a simulated device: one arena, mapped twice. Users get addresses of the mapping
// that nobody may touch, so a host access to a device tensor faults as it would on a real one; the
// runtime works through the other mapping.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace simdevice {

// What the device refused, in the words of a vendor's runtime.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : DeviceError {
  using DeviceError::DeviceError;
};

// Owns:   a memfd and its two mappings.
// Thread: any.
// Fails:  allocate() throws OutOfMemory; addresses that it never gave are DeviceError.
class Memory {
 public:
  Memory(std::string device, std::size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* allocate(std::size_t bytes);
  // Overwrites the block, so that whoever still reads it reads nonsense, and takes it back.
  void release(void* address);
  bool holds(const void* address) const;
  // Where the runtime finds what users call `address`.
  std::byte* reach(const void* address) const;
  std::size_t blocks() const;
  std::size_t bytes_used() const;

 private:
  const std::string device_;
  const std::size_t bytes_;
  std::byte* user_ = nullptr;                // PROT_NONE
  std::byte* runtime_ = nullptr;             // read and write
  mutable std::mutex mutex_;                 // guards the rest
  std::map<std::size_t, std::size_t> free_;  // offset -> bytes
  std::map<std::size_t, std::size_t> used_;
  std::size_t bytes_used_ = 0;
};

}  // namespace simdevice
