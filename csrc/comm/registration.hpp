// SPDX-License-Identifier: Apache-2.0
//
// Memory of the program, on the host or on a device, that it has registered with the cards of its
// process. A program does so for buffers that it uses again and again; without, each transport
// decides what of the host's to keep registered, and keeps nothing of a device's.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/endpoint.hpp"

namespace hccomm::comm {

// Owns:   the registration, as long as the process's connections live; not the memory.
// Thread: any.
// Fails:  the constructor throws InvalidArgument for no memory, System where a card or the limit on
//         locked memory refuses.
class Registration {
 public:
  // Requires: the memory stays mapped until this is destroyed.
  Registration(const std::shared_ptr<Endpoint>& endpoint, std::byte* data, std::size_t bytes);
  Registration(const std::shared_ptr<Endpoint>& endpoint, const engine::Where& where,
               std::size_t bytes);
  Registration(const Registration&) = delete;
  ~Registration();
  // False: it lies on a device, no card reaches it there, and it is staged as without.
  bool reached() const { return reached_; }

 private:
  std::weak_ptr<Endpoint> endpoint_;
  std::byte* data_;
  std::size_t bytes_;
  transport::DeviceMemory device_;  // no bytes: it is the host's
  bool reached_ = true;
};

}  // namespace hccomm::comm
