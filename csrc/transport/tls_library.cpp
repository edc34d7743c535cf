// SPDX-License-Identifier: Apache-2.0
#include "transport/tls_library.hpp"

#include "base/dynlib.hpp"

namespace hccomm::transport::tls {

static Library load() {
  Library found;
  auto opened = DynamicLibrary::open({"libssl.so.3", "libssl.so.1.1"});
  if (!opened) {
    found.status = Status(Code::Unavailable,
                          text("HCCOMM_ENCRYPT=1 needs OpenSSL's libssl (install libssl3): ",
                               opened.status().text()));
    return found;
  }
  const char* missing = nullptr;
#define HCCOMM_FIND(name, ...)                                      \
  found.name = opened.value().find_as<Library::name##_type>(#name); \
  if (found.name == nullptr && missing == nullptr) missing = #name;
  HCCOMM_LIBSSL(HCCOMM_FIND)
#undef HCCOMM_FIND
  if (missing != nullptr) {
    found.status =
        Status(Code::Unavailable, text("HCCOMM_ENCRYPT=1: ", opened.value().path(), " has no ",
                                       missing, "; install OpenSSL 3 (libssl3)"));
  }
  return found;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace hccomm::transport::tls
