// SPDX-License-Identifier: Apache-2.0
//
// The table of vendors' collective libraries, and those of them that were found.
#include <map>
#include <mutex>
#include <vector>

#include "native/ccl.hpp"

namespace hccomm::native {

std::span<const Builtin> builtins() {
#define HCCOMM_CCL(name) name##_ccl(),
  static const Builtin kAll[] = {
#include "native/builtins.inc"
  };
#undef HCCOMM_CCL
  return kAll;
}

Result<Library*> library(device::Kind kind) {
  static std::mutex mutex;  // guards found
  static auto& found = *new std::map<device::Kind, std::unique_ptr<Library>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& own = found[kind];
  if (own != nullptr) return own.get();
  for (const Builtin& each : builtins()) {
    if (each.kind != kind) continue;
    auto probed = each.probe();
    if (!probed.ok()) return probed.status();
    own = std::move(probed).value();
    return own.get();
  }
  return Status(Code::Unavailable, "no collective library is known for this kind of device");
}

}  // namespace hccomm::native
