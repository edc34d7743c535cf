// SPDX-License-Identifier: Apache-2.0
//
// Which way the tensors of a device type take. Decided at the first tensor of the type, once.
#include "device.hpp"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "errors.hpp"

namespace hccomm::glue {

// Device types whose torch streams are the vendor's own stream handles, and the core's adapters for
// them, the likeliest first. ("xpu" is absent: its streams are SYCL queues, not Level Zero's.)
static std::vector<const char*> natives(const std::string& type) {
  if (type == "cuda" && at::globalContext().hasROCM()) return {"hip", "dtk"};
  if (type == "cuda") return {"cuda", "maca", "corex", "ppu", "kunlun", "dtk"};
  if (type == "npu") return {"ascend"};
  if (type == "mlu") return {"cnrt"};
  if (type == "gcu") return {"tops"};
  for (const char* same : {"musa", "supa", "maca", "tang"}) {
    if (type == same) return {same};
  }
  return {};
}

// The native handle of a stream, or nothing where torch's guard of this type gives none.
static std::optional<void*> handle_of(const c10::Stream& stream) {
  try {
    return c10::impl::VirtualGuardImpl(stream.device_type()).getStreamNativeHandle(stream);
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

// An adapter of the core that works here, or why there is none.
static Route native_route(c10::DeviceType type, const std::string& name) {
  Route route;
  const auto candidates = natives(name);
  if (candidates.empty()) {
    route.why = "hccomm has no adapter of its own for torch's \"" + name + "\"";
    return route;
  }
  const c10::impl::VirtualGuardImpl guard(type);
  if (!handle_of(guard.getStream(guard.getDevice()))) {
    route.why = "torch's \"" + name + "\" does not give out its streams' native handles";
    return route;
  }
  for (const char* const adapter : candidates) {
    char said[512] = "hccomm has no adapter of that name";
    const int32_t kind = hccomm_device_kind(adapter);
    if (kind >= 0 && hccomm_device_probe(kind, said, sizeof said) == HCCOMM_OK) {
      return {kind, true, adapter, std::string("the vendor's own runtime works here: ") + said};
    }
    route.why += (route.why.empty() ? "" : "; ") + std::string(adapter) + ": " + said;
  }
  return route;
}

static Route find_route(c10::DeviceType type) {
  const std::string name = c10::DeviceTypeName(type, /*lower_case=*/true);
  const char* const set = std::getenv("HCCOMM_PY_TORCH_DEVICES");
  const std::string wish = set ? set : "";
  if (!wish.empty() && wish != "native" && wish != "generic") {
    invalid("HCCOMM_PY_TORCH_DEVICES", "must be native or generic, not " + wish);
  }
  Route route;
  if (wish == "generic") {
    route.why = "HCCOMM_PY_TORCH_DEVICES=generic";
  } else {
    route = native_route(type, name);
    if (route.native) return route;
    if (wish == "native") {
      invalid("device", "HCCOMM_PY_TORCH_DEVICES=native, but " + route.why);
    }
  }
  // A name that the core has an adapter for stays the adapter's.
  route.adapter = hccomm_device_kind(name.c_str()) < 0 ? name : "torch-" + name;
  hccomm_error error{};
  const auto* const table = generic_device(type, route.adapter);
  if (hccomm_device_register(table, &route.kind, &error) != HCCOMM_OK) raise(error, 0);
  return route;
}

const Route& route_of(c10::DeviceType type) {
  static std::mutex mutex;
  static auto* const routes = new std::map<c10::DeviceType, Route>;
  const std::lock_guard lock(mutex);
  auto found = routes->find(type);
  if (found == routes->end()) found = routes->emplace(type, find_route(type)).first;
  return found->second;
}

void place(hccomm_buffer& buffer, const at::Tensor& tensor) {
  const Route& route = route_of(tensor.device().type());
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  const c10::Stream stream = guard.getStream(tensor.device());
  buffer.device_kind = route.kind;
  buffer.device_index = tensor.device().index();
  // The generic adapter knows streams by torch's number, which is 0 for the default one.
  buffer.stream = route.native ? handle_of(stream).value()
                               : reinterpret_cast<void*>(static_cast<intptr_t>(stream.id()));
}

std::string describe_devices() {
  const auto quoted = [](const std::string& words) {
    std::string out = "\"";
    for (const char c : words) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return out + '"';
  };
  std::string all;
  for (const auto type : {c10::kCUDA, c10::kXPU, c10::kHPU, c10::kMTIA, c10::kPrivateUse1}) {
    if (!c10::impl::hasDeviceGuardImpl(type)) continue;
    const int devices = c10::impl::VirtualGuardImpl(type).deviceCount();
    if (devices < 1) continue;
    const Route& route = route_of(type);
    all += (all.empty() ? "" : ", ") + std::string("{\"type\": ") +
           quoted(c10::DeviceTypeName(type, true)) + ", \"devices\": " + std::to_string(devices) +
           ", \"adapter\": " + quoted(route.adapter) +
           ", \"native\": " + (route.native ? "true" : "false") +
           ", \"why\": " + quoted(route.why) + "}";
  }
  return "[" + all + "]";
}

}  // namespace hccomm::glue
