// SPDX-License-Identifier: Apache-2.0
//
// NCCL and the libraries with its functions under the same or another prefix. Functions and numbers
// are declared by us; an id is a struct of 128 bytes that is passed by value.
#include <vector>

#include "device/cuda_shaped.hpp"
#include "device/library.hpp"
#include "native/ccl.hpp"
#include "native/handle.hpp"

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
  int (*reduce)(const void*, void*, std::size_t, int type, int op, int root, void* comm,
                void* stream);
  int (*broadcast)(const void*, void*, std::size_t, int type, int root, void* comm, void* stream);
  int (*send)(const void*, std::size_t, int type, int peer, void* comm, void* stream);
  int (*recv)(void*, std::size_t, int type, int peer, void* comm, void* stream);
  int (*begin)();
  int (*end)();
  // A factor in host memory, of the type; 1: it is read at once.
  int (*make_premul)(int* op, void* factor, int type, int residence, void* comm);
  int (*drop_op)(int op, void* comm);
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

constexpr int kBytes = 1;       // U8: what moves is not looked at
constexpr int kRemote = 6;      // it failed on another rank
constexpr int kInProgress = 7;  // no error

// NCCL's number of an operation, or -1.
int number(RedOp op) {
  switch (op) {
    case RedOp::Sum: return 0;
    case RedOp::Prod: return 1;
    case RedOp::Max: return 2;
    case RedOp::Min: return 3;
    case RedOp::Avg: return 4;
    default: return -1;  // PREMUL_SUM is made when it is called; bitwise: none
  }
}

class NcclShaped;

class NcclGroup final : public Group {
 public:
  NcclGroup(const NcclShaped& library, void* comm, device::Runtime& runtime, int device)
      : library_(library), comm_(comm), runtime_(runtime), device_(device) {}
  ~NcclGroup() override;

  Status all_reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                    void* stream) override;
  Status reduce_scatter(const void* in, void* out, std::uint64_t count, const Reduction& how,
                        void* stream) override;
  Status reduce(const void* in, void* out, std::uint64_t count, const Reduction& how, int root,
                void* stream) override;
  Status all_gather(const void* in, void* out, std::uint64_t bytes, void* stream) override;
  Status broadcast(const void* in, void* out, std::uint64_t bytes, int root, void* stream) override;
  Status send(const void* in, std::uint64_t bytes, int peer, void* stream) override;
  Status recv(void* out, std::uint64_t bytes, int peer, void* stream) override;
  Status begin() override;
  Status end() override;
  Status health() override;
  void abort() override;

 private:
  template <typename Call>
  Status call(const char* what, Call&& body);
  template <typename Call>
  Status reduction(const char* what, const Reduction& how, Call&& body);
  Status enclose(const char* what, int (*function)());

  const NcclShaped& library_;
  Handle comm_;
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
    const bool made = op == RedOp::PremulSum && calls.make_premul != nullptr &&
                      (type == DType::F32 || type == DType::F64);
    const bool young = op == RedOp::Avg && number_ < 21000;
    if ((native::number(op) < 0 && !made) || young) {
      return text(shape_.name, " has no operation ", dtype::name(op), " for ", dtype::name(type));
    }
    return "";
  }
  std::string lacks_messages() const override {
    const bool all = calls.send != nullptr && calls.recv != nullptr && calls.begin != nullptr &&
                     calls.end != nullptr;
    return all ? std::string() : text(shape_.name, " ", version(), " has no messages");
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
    return {code == kRemote ? Code::Aborted : Code::System,
            text(shape_.name, ": ", shape_.prefix, what,
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
  find(calls.reduce, "Reduce");
  find(calls.broadcast, "Broadcast");
  find(calls.send, "Send");
  find(calls.recv, "Recv");
  find(calls.begin, "GroupStart");
  find(calls.end, "GroupEnd");
  find(calls.make_premul, "RedOpCreatePreMulSum");
  find(calls.drop_op, "RedOpDestroy");
  find(calls.error_text, "GetErrorString");
  if (calls.version == nullptr || calls.make_id == nullptr || calls.join == nullptr ||
      calls.destroy == nullptr || calls.all_reduce == nullptr || calls.reduce_scatter == nullptr ||
      calls.all_gather == nullptr || calls.broadcast == nullptr || calls.reduce == nullptr) {
    return {Code::Unavailable, text(shape_.name, ": ", library_.path(), " lacks functions under ",
                                    shape_.prefix, "; it is too old, or another library")};
  }
  if (const int code = calls.version(&number_); code != 0) return failed(code, "GetVersion");
  return {};
}

NcclGroup::~NcclGroup() {
  void* const own = comm_.take();
  if (own == nullptr) return;
  (void)runtime_.on_device(device_, [&] {
    library_.calls.destroy(own);
    return Status();
  });
}

// Calls `body` with the communicator, its device being current.
template <typename Call>
Status NcclGroup::call(const char* what, Call&& body) {
  return comm_.use(library_.name(), [&](void* own) {
    return runtime_.on_device(device_, [&] {
      const int code = body(own);
      return code == 0 ? Status() : library_.failed(code, what);
    });
  });
}

// Calls `body` with the communicator and the number of the operation, made for the call where it
// has a factor.
template <typename Call>
Status NcclGroup::reduction(const char* what, const Reduction& how, Call&& body) {
  if (how.op != RedOp::PremulSum) {
    return call(what, [&](void* own) { return body(own, number(how.op)); });
  }
  float single = static_cast<float>(how.factor);
  double full = how.factor;
  void* const factor = how.type == DType::F32 ? static_cast<void*>(&single) : &full;
  return call(what, [&](void* own) {
    int made = 0;
    int code = library_.calls.make_premul(&made, factor, number(how.type), 1, own);
    if (code != 0) return code;
    code = body(own, made);
    if (library_.calls.drop_op != nullptr) library_.calls.drop_op(made, own);
    return code;
  });
}

Status NcclGroup::all_reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                             void* stream) {
  return reduction("AllReduce", how, [&](void* own, int op) {
    return library_.calls.all_reduce(in, out, count, number(how.type), op, own, stream);
  });
}
Status NcclGroup::reduce_scatter(const void* in, void* out, std::uint64_t count,
                                 const Reduction& how, void* stream) {
  return reduction("ReduceScatter", how, [&](void* own, int op) {
    return library_.calls.reduce_scatter(in, out, count, number(how.type), op, own, stream);
  });
}
Status NcclGroup::reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                         int root, void* stream) {
  return reduction("Reduce", how, [&](void* own, int op) {
    return library_.calls.reduce(in, out, count, number(how.type), op, root, own, stream);
  });
}
Status NcclGroup::all_gather(const void* in, void* out, std::uint64_t bytes, void* stream) {
  return call("AllGather", [&](void* own) {
    return library_.calls.all_gather(in, out, bytes, kBytes, own, stream);
  });
}
Status NcclGroup::broadcast(const void* in, void* out, std::uint64_t bytes, int root,
                            void* stream) {
  return call("Broadcast", [&](void* own) {
    return library_.calls.broadcast(in, out, bytes, kBytes, root, own, stream);
  });
}
Status NcclGroup::send(const void* in, std::uint64_t bytes, int peer, void* stream) {
  return call("Send",
              [&](void* own) { return library_.calls.send(in, bytes, kBytes, peer, own, stream); });
}
Status NcclGroup::recv(void* out, std::uint64_t bytes, int peer, void* stream) {
  return call("Recv", [&](void* own) {
    return library_.calls.recv(out, bytes, kBytes, peer, own, stream);
  });
}
// What is begun is the thread's, whatever communicators it calls: it has to be ended, and abort()
// waits until it is, or this thread's later calls on others would never start.
Status NcclGroup::begin() {
  if (library_.calls.begin == nullptr || library_.calls.end == nullptr) return {};
  Status status(Code::Aborted, text(library_.name(), ": the group was aborted"));
  if (comm_.enter() != nullptr) status = enclose("GroupStart", library_.calls.begin);
  if (!status.ok()) comm_.leave();
  return status;
}
Status NcclGroup::end() {
  if (library_.calls.begin == nullptr || library_.calls.end == nullptr) return {};
  const Status status = enclose("GroupEnd", library_.calls.end);
  comm_.leave();
  return status;
}
Status NcclGroup::enclose(const char* what, int (*function)()) {
  return runtime_.on_device(device_, [&] {
    const int code = function();
    return code == 0 ? Status() : library_.failed(code, what);
  });
}

Status NcclGroup::health() {
  if (library_.calls.async_error == nullptr) return {};
  const Status status = call("CommGetAsyncError", [&](void* own) {
    int behind = 0;
    const int code = library_.calls.async_error(own, &behind);
    return code != 0 ? code : behind == kInProgress ? 0 : behind;
  });
  return status.ok() ? status : Status(Code::Aborted, status.text());
}

void NcclGroup::abort() {
  if (library_.calls.abort == nullptr) return;
  void* const gone = comm_.take();
  if (gone == nullptr) return;
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

// The built-in of a shape, which is static: Builtin::probe takes no captures.
#define NCCL_SHAPED(function, kind, summary, node, ...)                             \
  Builtin function() {                                                              \
    static const NcclShape shape __VA_ARGS__;                                       \
    constexpr auto probe = [] { return open(shape); };                              \
    return {device::Kind::kind, shape.name, summary, probe, shape.libraries, node}; \
  }
NCCL_SHAPED(nccl_ccl, Cuda, "NVIDIA NCCL", "/dev/nvidiactl",
            {"cuda", "nccl", "nccl", {"libnccl.so.2", "libnccl.so"}})
NCCL_SHAPED(rccl_ccl, Hip, "AMD RCCL", "/dev/kfd",
            {"hip", "rccl", "nccl", {"librccl.so.1", "librccl.so"}})
NCCL_SHAPED(musa_mccl_ccl, Musa, "Moore Threads MCCL", "",
            {"musa", "mccl", "mccl", {"libmccl.so.2", "libmccl.so"}})
NCCL_SHAPED(maca_mccl_ccl, Maca, "MetaX MCCL", "/dev/mxcd",
            {"maca", "mccl", "mccl", {"/opt/maca/lib/libmccl.so", "libmccl.so"}})
NCCL_SHAPED(corex_nccl_ccl, Corex, "Iluvatar's NCCL", "",
            {"corex", "ixnccl", "nccl", {"/usr/local/corex/lib64/libnccl.so"}})
NCCL_SHAPED(dtk_rccl_ccl, Dtk, "Hygon's RCCL", "",
            {"dtk", "dtkrccl", "nccl", {"/opt/dtk/lib/librccl.so"}})
NCCL_SHAPED(ppu_nccl_ccl, Ppu, "T-Head's NCCL", "",
            {"ppu", "ppunccl", "nccl", {"/usr/local/PPU_SDK/lib/libnccl.so"}})
#undef NCCL_SHAPED

}  // namespace hccomm::native
