// SPDX-License-Identifier: Apache-2.0
#include "device/registry.hpp"

#include <algorithm>

#include "base/config.hpp"
#include "base/log.hpp"
#include "device/plugin.hpp"

namespace hccomm::device {

// Where there is no such notion as a current device.
Status Runtime::on_device(int, const std::function<Status()>& work) { return work(); }

// What a runtime lacks by default: everything that is optional.
std::string Runtime::lacks(Feature feature) const {
  switch (feature) {
    case Feature::HostRegister: return "this adapter does not pin memory of others";
    case Feature::Dmabuf: return "this adapter exports no dmabuf";
    case Feature::Reduce: return "this adapter has no reduction";
    case Feature::Ipc: return "this adapter shares no memory between processes";
  }
  return "unknown";
}

Status Runtime::host_register(int, void*, std::size_t) noexcept {
  return {Code::Unavailable, "this adapter does not pin memory of others"};
}
void Runtime::host_unregister(int, void*) noexcept {}

std::string Runtime::lacks_reduction(int, Place, Place, Reduction) noexcept {
  return lacks(Feature::Reduce);
}
Status Runtime::reduce_in(Stream, Place, Place, const void*, std::uint64_t, Reduction) noexcept {
  return {Code::Unavailable, lacks(Feature::Reduce)};
}

Result<Export> Runtime::ipc_export(int, Place) noexcept {
  return Status(Code::Unavailable, lacks(Feature::Ipc));
}
Result<Place> Runtime::ipc_open(int, const std::string&) noexcept {
  return Status(Code::Unavailable, lacks(Feature::Ipc));
}
void Runtime::ipc_close(int, Place) noexcept {}
Status Runtime::copy_across(Stream, Place, Place, std::size_t) noexcept {
  return {Code::Unavailable, lacks(Feature::Ipc)};
}

Result<int> Runtime::dmabuf(int, Place, std::size_t) noexcept {
  return Status(Code::Unavailable, "this adapter exports no dmabuf");
}

std::span<const Builtin> builtins() {
#define HCCOMM_DEVICE(name) name##_device(),
  static const std::vector<Builtin> all = {
#include "device/builtins.inc"
  };
#undef HCCOMM_DEVICE
  return all;
}

Registry::Registry(std::span<const Builtin> builtins) {
  for (const Builtin& each : builtins) {
    entries_.push_back(std::unique_ptr<Entry>(
        new Entry{each.kind, each.name, each.summary, each.probe, nullptr, nullptr}));
  }
}

Registry& Registry::global() {
  static Registry* const registry = new Registry(builtins());
  return *registry;
}

Registry::Entry* Registry::find(Kind kind) {
  const auto at = std::ranges::find_if(entries_, [&](auto& each) { return each->kind == kind; });
  return at == entries_.end() ? nullptr : at->get();
}

Registry::Entry* Registry::find(const std::string& name) {
  const auto at = std::ranges::find_if(entries_, [&](auto& each) { return each->name == name; });
  return at == entries_.end() ? nullptr : at->get();
}

Result<Runtime*> Registry::probe(Entry& entry) {
  if (entry.runtime == nullptr) {
    auto found = entry.probe();
    if (!found.ok()) return found.status();
    entry.runtime = std::move(found).value();
    HCCOMM_LOG(Info, "device ", entry.name, ": ", entry.runtime->library());
  }
  return entry.runtime.get();
}

Result<Runtime*> Registry::runtime(Kind kind) {
  const std::lock_guard lock(mutex_);
  Entry* entry = find(kind);
  if (entry == nullptr) {
    return Status(Code::InvalidArgument, text("device kind ", static_cast<int>(kind),
                                              " is none of this process; "
                                              "hccomm_device_kind() gives the number of a name"));
  }
  return probe(*entry);
}

Result<Kind> Registry::kind(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (name == "host" || name == "cpu") return Kind::Host;
  if (find(name) == nullptr) load_plugins();
  if (const Entry* entry = find(name)) return entry->kind;
  std::string known = "host";
  for (const auto& each : entries_) known += ", " + each->name;
  return Status(Code::InvalidArgument, text("device \"", name, "\" is not one of ", known,
                                            "; HCCOMM_PLUGINS names libraries that bring others"));
}

std::string Registry::name(Kind kind) {
  const std::lock_guard lock(mutex_);
  if (kind == Kind::Host) return "host";
  const Entry* entry = find(kind);
  return entry != nullptr ? entry->name : text("device kind ", static_cast<int>(kind));
}

Result<Kind> Registry::add(std::string name, std::string summary, Probe probe, const void* origin) {
  const std::lock_guard lock(mutex_);
  const Entry* taken = find(name);
  if (taken != nullptr && origin != nullptr && taken->origin == origin) return taken->kind;
  if (name.empty() || name == "host" || name == "cpu" || taken != nullptr) {
    return Status(Code::InvalidArgument,
                  text("device \"", name, "\" cannot be added: the name is empty or taken"));
  }
  auto number = static_cast<std::int32_t>(Kind::FirstPlugin);
  while (find(static_cast<Kind>(number)) != nullptr) ++number;
  const Kind kind = static_cast<Kind>(number);
  entries_.push_back(std::unique_ptr<Entry>(
      new Entry{kind, std::move(name), std::move(summary), std::move(probe), origin, nullptr}));
  return kind;
}

std::vector<Registry::Answer> Registry::survey(std::vector<std::string>* failures) {
  const std::lock_guard lock(mutex_);
  load_plugins();
  std::vector<Answer> answers;
  for (const auto& each : entries_) {
    auto found = probe(*each);
    answers.push_back({each->kind, each->name, each->summary,
                       found.ok() ? std::string() : found.status().text(),
                       found.ok() ? found.value() : nullptr});
  }
  if (failures != nullptr) *failures = failures_;
  return answers;
}

void Registry::load_plugins() {
  if (plugins_loaded_) return;
  plugins_loaded_ = true;
  for (const std::string& path : config::list("HCCOMM_PLUGINS")) {
    auto added = load_plugin(path, *this);
    if (added.ok()) continue;
    failures_.push_back(added.status().text());
    log::write_once(log::Level::Warn, path, added.status().text());
  }
}

}  // namespace hccomm::device
