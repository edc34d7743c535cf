// SPDX-License-Identifier: Apache-2.0
//
// The asking half of the C ABI: what this build can do here, and which algorithm would serve a
// call. Convert, call, catch.
#include <algorithm>
#include <cstring>

#include "algorithm/algorithms.hpp"
#include "base/config.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "base/machine.hpp"
#include "capi/hccomm.h"
#include "collective/collective.hpp"
#include "comm/endpoint.hpp"
#include "comm/explain.hpp"
#include "device/registry.hpp"
#include "dtype/reduce.hpp"
#include "native/ccl.hpp"
#include "plan/print.hpp"
#include "select/select.hpp"
#include "transport/transports.hpp"

using hccomm::Code;
using hccomm::Error;
using hccomm::Json;
using hccomm::Status;
using hccomm::text;
using hccomm::device::Registry;
using hccomm::device::Runtime;
using hccomm::transport::Transport;

static int64_t answer_with(const std::string& answer, char* out, size_t capacity) {
  if (out != nullptr && capacity > 0) {
    const std::size_t length = std::min(answer.size(), capacity - 1);
    std::memcpy(out, answer.data(), length);
    out[length] = '\0';
  }
  return static_cast<int64_t>(answer.size());
}

// The body's JSON, or {"error": ...} with minus the code.
template <typename Body>
static int64_t answered(char* out, size_t capacity, Body&& body) noexcept {
  try {
    return answer_with(body(), out, capacity);
  } catch (const Error& failure) {
    answer_with(failure.what(), out, capacity);
    return -static_cast<int64_t>(failure.status().code());
  } catch (const std::exception& failure) {
    answer_with(failure.what(), out, capacity);
    return -static_cast<int64_t>(Code::Internal);
  }
}

int64_t hccomm_settings(char* out, size_t capacity) {
  return answered(out, capacity, [] {
    Json all = Json::array();
    for (const auto& each : hccomm::config::settings()) {
      const bool secret = std::strcmp(each.name, "HCCOMM_KEY") == 0;
      all.push(Json::object()
                   .add("name", each.name)
                   .add("kind", each.kind)
                   .add("default", each.fallback)
                   .add("meaning", each.meaning)
                   .add("value", secret ? std::string() : hccomm::config::raw(each.name))
                   .add("set", hccomm::config::is_set(each.name)));
    }
    return all.str();
  });
}

// Opens nothing for good: a transport says whether it can be had here and is closed again.
class Nobody final : public hccomm::transport::Acceptor {
  bool reserve(const std::string&) override { return false; }
  void accepted(hccomm::transport::Accepted) override {}
  void abandoned(const std::string&) override {}
};

// Whether the cards of a transport reach a device's memory: they are told of some. Nothing is
// allocated where they look at none (0 bytes).
static Status reach(Transport& cards, Runtime& runtime, const std::string& kind, int index) {
  constexpr std::uint64_t kBytes = 1 << 16;
  hccomm::transport::DeviceMemory memory;
  memory.kind = kind;
  memory.index = index;
  memory.fabric_interface = runtime.fabric_interface();
  Status status = cards.enroll(memory);
  if (!status.ok()) return status;
  auto made = runtime.allocate(index, kBytes);
  if (!made) return made.status();
  memory.data = static_cast<std::byte*>(made.value().handle) + made.value().offset;
  memory.bytes = kBytes;
  if (runtime.lacks(hccomm::device::Feature::Dmabuf).empty()) {
    memory.dmabuf = [&](std::byte* pages, std::uint64_t length) {
      return runtime.dmabuf(index, {pages, 0}, length);
    };
  }
  status = cards.enroll(memory);
  if (status.ok()) cards.expel(memory);
  runtime.release(index, made.value());
  return status;
}

// Of each device here, direct or staged, and why.
static Json memory_of_devices(Transport& cards) {
  Json all = Json::array();
  for (const auto& each : Registry::global().survey()) {
    auto count = each.runtime != nullptr ? each.runtime->count() : hccomm::Result<int>(0);
    for (int index = 0; count.ok() && index < count.value(); ++index) {
      const Status status = reach(cards, *each.runtime, each.name, index);
      all.push(Json::object()
                   .add("device", text(each.name, ":", index))
                   .add("memory", status.ok() ? "direct" : "staged")
                   .add("reason", status.text()));
    }
  }
  return all;
}

// Where sums are made that end on the device.
static std::string sums_of(const hccomm::device::Runtime& runtime) {
  const std::string why = runtime.lacks(hccomm::device::Feature::Reduce);
  return why.empty() ? "on the device where a trial finds that quicker" : "on the host: " + why;
}

// Whether it copies from memory of another process of the same vendor.
static std::string ipc_of(const hccomm::device::Runtime& runtime) {
  const std::string why = runtime.lacks(hccomm::device::Feature::Ipc);
  return why.empty() ? "offered" : "no: " + why;
}

// What a transport that chooses among several ways has found. `cards`: it, where it could be
// opened.
static void add_ways(const hccomm::transport::Builtin& each, Transport* cards, Json& all) {
  if (each.survey == nullptr) return;
  auto found = each.survey();
  if (!found) return;  // its reason stands beside the transport
  const Json memory = cards != nullptr ? memory_of_devices(*cards) : Json::array();
  for (const hccomm::transport::Finding& one : found.value()) {
    all.push(Json::object()
                 .add("transport", each.name)
                 .add("way", one.what)
                 .add("used", one.used)
                 .add("reason", one.reason)
                 .add("capabilities", one.detail)
                 .add("devices", one.used ? memory : Json::array()));
  }
}

// What the probe of each kind of device found, or why it found nothing; each device by name.
static Json devices_here() {
  Json all = Json::array();
  std::vector<std::string> failures;
  for (const auto& each : Registry::global().survey(&failures)) {
    int count = 0;
    std::string names;
    if (each.runtime != nullptr) {
      auto counted = each.runtime->count();
      count = counted.ok() ? counted.value() : 0;
      for (int index = 0; index < count; ++index) {
        names += (index > 0 ? "; " : "") + each.runtime->describe(index);
      }
    }
    all.push(Json::object()
                 .add("name", each.name)
                 .add("summary", each.summary)
                 .add("available", each.runtime != nullptr)
                 .add("reason", each.reason)
                 .add("library", each.runtime != nullptr ? each.runtime->library() : "")
                 .add("count", count)
                 .add("devices", names)
                 .add("sums", each.runtime != nullptr ? sums_of(*each.runtime) : "")
                 .add("ipc", each.runtime != nullptr ? ipc_of(*each.runtime) : ""));
  }
  for (const std::string& failure : failures) {
    all.push(Json::object()
                 .add("name", "plug-in")
                 .add("summary", "named in HCCOMM_PLUGINS")
                 .add("available", false)
                 .add("reason", failure)
                 .add("library", "")
                 .add("count", 0)
                 .add("devices", "")
                 .add("sums", "")
                 .add("ipc", ""));
  }
  return all;
}

// Vendors' collective libraries, of the devices that are here.
static Json ccls_here() {
  Json all = Json::array();
  for (const auto& each : hccomm::native::builtins()) {
    const std::string kind = Registry::global().name(each.kind);
    auto runtime = Registry::global().runtime(each.kind);
    hccomm::native::Library* found = nullptr;
    std::string reason = text("no ", kind, " device is here");
    if (runtime.ok()) {
      auto library = hccomm::native::library(each.kind);
      if (library.ok()) found = library.value();
      reason = library.ok() ? std::string() : library.status().text();
    }
    all.push(Json::object()
                 .add("name", each.name)
                 .add("device", kind)
                 .add("summary", each.summary)
                 .add("available", found != nullptr)
                 .add("reason", reason)
                 .add("version", found != nullptr ? found->version() : "")
                 .add("library", found != nullptr ? found->path() : ""));
  }
  return all;
}

int64_t hccomm_info(char* out, size_t capacity) {
  return answered(out, capacity, [] {
    Nobody nobody;
    const hccomm::transport::Identity identity{std::string(16, '\1'), "", std::string(16, '\2')};
    Json transports = Json::array(), fabrics = Json::array();
    for (const auto& each : hccomm::transport::transports()) {
      auto opened = each.open(identity, nobody);
      transports.push(Json::object()
                          .add("name", each.name)
                          .add("summary", each.summary)
                          .add("available", opened.ok())
                          .add("reason", opened.ok() ? std::string() : opened.status().text())
                          .add("address", opened.ok() ? opened.value()->address() : ""));
      add_ways(each, opened.ok() ? opened.value().get() : nullptr, fabrics);
      if (opened.ok()) opened.value()->stop();
    }
    Json algorithms = Json::array();
    for (const auto& each : hccomm::algorithm::algorithms()) {
      algorithms.push(Json::object()
                          .add("collective", hccomm::plan::name(each.collective))
                          .add("name", each.name)
                          .add("summary", each.summary));
    }
    return Json::object()
        .add("version", hccomm_version())
        .add("abi", hccomm_abi_version())
        .add("host", hccomm::host_id())
        .add("cores", hccomm::available_cores())
        .add("simd", hccomm::dtype::simd_name())
        .add("transports", transports)
        .add("devices", devices_here())
        .add("collective_libraries", ccls_here())
        .add("fabrics", fabrics)
        .add("algorithms", algorithms)
        .str();
  });
}

static hccomm::plan::Group emulate(int size, int hosts, int rank) {
  if (size < 1 || hosts < 1 || hosts > size || rank < 0 || rank >= size) {
    throw Error(Code::InvalidArgument,
                text("explain: ", size, " ranks on ", hosts, " hosts, rank ", rank,
                     " cannot be; hosts must be 1..ranks and rank 0..ranks-1"));
  }
  hccomm::plan::Group group;
  group.size = size;
  group.hosts = hosts;
  group.rank = rank;
  for (int each = 0; each < size; ++each) {
    group.host_of.push_back(static_cast<int>(static_cast<std::int64_t>(each) * hosts / size));
  }
  return group;
}

static hccomm::plan::Call call_of(int32_t collective, int32_t dtype, int32_t op, uint64_t count) {
  if (collective < HCCOMM_ALL_REDUCE || collective > HCCOMM_BARRIER || dtype < 0 ||
      dtype >= hccomm::dtype::kDTypes || op < 0 || op >= hccomm::dtype::kRedOps) {
    throw Error(Code::InvalidArgument, "explain: no such collective, dtype or op");
  }
  hccomm::plan::Call call;
  call.collective = static_cast<hccomm::plan::Collective>(collective);
  call.type = static_cast<hccomm::dtype::DType>(dtype);
  call.op = static_cast<hccomm::dtype::RedOp>(op);
  call.count = count;
  call.in_place = call.collective == hccomm::plan::Collective::Broadcast;
  return call;
}

int64_t hccomm_explain_islands(int32_t collective, int32_t dtype, int32_t op, uint64_t count,
                               int32_t size, const char* islands, char* out, size_t capacity) {
  return answered(out, capacity, [&] {
    if (islands == nullptr) throw Error(Code::InvalidArgument, "explain islands: islands is null");
    const hccomm::plan::Call call = call_of(collective, dtype, op, count);
    hccomm::collective::check(call, emulate(size, 1, 0));
    return hccomm::comm::explain_islands(call, size, islands).str();
  });
}

int64_t hccomm_explain(int32_t collective, int32_t dtype, int32_t op, uint64_t count, int32_t size,
                       int32_t hosts, int32_t rank, int32_t plan, char* out, size_t capacity) {
  return answered(out, capacity, [&] {
    const hccomm::plan::Call call = call_of(collective, dtype, op, count);
    const hccomm::plan::Group group = emulate(size, hosts, rank);
    hccomm::collective::check(call, group);
    hccomm::select::Facts facts;
    facts.cores = hccomm::available_cores();
    const auto rules = hccomm::select::Rules::parse(hccomm::config::raw("HCCOMM_ALGO"));
    const hccomm::select::Choice choice =
        hccomm::select::choose(call, group, facts, rules, hccomm::select::table_of_environment());
    Json others = Json::array();
    for (const auto& each : hccomm::algorithm::algorithms()) {
      if (each.collective != call.collective || each.name == choice.algorithm->name) continue;
      const char* refusal = each.refuses != nullptr ? each.refuses(call, group) : nullptr;
      others.push(Json::object()
                      .add("name", each.name)
                      .add("summary", each.summary)
                      .add("why_not", refusal != nullptr ? refusal : "not the first choice"));
    }
    const auto made = choice.algorithm->make(call, group, choice.tuning);
    std::uint64_t sent = 0, messages = 0;
    for (const auto& step : made.steps) {
      if (step.kind != hccomm::plan::Kind::Send) continue;
      ++messages;
      sent += step.src.count;
    }
    Json answer = Json::object();
    answer.add("call", hccomm::collective::describe(call))
        .add("ranks", size)
        .add("hosts", hosts)
        .add("algorithm", choice.algorithm->name)
        .add("summary", choice.algorithm->summary)
        .add("why", choice.why)
        .add("segment", choice.tuning.segment)
        .add("steps", made.steps.size())
        .add("messages_sent", messages)
        .add("bytes_sent", sent * hccomm::dtype::size_of(call.type))
        .add("alternatives", others);
    if (plan != 0) answer.add("plan", hccomm::plan::print(made));
    return answer.str();
  });
}
