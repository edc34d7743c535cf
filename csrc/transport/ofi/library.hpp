// SPDX-License-Identifier: Apache-2.0
//
// libfabric, found at run time: one that the process has loaded already (an MPI may bring its own),
// else HCCOMM_OFI_LIB, else the system's. Nothing of it is needed to build hccomm.
//
// Its functions carry versions, and another version means another layout of the structures: what we
// declare (third_party/libfabric) is FABRIC_1.3, which 1.17 and every later library offers.
#pragma once

#include <signal.h>

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.hpp"

struct fi_info;
struct fi_fabric_attr;
struct fid_fabric;

namespace hccomm::transport::ofi {

// Value type; the library is never closed.
struct Library {
  std::string path;
  std::uint32_t version = 0;  // FI_VERSION of the library

  int (*getinfo)(std::uint32_t version, const char* node, const char* service, std::uint64_t flags,
                 const fi_info* hints, fi_info** found) = nullptr;
  void (*freeinfo)(fi_info*) = nullptr;
  fi_info* (*dupinfo)(const fi_info*) = nullptr;
  int (*fabric)(fi_fabric_attr*, fid_fabric**, void* context) = nullptr;
  const char* (*strerror)(int) = nullptr;

  std::string readable() const;  // "libfabric 1.17 (/usr/lib/...)"
  // "what: the library's text (number)"; err is positive.
  Status failure(Code code, const std::string& what, int err) const;
};

// What libfabric calls an info: one way to use one network card.
struct FreeInfo {
  const Library* library = nullptr;
  void operator()(fi_info* info) const noexcept { library->freeinfo(info); }
};
using Info = std::unique_ptr<fi_info, FreeInfo>;

// Providers install signal handlers (psm2's ends the process at a Ctrl-C that Python would have
// handled). While one of these lives they may; then the program's own are back.
//
// Owns:   the handlers as they were.
// Thread: one at a time in a process, or one could take the other's for the program's.
// Fails:  never.
class KeptSignals {
 public:
  KeptSignals();
  KeptSignals(const KeptSignals&) = delete;
  ~KeptSignals();

 private:
  static constexpr int kSignals = 32;
  struct sigaction before_[kSignals];
};

// Loads it at the first call. Thread: any. Fails: Unavailable, with why.
Result<const Library*> library();

// Why it shall not even be loaded here, or "": to load a libfabric that nobody uses would bind an
// MPI that is imported later to this one in place of its own.
std::string no_reason_to_load();

}  // namespace hccomm::transport::ofi
