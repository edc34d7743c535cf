// SPDX-License-Identifier: Apache-2.0
#include "base/dynlib.hpp"

#include <dlfcn.h>
#include <link.h>

namespace hccomm {

static std::string path_of(void* handle, const std::string& fallback) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name[0] != '\0') {
    return map->l_name;
  }
  return fallback;
}

Result<DynamicLibrary> DynamicLibrary::open(const std::vector<std::string>& names) {
  for (const int mode : {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
    for (const std::string& name : names) {
      if (void* handle = dlopen(name.c_str(), mode)) {
        return DynamicLibrary(handle, path_of(handle, name));
      }
    }
  }
  const char* reason = dlerror();
  return Status(Code::Unavailable, reason != nullptr ? reason : "no library name given");
}

void* DynamicLibrary::find(const char* symbol, const char* version) const noexcept {
  return version != nullptr ? dlvsym(handle_, symbol, version) : dlsym(handle_, symbol);
}

}  // namespace hccomm
