// SPDX-License-Identifier: Apache-2.0
//
// Which device runtimes this process has: the built-in adapters of builtins.inc, plug-ins named in
// HCCOMM_PLUGINS, and what a binding registers. A runtime is looked for at the first use of its
// kind, never before: some take hundreds of milliseconds to load.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "device/device.hpp"

namespace hccomm::device {

// Owns:   the runtimes; they live as long as the registry (the global one: as the process).
// Thread: any. A probe runs under the lock, so that a library is initialised once.
// Fails:  runtime() gives Unavailable with the reason; the next call asks again, for a library may
//         have been loaded since.
class Registry {
 public:
  using Probe = std::function<Result<std::unique_ptr<Runtime>>()>;
  // What is known of one kind.
  struct Answer {
    Kind kind;
    std::string name, summary;
    std::string reason;  // why absent, or ""
    Runtime* runtime;    // nullptr when absent
  };

  explicit Registry(std::span<const Builtin> builtins);
  // The process's own, never destroyed: vendors' libraries do not survive exit handlers.
  static Registry& global();

  // The runtime of that kind, probed at its first use; valid while the registry lives. Host has
  // none: InvalidArgument.
  Result<Runtime*> runtime(Kind kind);
  // By name, "host" included; loads the plug-ins first where no built-in has the name.
  Result<Kind> kind(const std::string& name);
  std::string name(Kind kind);  // "device kind 77" where nobody has the number

  // A further runtime: the next number from Kind::FirstPlugin. A name that is taken is
  // InvalidArgument, unless the same `origin` took it: that has its number already.
  Result<Kind> add(std::string name, std::string summary, Probe probe,
                   const void* origin = nullptr);
  // Every kind, probed; loads the plug-ins. `failures`: the plug-ins that could not be loaded.
  std::vector<Answer> survey(std::vector<std::string>* failures = nullptr);

 private:
  struct Entry {
    Kind kind;
    std::string name, summary;
    Probe probe;
    const void* origin;                // who added it
    std::unique_ptr<Runtime> runtime;  // nullptr: not found, or not looked for yet
  };

  Entry* find(Kind kind);
  Entry* find(const std::string& name);
  Result<Runtime*> probe(Entry& entry);
  void load_plugins();

  std::recursive_mutex mutex_;  // guards the rest; a plug-in may register while it is loaded
  std::vector<std::unique_ptr<Entry>> entries_;  // an Entry stays where it is
  std::vector<std::string> failures_;            // of HCCOMM_PLUGINS
  bool plugins_loaded_ = false;
};

// All built-in adapters.
std::span<const Builtin> builtins();
#define HCCOMM_DEVICE(name) Builtin name##_device();
#include "device/builtins.inc"
#undef HCCOMM_DEVICE

}  // namespace hccomm::device
