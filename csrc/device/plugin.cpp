// SPDX-License-Identifier: Apache-2.0
#include "device/plugin.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/dynlib.hpp"

namespace hccomm::device {

using Table = hccomm_device_plugin_v1;

// What every table has; what came later is absent from a shorter one.
static constexpr std::size_t kFirstTable = offsetof(Table, reduce_in);

static Table whole(const Table& given) {
  Table table{};
  std::memcpy(static_cast<void*>(&table), &given,
              std::min<std::size_t>(given.struct_size, sizeof table));
  return table;
}

namespace {

// A runtime behind a C table. The table's functions keep the rules of hccomm_device.h.
class PluginRuntime final : public Runtime {
 public:
  PluginRuntime(const Table* table, std::string origin)
      : table_(whole(*table)), origin_(std::move(origin)) {}

  std::string library() const override { return origin_; }

  Result<int> count() noexcept override {
    std::int32_t found = 0;
    const Status status = told(table_.count(table_.context, &found), "count", 0);
    if (!status.ok()) return status;
    return static_cast<int>(found);
  }

  Result<int> current() noexcept override {
    std::int32_t index = 0;
    if (table_.current == nullptr) return 0;
    const Status status = told(table_.current(table_.context, &index), "current", 0);
    if (!status.ok()) return status;
    return static_cast<int>(index);
  }

  std::string describe(int index) noexcept override {
    char out[256] = "";
    if (table_.describe == nullptr ||
        table_.describe(table_.context, index, out, sizeof out) != 0) {
      return text(table_.name, ":", index);
    }
    out[sizeof out - 1] = '\0';
    return out;
  }

  std::size_t alignment() const noexcept override {
    return table_.alignment != 0 ? table_.alignment : 1;
  }

  std::string lacks(Feature feature) const override {
    bool has = false;
    switch (feature) {
      case Feature::HostRegister: has = table_.host_register != nullptr; break;
      case Feature::Dmabuf: has = table_.dmabuf != nullptr; break;
      case Feature::Reduce: has = table_.reduce_in != nullptr; break;
      case Feature::Ipc: break;
    }
    return has ? std::string() : Runtime::lacks(feature);
  }

  Status health(int index) noexcept override {
    if (table_.health == nullptr) return {};
    return told(table_.health(table_.context, index), "health", index);
  }

  Result<void*> host_allocate(int index, std::size_t bytes) noexcept override {
    void* address = nullptr;
    const int code = table_.host_allocate(table_.context, index, bytes, &address);
    const Status status = told(code, "host_allocate", index);
    if (!status.ok()) return status;
    return address;
  }
  void host_free(int index, void* address) noexcept override {
    table_.host_free(table_.context, index, address);
  }

  Status host_register(int index, void* address, std::size_t bytes) noexcept override {
    if (table_.host_register == nullptr) return Runtime::host_register(index, address, bytes);
    return told(table_.host_register(table_.context, index, address, bytes), "host_register",
                index);
  }
  void host_unregister(int index, void* address) noexcept override {
    if (table_.host_unregister != nullptr) {
      table_.host_unregister(table_.context, index, address);
    }
  }

  Result<Place> allocate(int index, std::size_t bytes) noexcept override {
    hccomm_device_place place{};
    const int code = table_.allocate(table_.context, index, bytes, &place);
    const Status status = told(code, "allocate", index);
    if (!status.ok()) return status;
    return Place{place.handle, place.offset};
  }
  void release(int index, Place place) noexcept override {
    table_.release(table_.context, index, {place.handle, place.offset});
  }

  Result<Stream> stream_create(int index) noexcept override {
    void* native = nullptr;
    const int code = table_.stream_create(table_.context, index, &native);
    const Status status = told(code, "stream_create", index);
    if (!status.ok()) return status;
    return Stream{index, 1, native};
  }
  void stream_destroy(Stream stream) noexcept override {
    table_.stream_destroy(table_.context, stream.index, stream.native);
  }

  Status copy_in(Stream stream, Place dst, const void* host, std::size_t bytes) noexcept override {
    return told(table_.copy_in(table_.context, in_c(stream), in_c(dst), host, bytes), "copy_in",
                stream.index);
  }
  Status copy_out(Stream stream, void* host, Place src, std::size_t bytes) noexcept override {
    return told(table_.copy_out(table_.context, in_c(stream), host, in_c(src), bytes), "copy_out",
                stream.index);
  }

  Result<Event> event_create(int index) noexcept override {
    void* native = nullptr;
    const int code = table_.event_create(table_.context, index, &native);
    const Status status = told(code, "event_create", index);
    if (!status.ok()) return status;
    return Event{index, native};
  }
  void event_destroy(Event event) noexcept override {
    table_.event_destroy(table_.context, event.index, event.native);
  }
  Status event_record(Event event, Stream stream) noexcept override {
    return told(table_.event_record(table_.context, event.native, in_c(stream)), "event_record",
                stream.index);
  }
  Result<bool> event_query(Event event) noexcept override {
    std::int32_t done = 0;
    const int code = table_.event_query(table_.context, event.index, event.native, &done);
    const Status status = told(code, "event_query", event.index);
    if (!status.ok()) return status;
    return done != 0;
  }
  Status stream_wait(Stream stream, Event event) noexcept override {
    return told(table_.stream_wait(table_.context, in_c(stream), event.native), "stream_wait",
                stream.index);
  }

  std::string lacks_reduction(int index, Place dst, Place src, Reduction how) noexcept override {
    return reduce_in({index, 1, nullptr}, dst, src, nullptr, 0, how).text();
  }
  Status reduce_in(Stream stream, Place dst, Place src, const void* host, std::uint64_t count,
                   Reduction how) noexcept override {
    if (table_.reduce_in == nullptr) {
      return Runtime::reduce_in(stream, dst, src, host, count, how);
    }
    return told(table_.reduce_in(table_.context, in_c(stream), in_c(dst), in_c(src), host, count,
                                 how.type, how.op, how.host_first ? 1 : 0),
                "reduce_in", stream.index);
  }

  Result<int> dmabuf(int index, Place place, std::size_t bytes) noexcept override {
    if (table_.dmabuf == nullptr) return Runtime::dmabuf(index, place, bytes);
    int fd = -1;
    const Status status =
        told(table_.dmabuf(table_.context, index, in_c(place), bytes, &fd), "dmabuf", index);
    if (!status.ok()) return status;
    return fd;
  }

 private:
  static hccomm_device_place in_c(Place place) { return {place.handle, place.offset}; }
  static hccomm_device_stream in_c(Stream stream) {
    return {stream.index, stream.ours, stream.native};
  }

  // Ok for 0; else what the plug-in says of its code.
  Status told(int code, const char* call, int index) noexcept {
    if (code == 0) return {};
    char words[256] = "";
    table_.error_text(table_.context, code, words, sizeof words);
    words[sizeof words - 1] = '\0';
    return {Code::System, text(table_.name, ":", index, ": ", call, " failed: ", words, " (", code,
                               "); see the messages of its runtime")};
  }

  const Table table_;
  const std::string origin_;
};

}  // namespace

static Result<std::unique_ptr<Runtime>> probe(const Table* table, const std::string& origin) {
  char reason[256] = "its probe gave no reason";
  if (table->probe(table->context, reason, sizeof reason) != 0) {
    reason[sizeof reason - 1] = '\0';
    return Status(Code::Unavailable, text(table->name, " (", origin, "): ", reason));
  }
  std::unique_ptr<Runtime> runtime = std::make_unique<PluginRuntime>(table, origin);
  auto devices = runtime->count();
  if (!devices.ok()) return Status(Code::Unavailable, devices.status().text());
  if (devices.value() < 1) {
    return Status(Code::Unavailable, text(table->name, " (", origin, "): no device here"));
  }
  return runtime;
}

// What the table lacks that it must have, or nullptr.
static const char* missing(const Table& table) {
  if (table.name == nullptr) return "name";
  if (table.probe == nullptr) return "probe";
  if (table.count == nullptr) return "count";
  if (table.error_text == nullptr) return "error_text";
  if (table.host_allocate == nullptr || table.host_free == nullptr) return "host_allocate/free";
  if ((table.host_register == nullptr) != (table.host_unregister == nullptr)) {
    return "host_register or host_unregister";
  }
  if (table.allocate == nullptr || table.release == nullptr) return "allocate/release";
  if (table.stream_create == nullptr || table.stream_destroy == nullptr) return "stream_create";
  if (table.copy_in == nullptr || table.copy_out == nullptr) return "copy_in/copy_out";
  if (table.event_create == nullptr || table.event_destroy == nullptr) return "event_create";
  if (table.event_record == nullptr || table.event_query == nullptr) return "event_record/query";
  if (table.stream_wait == nullptr) return "stream_wait";
  return nullptr;
}

Result<Kind> register_plugin(const Table* table, const std::string& origin, Registry& registry) {
  if (table == nullptr) {
    return Status(Code::InvalidArgument, text("device plug-in ", origin, ": it gave no table"));
  }
  if (table->abi_version != HCCOMM_DEVICE_PLUGIN_ABI || table->struct_size < kFirstTable) {
    return Status(Code::InvalidArgument,
                  text("device plug-in ", origin, ": its table is of version ", table->abi_version,
                       " and ", table->struct_size, " bytes, this hccomm takes version ",
                       HCCOMM_DEVICE_PLUGIN_ABI, " of at least ", kFirstTable,
                       " bytes; build it against this hccomm's hccomm_device.h"));
  }
  if (const char* what = missing(*table)) {
    return Status(Code::InvalidArgument,
                  text("device plug-in ", origin, ": the table has no ", what, "; fill it in"));
  }
  return registry.add(
      table->name, table->summary != nullptr ? table->summary : "",
      [table, origin] { return probe(table, origin); }, table);
}

Result<Kind> load_plugin(const std::string& path, Registry& registry) {
  auto library = DynamicLibrary::open({path});
  if (!library.ok()) {
    return Status(Code::Unavailable,
                  text("HCCOMM_PLUGINS: ", path, " cannot be loaded: ", library.status().text()));
  }
  auto* entry = library.value().find_as<const Table*()>("hccomm_device_plugin");
  if (entry == nullptr) {
    return Status(Code::InvalidArgument, text("HCCOMM_PLUGINS: ", path,
                                              " exports no hccomm_device_plugin; it is no "
                                              "device plug-in, or hides its symbols"));
  }
  return register_plugin(entry(), library.value().path(), registry);
}

}  // namespace hccomm::device
