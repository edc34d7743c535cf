// SPDX-License-Identifier: Apache-2.0
//
// The table of vendors' collective libraries, and those of them that were found.
#include <unistd.h>

#include <map>
#include <mutex>
#include <vector>

#include "base/config.hpp"
#include "device/library.hpp"
#include "device/registry.hpp"
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

Status Group::send(const void*, std::uint64_t, int, void*) {
  return {Code::Unavailable, "this collective library has no messages"};
}

Status Group::recv(void*, std::uint64_t, int, void*) {
  return {Code::Unavailable, "this collective library has no messages"};
}

std::vector<device::Kind> likely_kinds() {
  std::vector<device::Kind> kinds;
  for (const Builtin& each : builtins()) {
    const std::string kind = device::Registry::global().name(each.kind);
    const bool set = config::is_set(device::library_setting("ccl_" + kind).c_str());
    const bool driver = each.node[0] != '\0' && access(each.node, F_OK) == 0;
    if (set || driver || device::is_loaded(each.files)) kinds.push_back(each.kind);
  }
  return kinds;
}

}  // namespace hccomm::native
