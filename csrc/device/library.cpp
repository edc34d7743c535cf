// SPDX-License-Identifier: Apache-2.0
#include "device/library.hpp"

#include <link.h>

#include <cctype>
#include <cstdlib>

#include "base/config.hpp"

namespace hccomm::device {

std::string library_setting(const std::string& kind) {
  std::string upper;
  for (const char letter : kind) upper += static_cast<char>(std::toupper(letter));
  return text("HCCOMM_", upper, "_LIB");
}

std::string real_path(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return path;
  std::string answer = resolved;
  std::free(resolved);
  return answer;
}

static std::string file_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

// The paths of all libraries that this process has loaded.
static std::vector<std::string> loaded_paths() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* list) {
        if (info->dlpi_name != nullptr && info->dlpi_name[0] == '/') {
          static_cast<std::vector<std::string>*>(list)->push_back(info->dlpi_name);
        }
        return 0;
      },
      &paths);
  return paths;
}

// Whether a loaded file is one of the wanted, in whatever version: libcudart.so.12 for
// libcudart.so.
static bool is_named(const std::string& path, const std::vector<std::string>& names) {
  const std::string file = file_name(path);
  for (const std::string& each : names) {
    const std::string wanted = file_name(each);
    const std::string stem = wanted.substr(0, wanted.find(".so") + 3);
    if (file == stem || file.starts_with(stem + ".")) return true;
  }
  return false;
}

bool is_loaded(const std::vector<std::string>& names) {
  for (const std::string& path : loaded_paths()) {
    if (is_named(path, names)) return true;
  }
  return false;
}

Result<DynamicLibrary> find_library(const std::string& kind, const std::vector<std::string>& names,
                                    const Refusal& refuses) {
  const std::string setting = library_setting(kind);
  if (const std::string path = config::raw(setting.c_str()); !path.empty()) {
    auto library = DynamicLibrary::open({path});
    if (library.ok()) return library;
    return Status(Code::Unavailable,
                  text(kind, ": ", setting, " cannot be loaded: ", library.status().text()));
  }
  std::string tried;
  std::vector<std::string> candidates;
  for (const std::string& path : loaded_paths()) {
    if (is_named(path, names)) candidates.push_back(path);
  }
  candidates.insert(candidates.end(), names.begin(), names.end());
  for (const std::string& name : candidates) {
    auto library = DynamicLibrary::open({name});
    if (!library.ok()) {
      if (tried.empty()) tried = library.status().text();
      continue;
    }
    const std::string refusal =
        refuses != nullptr ? refuses(real_path(library.value().path())) : std::string();
    if (refusal.empty()) return library;
    tried = refusal;
  }
  return Status(Code::Unavailable, text(kind, ": no runtime library here (", tried, "); ", setting,
                                        " names it where it is elsewhere"));
}

}  // namespace hccomm::device
