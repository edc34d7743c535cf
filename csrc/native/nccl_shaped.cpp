// SPDX-License-Identifier: Apache-2.0
//
// NCCL and the libraries with its functions under the same or another prefix. Functions and numbers
// are declared by us; an id is a struct of 128 bytes that is passed by value.
#include <array>
#include <vector>

#include "device/cuda_shaped.hpp"
#include "device/library.hpp"
#include "native/ccl.hpp"

namespace hccomm::native {

namespace {

struct Id {
  char bytes[128];
};

struct NcclFunctions {
  int (*version)(int*);
  int (*make_id)(Id*);
  int (*join)(void** comm, int size, Id id, int rank);
  int (*destroy)(void* comm);
  int (*abort)(void* comm);
  int (*async_error)(void* comm, int*);
  int (*all_reduce)(const void*, void*, std::size_t, int type, int op, void* comm, void* stream);
  int (*reduce_scatter)(const void*, void*, std::size_t, int type, int op, void* comm,
                        void* stream);
  int (*all_gather)(const void*, void*, std::size_t, int type, void* comm, void* stream);
  int (*broadcast)(const void*, void*, std::size_t, int type, int root, void* comm, void* stream);
  const char* (*error_text)(int);
};

// One library, as data.
struct NcclShape {
  const char* kind;    // of device; HCCOMM_CCL_<KIND>_LIB
  const char* name;    // "nccl"
  const char* prefix;  // of its functions
  std::vector<std::string> libraries;
};

// NCCL's number of a type, or -1.
int number(DType type) {
  switch (type) {
    case DType::I8: return 0;
    case DType::U8: return 1;
    case DType::I32: return 2;
    case DType::U32: return 3;
    case DType::I64: return 4;
    case DType::U64: return 5;
    case DType::F16: return 6;
    case DType::F32: return 7;
    case DType::F64: return 8;
    case DType::BF16: return 9;
    default: return -1;
  }
}

// NCCL's number of an operation, or -1.
int number(RedOp op) {
  switch (op) {
    case RedOp::Sum: return 0;
    case RedOp::Prod: return 1;
    case RedOp::Max: return 2;
    case RedOp::Min: return 3;
    default: return -1;  // AVG: of the island, not of the group; bitwise: none
  }
}

class NcclShaped;

class NcclGroup final : public Group {
 public:
  NcclGroup(const NcclShaped& library, void* comm, device::Runtime& runtime, int device)
      : library_(library), comm_(comm), runtime_(runtime), device_(device) {}
  ~NcclGroup() override;

  Status all_reduce(const void* in, void* out, std::uint64_t count, DType type, RedOp op,
                    void* stream) override;
  Status reduce_scatter(const void* in, void* out, std::uint64_t count, DType type, RedOp op,
                        void* stream) override;
  Status all_gather(const void* in, void* out, std::uint64_t count, DType type,
                    void* stream) override;
  Status broadcast(void* buffer, std::uint64_t count, DType type, int root, void* stream) override;
  Status health() override;
  void abort() override;

 private:
  template <typename Call>
  Status call(const char* what, Call&& body);

  const NcclShaped& library_;
  void* comm_;
  device::Runtime& runtime_;
  const int device_;
};

class NcclShaped final : public Library {
 public:
  NcclShaped(const NcclShape& shape, DynamicLibrary library)
      : shape_(shape), library_(std::move(library)) {}

  Status open();

  std::string name() const override { return shape_.name; }
  std::string path() const override { return library_.path(); }
  std::string version() const override {  // 2.9 and later: x*10000 + y*100 + z
    const int major = number_ / 10000, minor = number_ / 100 % 100;
    return number_ >= 10000 ? text(major, ".", minor, ".", number_ % 100) : text(number_);
  }
  std::string compatible() const override { return text(shape_.name, " ", version()); }
  std::string refuses(DType type, RedOp op) const override {
    if (native::number(type) < 0) return text(shape_.name, " has no type ", dtype::name(type));
    if (native::number(op) < 0) return text(shape_.name, " has no operation ", dtype::name(op));
    return "";
  }

  Result<std::string> make_id() override {
    Id id{};
    if (const int code = calls.make_id(&id); code != 0) return failed(code, "GetUniqueId");
    return std::string(id.bytes, sizeof id.bytes);
  }

  Result<std::unique_ptr<Group>> join(const std::string& id, int rank, int size,
                                      device::Runtime& runtime, int device) override {
    if (id.size() != sizeof(Id)) {
      return Status(Code::InvalidArgument, text(shape_.name, ": an id of ", id.size(),
                                                " bytes is "
                                                "none of its own, which have ",
                                                sizeof(Id)));
    }
    Id own;
    id.copy(own.bytes, sizeof own.bytes);
    void* comm = nullptr;
    const Status status = runtime.on_device(device, [&] {
      const int code = calls.join(&comm, size, own, rank);
      return code == 0 ? Status() : failed(code, "CommInitRank");
    });
    if (!status.ok()) return status;
    return std::unique_ptr<Group>(std::make_unique<NcclGroup>(*this, comm, runtime, device));
  }

  Status failed(int code, const char* what) const {
    const char* words = calls.error_text != nullptr ? calls.error_text(code) : nullptr;
    return {Code::System, text(shape_.name, ": ", shape_.prefix, what,
                               " failed: ", words != nullptr ? words : "unknown error", " (", code,
                               "); its own log (for NCCL NCCL_DEBUG=WARN) says more")};
  }

  NcclFunctions calls{};  // constant after open()

 private:
  template <typename Function>
  void find(Function*& function, const char* name) const {
    function = library_.find_as<Function>(text(shape_.prefix, name).c_str());
  }

  const NcclShape shape_;
  const DynamicLibrary library_;
  int number_ = 0;  // its version
};

Status NcclShaped::open() {
  find(calls.version, "GetVersion");
  find(calls.make_id, "GetUniqueId");
  find(calls.join, "CommInitRank");
  find(calls.destroy, "CommDestroy");
  find(calls.abort, "CommAbort");
  find(calls.async_error, "CommGetAsyncError");
  find(calls.all_reduce, "AllReduce");
  find(calls.reduce_scatter, "ReduceScatter");
  find(calls.all_gather, "AllGather");
  find(calls.broadcast, "Broadcast");
  find(calls.error_text, "GetErrorString");
  if (calls.version == nullptr || calls.make_id == nullptr || calls.join == nullptr ||
      calls.destroy == nullptr || calls.all_reduce == nullptr || calls.reduce_scatter == nullptr ||
      calls.all_gather == nullptr || calls.broadcast == nullptr) {
    return {Code::Unavailable, text(shape_.name, ": ", library_.path(), " lacks functions under ",
                                    shape_.prefix, "; it is too old, or another library")};
  }
  if (const int code = calls.version(&number_); code != 0) return failed(code, "GetVersion");
  return {};
}

NcclGroup::~NcclGroup() {
  if (comm_ == nullptr) return;
  (void)runtime_.on_device(device_, [&] {
    library_.calls.destroy(comm_);
    return Status();
  });
}

template <typename Call>
Status NcclGroup::call(const char* what, Call&& body) {
  if (comm_ == nullptr) return {Code::Aborted, text(library_.name(), ": the group was aborted")};
  return runtime_.on_device(device_, [&] {
    const int code = body();
    return code == 0 ? Status() : library_.failed(code, what);
  });
}

Status NcclGroup::all_reduce(const void* in, void* out, std::uint64_t count, DType type, RedOp op,
                             void* stream) {
  return call("AllReduce", [&] {
    return library_.calls.all_reduce(in, out, count, number(type), number(op), comm_, stream);
  });
}
Status NcclGroup::reduce_scatter(const void* in, void* out, std::uint64_t count, DType type,
                                 RedOp op, void* stream) {
  return call("ReduceScatter", [&] {
    return library_.calls.reduce_scatter(in, out, count, number(type), number(op), comm_, stream);
  });
}
Status NcclGroup::all_gather(const void* in, void* out, std::uint64_t count, DType type,
                             void* stream) {
  return call("AllGather", [&] {
    return library_.calls.all_gather(in, out, count, number(type), comm_, stream);
  });
}
Status NcclGroup::broadcast(void* buffer, std::uint64_t count, DType type, int root, void* stream) {
  return call("Broadcast", [&] {
    return library_.calls.broadcast(buffer, buffer, count, number(type), root, comm_, stream);
  });
}

Status NcclGroup::health() {
  if (library_.calls.async_error == nullptr) return {};
  return call("CommGetAsyncError", [&] {
    int behind = 0;
    const int code = library_.calls.async_error(comm_, &behind);
    return code != 0 ? code : behind;
  });
}

void NcclGroup::abort() {
  if (comm_ == nullptr || library_.calls.abort == nullptr) return;
  void* gone = std::exchange(comm_, nullptr);
  (void)runtime_.on_device(device_, [&] {
    library_.calls.abort(gone);
    return Status();
  });
}

Result<std::unique_ptr<Library>> open(const NcclShape& shape) {
  const std::string kind = shape.kind;
  auto found =
      device::find_library("ccl_" + kind, shape.libraries, [&kind](const std::string& path) {
        const bool borrowed = kind == "corex" || kind == "dtk" || kind == "ppu";
        const bool metax = path.find("maca") != std::string::npos;
        const bool own = device::owner_of(path) == (borrowed ? kind : std::string()) &&
                         (kind == "maca" ? metax : kind != "musa" || !metax);
        return own ? std::string() : text(path, " is not of ", kind, " by its path");
      });
  if (!found.ok()) return found.status();
  auto library = std::make_unique<NcclShaped>(shape, std::move(found).value());
  if (Status status = library->open(); !status.ok()) return status;
  return std::unique_ptr<Library>(std::move(library));
}

}  // namespace

Builtin nccl_ccl() {
  return {device::Kind::Cuda, "nccl", "NVIDIA NCCL",
          [] { return open({"cuda", "nccl", "nccl", {"libnccl.so.2", "libnccl.so"}}); }};
}
Builtin rccl_ccl() {
  return {device::Kind::Hip, "rccl", "AMD RCCL",
          [] { return open({"hip", "rccl", "nccl", {"librccl.so.1", "librccl.so"}}); }};
}
Builtin musa_mccl_ccl() {
  return {device::Kind::Musa, "mccl", "Moore Threads MCCL",
          [] { return open({"musa", "mccl", "mccl", {"libmccl.so.2", "libmccl.so"}}); }};
}
Builtin maca_mccl_ccl() {
  return {device::Kind::Maca, "mccl", "MetaX MCCL", [] {
            return open({"maca", "mccl", "mccl", {"/opt/maca/lib/libmccl.so", "libmccl.so"}});
          }};
}
Builtin corex_nccl_ccl() {
  return {device::Kind::Corex, "nccl", "Iluvatar's NCCL",
          [] { return open({"corex", "ixnccl", "nccl", {"/usr/local/corex/lib64/libnccl.so"}}); }};
}
Builtin dtk_rccl_ccl() {
  return {device::Kind::Dtk, "rccl", "Hygon's RCCL",
          [] { return open({"dtk", "dtkrccl", "nccl", {"/opt/dtk/lib/librccl.so"}}); }};
}
Builtin ppu_nccl_ccl() {
  return {device::Kind::Ppu, "nccl", "T-Head's NCCL",
          [] { return open({"ppu", "ppunccl", "nccl", {"/usr/local/PPU_SDK/lib/libnccl.so"}}); }};
}

}  // namespace hccomm::native
