// SPDX-License-Identifier: Apache-2.0
//
// The devices' part of the C ABI: kinds by name, and tables that a program brings itself.
#include <algorithm>
#include <cstring>

#include "capi/hccomm.h"
#include "capi/hccomm_device.h"
#include "device/plugin.hpp"

using hccomm::Code;
using hccomm::Status;
using hccomm::device::Registry;

int32_t hccomm_device_kind(const char* name) {
  try {
    auto kind = Registry::global().kind(name != nullptr ? name : "");
    return kind.ok() ? static_cast<int32_t>(kind.value()) : -1;
  } catch (const std::exception&) {  // no memory
    return -1;
  }
}

int hccomm_device_probe(int32_t kind, char* out, size_t capacity) {
  try {
    auto found = Registry::global().runtime(static_cast<hccomm::device::Kind>(kind));
    const std::string words = found.ok() ? found.value()->library() : found.status().text();
    if (out != nullptr && capacity > 0) {
      const std::size_t length = std::min(words.size(), capacity - 1);
      std::memcpy(out, words.data(), length);
      out[length] = '\0';
    }
    return found.ok() ? HCCOMM_OK : static_cast<int>(found.status().code());
  } catch (const std::exception&) {  // no memory
    if (out != nullptr && capacity > 0) *out = '\0';
    return HCCOMM_INTERNAL;
  }
}

static int told(const Status& status, hccomm_error* error) {
  if (error != nullptr) {
    *error = {static_cast<int32_t>(status.code()), -1, {}};
    std::memcpy(error->text, status.text().data(),
                std::min(status.text().size(), sizeof error->text - 1));
  }
  return static_cast<int>(status.code());
}

int hccomm_device_register(const hccomm_device_plugin_v1* plugin, int32_t* kind,
                           hccomm_error* error) {
  try {
    auto added = hccomm::device::register_plugin(plugin, "a program's own", Registry::global());
    if (kind != nullptr) *kind = added.ok() ? static_cast<int32_t>(added.value()) : -1;
    return told(added.ok() ? Status() : added.status(), error);
  } catch (const std::exception& failure) {
    return told(Status(Code::Internal, failure.what()), error);
  }
}
