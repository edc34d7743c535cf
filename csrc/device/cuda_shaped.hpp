// SPDX-License-Identifier: Apache-2.0
//
// The vendors whose runtime has CUDA's functions under a prefix of their own, or under CUDA's. One
// adapter serves them all; what a runtime lacks or names otherwise is found out when it is loaded.
#pragma once

#include <string>
#include <vector>

#include "device/device.hpp"

namespace hccomm::device {

// One vendor, as data.
struct CudaShape {
  const char* kind;                    // "musa"
  const char* prefix;                  // of its functions: "musa"
  const char* driver;                  // of its driver's functions, "mu"; nullptr: none is known
  const char* handles;                 // the function that exports a dmabuf, or nullptr
  const char* missing;                 // what a machine without its devices lacks, for the reason
  std::vector<std::string> libraries;  // of the runtime, best first
  std::vector<std::string> driver_libraries;  // loaded by the runtime itself
  bool borrowed = false;     // the file names are another vendor's: its path must tell it
  int fabric_interface = 0;  // Runtime::fabric_interface()
};

// The runtime with at least one device, or why not here.
Result<std::unique_ptr<Runtime>> open_cuda_shaped(const CudaShape& shape);

// Whose library lies at that path, of the vendors that ship CUDA's or HIP's file names; "" where
// the path says nothing.
std::string owner_of(const std::string& path);

}  // namespace hccomm::device
