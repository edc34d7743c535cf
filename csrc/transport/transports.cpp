// SPDX-License-Identifier: Apache-2.0
#include "transport/transports.hpp"

namespace hccomm::transport {

// Links whose memory the peer cannot read have no need to say so.
Status Link::pull(std::uint64_t, void*, std::uint64_t, std::size_t) noexcept {
  return {Code::Internal, "this link cannot pull from the peer's memory"};
}

Result<Progress> Link::write(const wire::Header&, const std::byte*, std::uint64_t,
                             std::uint64_t& wrote) noexcept {
  wrote = 0;
  return Progress::Again;
}

Status Transport::enroll(const DeviceMemory& memory) {
  return {Code::Unavailable,
          text(name(), " does not reach the memory of ", memory.kind, ":", memory.index)};
}

Result<std::unique_ptr<Shared>> Transport::share(std::size_t) {
  return Status(Code::Unavailable, text(name(), " shares no memory"));
}

std::span<const Builtin> transports() {
#define HCCOMM_TRANSPORT(name) name##_transport(),
  static const Builtin kAll[] = {
#include "transport/builtins.inc"
  };
#undef HCCOMM_TRANSPORT
  return kAll;
}

}  // namespace hccomm::transport
