// SPDX-License-Identifier: Apache-2.0
//
// Memory of the program that it has registered with the cards of its process. A program does so for
// buffers that it uses again and again; without, each transport decides what to keep registered.
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
  Registration(const Registration&) = delete;
  ~Registration();

 private:
  std::weak_ptr<Endpoint> endpoint_;
  std::byte* data_;
  std::size_t bytes_;
};

}  // namespace hccomm::comm
