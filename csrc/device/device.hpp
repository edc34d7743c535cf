// SPDX-License-Identifier: Apache-2.0
//
// The device seam: how bytes leave and enter the memory of one vendor's chip. engine/ stages device
// buffers through it; it knows no collective. A Runtime is one vendor's library in this process;
// registry.hpp finds it, builtins.inc lists the adapters, hccomm_device.h is the same seam in C.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.hpp"

namespace hccomm::device {

// Numbers are this process's own (HCCOMM_DEVICE_* of the C ABI); between ranks only names travel.
enum class Kind : std::int32_t {
  Host = 0,
  Cuda = 1,
  Hip,
  Musa,
  Maca,
  Supa,
  Tops,
  Tang,
  Corex,
  Dtk,
  Ppu,
  Kunlun,
  Ascend,
  Cnrt,
  LevelZero,
  OpenCl,
  FirstPlugin = 64,  // this and above: plug-ins, in the order in which they came
};

// Where device memory begins. A handle need be no pointer (OpenCL's cl_mem).
struct Place {
  void* handle = nullptr;
  std::uint64_t offset = 0;  // bytes
};

// A queue of a device that works in order. `ours`: made by stream_create; else the caller's own
// (cudaStream_t, aclrtStream, cnrtQueue_t, cl_command_queue, ...; nullptr: the vendor's default).
struct Stream {
  std::int32_t index = 0;  // of the device
  std::int32_t ours = 0;
  void* native = nullptr;
};

struct Event {
  std::int32_t index = 0;
  void* native = nullptr;
};

// What a runtime may lack; lacks() says why.
enum class Feature : std::uint8_t { HostRegister, Dmabuf, Reduce, Ipc };

// How elements are reduced: numbers of the C ABI (HCCOMM_F32, HCCOMM_SUM).
struct Reduction {
  std::int32_t type = 0;
  std::int32_t op = 0;
  bool host_first = false;  // the operand from host memory is the left one
};

// An allocation as another process opens it, and where in it a place lies.
struct Export {
  std::string handle;        // the vendor's; no two allocations of a process have the same, ever
  std::uint64_t offset = 0;  // bytes
  std::uint64_t bytes = 0;   // of the allocation
};

// One vendor's runtime library. Every function may be called from any thread: it makes the device
// current itself and puts back what was current before.
//
// Owns:   nothing but the library, which stays loaded; the caller returns what it was given.
// Thread: any; calls on one Stream or Event by one thread at a time.
// Fails:  Code::System naming device, call and the vendor's code; Unavailable where the runtime
//         cannot. Never throws, never prints, never aborts. An error of a copy may surface in any
//         later call on that device.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual std::string library() const = 0;     // the path of what is loaded
  virtual Result<int> count() noexcept = 0;    // devices here
  virtual Result<int> current() noexcept = 0;  // the calling thread's device, where it has one
  // Runs `work` with the device current on this thread: for a vendor's other libraries.
  virtual Status on_device(int index, const std::function<Status()>& work);
  virtual std::string describe(int index) noexcept = 0;  // "NVIDIA H100, 0000:17:00.0"
  // Addresses on either side that are multiples of this are copied without detours.
  virtual std::size_t alignment() const noexcept { return 1; }
  virtual std::string lacks(Feature feature) const;  // why not here, or ""
  // Ok, or the error that this device will not recover from.
  virtual Status health(int index) noexcept = 0;

  // Pinned host memory that copies run from and to, aligned to 4 KiB.
  virtual Result<void*> host_allocate(int index, std::size_t bytes) noexcept = 0;
  virtual void host_free(int index, void* address) noexcept = 0;
  // Pins memory that somebody else allocated (Feature::HostRegister).
  virtual Status host_register(int index, void* address, std::size_t bytes) noexcept;
  virtual void host_unregister(int index, void* address) noexcept;
  // Device memory; for tests, benches and the trial of reduce_in, collectives never allocate any.
  virtual Result<Place> allocate(int index, std::size_t bytes) noexcept = 0;
  virtual void release(int index, Place place) noexcept = 0;

  virtual Result<Stream> stream_create(int index) noexcept = 0;
  // Requires: its work is complete. Likewise event_destroy.
  virtual void stream_destroy(Stream stream) noexcept = 0;

  // Enqueue a copy and return. Requires: `host` is pinned by the functions above and, like the
  // device memory, in use until an event recorded behind the copy has come.
  virtual Status copy_in(Stream stream, Place dst, const void* host,
                         std::size_t bytes) noexcept = 0;
  virtual Status copy_out(Stream stream, void* host, Place src, std::size_t bytes) noexcept = 0;

  virtual Result<Event> event_create(int index) noexcept = 0;
  virtual void event_destroy(Event event) noexcept = 0;
  // The event stands for all work now in the stream; recording again forgets the former.
  virtual Status event_record(Event event, Stream stream) noexcept = 0;
  // Whether that work is complete. True for an event never recorded.
  virtual Result<bool> event_query(Event event) noexcept = 0;
  // Later work of the stream starts after the event. Does not block.
  virtual Status stream_wait(Stream stream, Event event) noexcept = 0;

  // Why reduce_in cannot do this where these two lie, or "". Compiles a kernel, it may be.
  virtual std::string lacks_reduction(int index, Place dst, Place src, Reduction how) noexcept;
  // Enqueues dst = src op host, `count` elements, and returns (Feature::Reduce). The bits are those
  // of the host's kernels (dtype/reduce.hpp). dst is src or apart from it; `host` as in copy_in.
  // Requires: lacks_reduction() said "", and the stream is ours.
  virtual Status reduce_in(Stream stream, Place dst, Place src, const void* host,
                           std::uint64_t count, Reduction how) noexcept;

  // Memory between processes of this host (Feature::Ipc). Both must have the same version, "1.2",
  // and see the device that it is on, whose address on the bus tells it ("": it cannot be told).
  virtual std::string ipc_version() noexcept { return ""; }
  virtual std::string bus_address(int /*index*/) noexcept { return ""; }
  // Unavailable where this memory cannot be exported (some kinds cannot).
  virtual Result<Export> ipc_export(int index, Place place) noexcept;
  // Maps the beginning of what another process has exported. As often as opened it must be closed;
  // the exporter may have ended by then. Requires: closed after the last copy from it.
  virtual Result<Place> ipc_open(int index, const std::string& handle) noexcept;
  virtual void ipc_close(int index, Place opened) noexcept;
  // How far what was opened reaches, by the runtime and not by the peer; 0: it does not say.
  virtual std::uint64_t ipc_bytes(int /*index*/, Place /*opened*/) noexcept { return 0; }
  // Enqueues a copy from what was opened to memory of the stream's device, and returns.
  virtual Status copy_across(Stream stream, Place dst, Place opened, std::size_t bytes) noexcept;

  // What libfabric calls this memory (fi_hmem_iface), for network cards; 0: it has no name for it.
  virtual int fabric_interface() const noexcept { return 0; }
  // A dmabuf descriptor of the memory, the caller's to close (Feature::Dmabuf).
  virtual Result<int> dmabuf(int index, Place place, std::size_t bytes) noexcept;
};

// An adapter: one line in builtins.inc.
struct Builtin {
  Kind kind;
  const char* name;     // "cuda": what ranks tell each other, and HCCOMM_CUDA_LIB is made of
  const char* summary;  // "NVIDIA CUDA (libcudart)"
  // The runtime with at least one device, or Code::Unavailable and why not here.
  Result<std::unique_ptr<Runtime>> (*probe)();
};

}  // namespace hccomm::device
