// SPDX-License-Identifier: Apache-2.0
#include "comm/registration.hpp"

namespace hccomm::comm {

Registration::Registration(const std::shared_ptr<Endpoint>& endpoint, std::byte* data,
                           std::size_t bytes)
    : endpoint_(endpoint), data_(data), bytes_(bytes) {
  if (data == nullptr || bytes == 0) {
    throw Error(Code::InvalidArgument,
                text("register: ", bytes, " bytes at address ", static_cast<void*>(data),
                     " are no memory; pass a buffer that is not empty"));
  }
  if (Status status = endpoint->enroll(data, bytes); !status.ok()) throw Error(status);
}

// In a forked child the connections are the parent's.
Registration::~Registration() {
  if (Endpoint::forked()) return;
  if (const auto endpoint = endpoint_.lock()) endpoint->expel(data_, bytes_);
}

}  // namespace hccomm::comm
