// SPDX-License-Identifier: Apache-2.0
//
// The seam to vendors' own collective libraries (NCCL, RCCL, HCCL, ...): inside an island of one
// vendor they do the work. A Library is found at run time, as device runtimes are; a Group is some
// ranks of one island on it. comm/archipelago.hpp puts islands together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/text.hpp"
#include "device/device.hpp"
#include "dtype/dtype.hpp"

namespace hccomm::native {

using dtype::DType;
using dtype::RedOp;

struct Reduction {
  DType type = DType::F32;
  RedOp op = RedOp::Sum;
  double factor = 1.0;  // PREMUL_SUM: this rank's
};

// Ranks of one island, joined. Buffers are device memory of this rank's device; calls enqueue on
// the stream and return. All ranks call alike, in the same order.
//
// Owns:   the vendor's communicator.
// Thread: one at a time, but abort() from any.
// Fails:  Code::System naming library, call and the vendor's code; Code::Aborted where it may only
//         echo what went wrong on another rank (health() always). After a failure only health(),
//         abort() and destruction are of use.
class Group {
 public:
  virtual ~Group() = default;  // Requires: its work is complete, or abort().
  // in may be out. AVG is over this group.
  virtual Status all_reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                            void* stream) = 0;
  // in holds `count` elements per rank, out `count`; out may be this rank's part of in.
  virtual Status reduce_scatter(const void* in, void* out, std::uint64_t count,
                                const Reduction& how, void* stream) = 0;
  // out is used on the root only; in may be out.
  virtual Status reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                        int root, void* stream) = 0;
  // in holds `bytes`, out as many per rank; in may be this rank's part of out.
  virtual Status all_gather(const void* in, void* out, std::uint64_t bytes, void* stream) = 0;
  // in is used on the root only; in may be out.
  virtual Status broadcast(const void* in, void* out, std::uint64_t bytes, int root,
                           void* stream) = 0;
  // Messages, between begin() and end(): the library matches them by the order per pair. Only
  // where Library::lacks_messages() is "".
  virtual Status send(const void* in, std::uint64_t bytes, int peer, void* stream);
  virtual Status recv(void* out, std::uint64_t bytes, int peer, void* stream);
  // Calls between them start together, where the library can. Requires: end() after each begin()
  // that was Ok, and after no other, by the same thread.
  virtual Status begin() { return {}; }
  virtual Status end() { return {}; }
  virtual Status health() = 0;  // an error that came behind the caller's back
  virtual void abort() = 0;     // ends calls that wait for a rank that is gone
};

// Enqueues calls that the library starts together; of the failures the first.
template <typename Calls>
Status together(Group& group, Calls&& calls) {
  Status status = group.begin();
  if (!status.ok()) return status;
  status = calls();
  const Status ended = group.end();
  return status.ok() ? ended : status;
}

// Owns:   nothing but the library, which stays loaded.
// Thread: any.
// Fails:  as Group.
class Library {
 public:
  virtual ~Library() = default;
  virtual std::string name() const = 0;     // "nccl"
  virtual std::string path() const = 0;     // of what is loaded
  virtual std::string version() const = 0;  // "2.21.5"
  // Versions whose ranks can be in one island: equal strings.
  virtual std::string compatible() const = 0;
  // Why it does not do this reduction, or "": then hccomm's own path does.
  virtual std::string refuses(DType type, RedOp op) const = 0;
  // Why Group::send() and recv() are of no use, or "".
  virtual std::string lacks_messages() const { return text(name(), " has no messages"); }
  // What all ranks of a group need to meet: made by one, carried to the others by us; any length.
  virtual Result<std::string> make_id() = 0;
  // Collective among the ranks with that id. May block until all have come.
  virtual Result<std::unique_ptr<Group>> join(const std::string& id, int rank, int size,
                                              device::Runtime& runtime, int device) = 0;
};

// A built-in: one line in builtins.inc.
struct Builtin {
  device::Kind kind;    // whose devices it serves
  const char* name;     // of the library; HCCOMM_CCL_<KIND>_LIB names it elsewhere
  const char* summary;  // "NVIDIA NCCL"
  Result<std::unique_ptr<Library>> (*probe)();
  std::vector<std::string> files;  // of the library, by name
  const char* node;                // of the vendor's driver, "/dev/..."; "": none that is known
};
std::span<const Builtin> builtins();

// The CCL of that kind of device, looked for at the first call; lives as long as the process.
// Unavailable with the reason where there is none.
Result<Library*> library(device::Kind kind);

// Kinds whose library may be here, told without loading anything: one is set, loaded already, or
// the vendor's driver is.
std::vector<device::Kind> likely_kinds();

#define HCCOMM_CCL(name) Builtin name##_ccl();
#include "native/builtins.inc"
#undef HCCOMM_CCL

}  // namespace hccomm::native
