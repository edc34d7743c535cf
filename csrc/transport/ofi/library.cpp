// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/library.hpp"

#include <dirent.h>
#include <dlfcn.h>
#include <rdma/fabric.h>

#include <algorithm>
#include <mutex>

#include "base/config.hpp"
#include "base/dynlib.hpp"
#include "base/log.hpp"

namespace hccomm::transport::ofi {

static constexpr const char* kSoname = "libfabric.so.1";
static constexpr std::uint32_t kOldest = FI_VERSION(1, 17);

std::string Library::readable() const {
  return text("libfabric ", FI_MAJOR(version), ".", FI_MINOR(version), " (", path, ")");
}

Status Library::failure(Code code, const std::string& what, int err) const {
  return {code, text("ofi: ", what, ": ", strerror(err), " (", err, ")")};
}

static std::mutex& signals_mutex() {
  static std::mutex mutex;
  return mutex;
}

KeptSignals::KeptSignals() {
  signals_mutex().lock();
  for (int each = 1; each < kSignals; ++each) sigaction(each, nullptr, &before_[each]);
}

KeptSignals::~KeptSignals() {
  for (int each = 1; each < kSignals; ++each) {
    struct sigaction now = {};
    sigaction(each, nullptr, &now);
    if (now.sa_sigaction != before_[each].sa_sigaction) sigaction(each, &before_[each], nullptr);
  }
  signals_mutex().unlock();
}

static bool loaded() {
  void* const handle = dlopen(kSoname, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (handle != nullptr) dlclose(handle);
  return handle != nullptr;
}

static Result<const Library*> load() {
  const KeptSignals kept;
  std::vector<std::string> names;
  const std::string chosen = config::raw("HCCOMM_OFI_LIB");
  if (!chosen.empty()) names = {chosen};
  if (chosen.empty()) names = {kSoname};
  auto opened = DynamicLibrary::open(names);
  if (!opened) {
    return Status(Code::Unavailable, text("ofi: no libfabric here: ", opened.status().text(),
                                          "; install it, or set HCCOMM_OFI_LIB to its path"));
  }
  const DynamicLibrary& found = opened.value();
  auto* const library = new Library;  // never deleted: providers run until the process ends
  library->path = found.path();
  const auto version = found.find_as<std::uint32_t()>("fi_version");
  library->version = version != nullptr ? version() : 0;
  if (library->version < kOldest) {
    return Status(Code::Unavailable, text("ofi: ", library->readable(), " is older than 1.17"));
  }
  const auto find = [&found](const char* symbol, const char* layout, auto& into) {
    into = found.find_as<std::remove_pointer_t<std::remove_reference_t<decltype(into)>>>(symbol,
                                                                                         layout);
    return into != nullptr;
  };
  if (!find("fi_getinfo", "FABRIC_1.3", library->getinfo) ||
      !find("fi_freeinfo", "FABRIC_1.3", library->freeinfo) ||
      !find("fi_dupinfo", "FABRIC_1.3", library->dupinfo) ||
      !find("fi_fabric", "FABRIC_1.1", library->fabric) ||
      !find("fi_strerror", nullptr, library->strerror)) {
    return Status(Code::Unavailable,
                  text("ofi: ", library->readable(), " does not offer the interface FABRIC_1.3"));
  }
  HCCOMM_LOG(Info, "ofi: ", library->readable());
  return static_cast<const Library*>(library);
}

Result<const Library*> library() {
  static const Result<const Library*> once = load();
  return once;
}

static bool has_entries(const char* path) {
  DIR* const folder = opendir(path);
  if (folder == nullptr) return false;
  bool found = false;
  while (const dirent* entry = readdir(folder)) found = found || entry->d_name[0] != '.';
  closedir(folder);
  return found;
}

std::string no_reason_to_load() {
  const auto wanted = config::list("HCCOMM_TRANSPORTS");
  if (config::is_set("HCCOMM_OFI_PROVIDER") || config::is_set("HCCOMM_OFI_LIB") || loaded() ||
      std::ranges::find(wanted, "ofi") != wanted.end()) {
    return "";
  }
  for (const char* path :
       {"/sys/class/infiniband", "/sys/class/cxi", "/sys/class/cxi_user", "/sys/class/hfi1_user"}) {
    if (has_entries(path)) return "";
  }
  return "this machine has no RDMA device (set HCCOMM_OFI_PROVIDER to use libfabric all the same)";
}

}  // namespace hccomm::transport::ofi
