// SPDX-License-Identifier: Apache-2.0
#include "comm/registration.hpp"

#include "base/log.hpp"

namespace hccomm::comm {

static void check(const void* data, std::size_t bytes) {
  if (data != nullptr && bytes != 0) return;
  throw Error(Code::InvalidArgument, text("register: ", bytes, " bytes at address ", data,
                                          " are no memory; pass a buffer that is not empty"));
}

Registration::Registration(const std::shared_ptr<Endpoint>& endpoint, std::byte* data,
                           std::size_t bytes)
    : endpoint_(endpoint), data_(data), bytes_(bytes) {
  check(data, bytes);
  if (Status status = endpoint->enroll(data, bytes); !status.ok()) throw Error(status);
}

Registration::Registration(const std::shared_ptr<Endpoint>& endpoint, const engine::Where& where,
                           std::size_t bytes)
    : endpoint_(endpoint), data_(nullptr), bytes_(bytes) {
  check(where.place.handle, bytes);
  Result<transport::DeviceMemory> told = engine::for_cards(where, bytes);
  const Status status = told.ok() ? endpoint->enroll(told.value()) : told.status();
  reached_ = status.ok();
  if (reached_) {
    device_ = std::move(told).value();
  } else {
    HCCOMM_LOG(Info, "register: ", where.name, ":", where.index, " is staged: ", status.text());
  }
}

// In a forked child the connections are the parent's.
Registration::~Registration() {
  if (Endpoint::forked()) return;
  const auto endpoint = endpoint_.lock();
  if (endpoint == nullptr || !reached_) return;
  if (device_.bytes != 0) {
    endpoint->expel(device_);
  } else {
    endpoint->expel(data_, bytes_);
  }
}

}  // namespace hccomm::comm
