// SPDX-License-Identifier: Apache-2.0
//
// Huawei HCCL. Unlike NCCL: the id is a struct of 4108 bytes passed by address, broadcast has one
// buffer, types and operations are numbered otherwise.
#include <vector>

#include "device/library.hpp"
#include "native/ccl.hpp"
#include "native/handle.hpp"

namespace hccomm::native {

namespace {

constexpr std::size_t kIdBytes = 4108;
constexpr int kBytes = 0;    // I8: what moves is not looked at
constexpr int kRemote = 21;  // HCCL_E_REMOTE: it failed on another rank
const std::vector<std::string> kFiles = {"libhccl.so"};

struct HcclFunctions {
  int (*make_id)(void* id);
  int (*join)(std::uint32_t size, const void* id, std::uint32_t rank, void** comm);
  int (*destroy)(void* comm);
  int (*async_error)(void* comm, int*);
  int (*all_reduce)(void*, void*, std::uint64_t, int type, int op, void* comm, void* stream);
  int (*reduce_scatter)(void*, void*, std::uint64_t, int type, int op, void* comm, void* stream);
  int (*all_gather)(void*, void*, std::uint64_t, int type, void* comm, void* stream);
  int (*reduce)(void*, void*, std::uint64_t, int type, int op, std::uint32_t root, void* comm,
                void* stream);
  int (*broadcast)(void*, std::uint64_t, int type, std::uint32_t root, void* comm, void* stream);
  const char* (*error_text)(int);
};

int number(DType type) {
  switch (type) {
    case DType::I8: return 0;
    case DType::I16: return 1;
    case DType::I32: return 2;
    case DType::F16: return 3;
    case DType::F32: return 4;
    case DType::I64: return 5;
    case DType::BF16: return 11;
    default: return -1;  // others move, but are not reduced
  }
}

int number(RedOp op) {
  switch (op) {
    case RedOp::Sum: return 0;
    case RedOp::Prod: return 1;
    case RedOp::Max: return 2;
    case RedOp::Min: return 3;
    default: return -1;
  }
}

Status failed(const HcclFunctions& calls, int code, const char* what) {
  const char* words = calls.error_text != nullptr ? calls.error_text(code) : nullptr;
  return {
      code == kRemote ? Code::Aborted : Code::System,
      text("hccl: ", what, " failed: ", words != nullptr ? words : "see its log", " (", code, ")")};
}

class HcclGroup final : public Group {
 public:
  HcclGroup(const HcclFunctions& calls, void* comm, int rank, device::Runtime& runtime, int device)
      : calls_(calls), comm_(comm), rank_(rank), runtime_(runtime), device_(device) {}
  ~HcclGroup() override { abort(); }

  Status all_reduce(const void* in, void* out, std::uint64_t count, const Reduction& how,
                    void* stream) override {
    return call("HcclAllReduce", [&](void* own) {
      return calls_.all_reduce(const_cast<void*>(in), out, count, number(how.type), number(how.op),
                               own, stream);
    });
  }
  Status reduce_scatter(const void* in, void* out, std::uint64_t count, const Reduction& how,
                        void* stream) override {
    return call("HcclReduceScatter", [&](void* own) {
      return calls_.reduce_scatter(const_cast<void*>(in), out, count, number(how.type),
                                   number(how.op), own, stream);
    });
  }
  Status reduce(const void* in, void* out, std::uint64_t count, const Reduction& how, int root,
                void* stream) override {
    return call("HcclReduce", [&](void* own) {
      return calls_.reduce(const_cast<void*>(in), out, count, number(how.type), number(how.op),
                           static_cast<std::uint32_t>(root), own, stream);
    });
  }
  Status all_gather(const void* in, void* out, std::uint64_t bytes, void* stream) override {
    return call("HcclAllGather", [&](void* own) {
      return calls_.all_gather(const_cast<void*>(in), out, bytes, kBytes, own, stream);
    });
  }
  // One buffer for both: the root's input where it differs goes by its own copy of the call.
  Status broadcast(const void* in, void* out, std::uint64_t bytes, int root,
                   void* stream) override {
    void* const buffer = rank_ == root ? const_cast<void*>(in) : out;
    return call("HcclBroadcast", [&](void* own) {
      return calls_.broadcast(buffer, bytes, kBytes, static_cast<std::uint32_t>(root), own, stream);
    });
  }
  Status health() override {
    if (calls_.async_error == nullptr) return {};
    const Status status = call("HcclGetCommAsyncError", [&](void* own) {
      int behind = 0;
      const int code = calls_.async_error(own, &behind);
      return code != 0 ? code : behind;
    });
    return status.ok() ? status : Status(Code::Aborted, status.text());
  }
  // HCCL has no abort of its own: destroying ends what waits.
  void abort() override {
    void* const gone = comm_.take();
    if (gone == nullptr) return;
    (void)runtime_.on_device(device_, [&] {
      calls_.destroy(gone);
      return Status();
    });
  }

 private:
  template <typename Call>
  Status call(const char* what, Call&& body) {
    return comm_.use("hccl", [&](void* own) {
      return runtime_.on_device(device_, [&] {
        const int code = body(own);
        return code == 0 ? Status() : failed(calls_, code, what);
      });
    });
  }

  const HcclFunctions& calls_;
  Handle comm_;
  const int rank_;
  device::Runtime& runtime_;
  const int device_;
};

class Hccl final : public Library {
 public:
  explicit Hccl(DynamicLibrary library) : library_(std::move(library)) {}

  Status open() {
    const auto find = [&]<typename Function>(Function*& function, const char* name) {
      function = library_.find_as<Function>(name);
    };
    find(calls_.make_id, "HcclGetRootInfo");
    find(calls_.join, "HcclCommInitRootInfo");
    find(calls_.destroy, "HcclCommDestroy");
    find(calls_.async_error, "HcclGetCommAsyncError");
    find(calls_.all_reduce, "HcclAllReduce");
    find(calls_.reduce_scatter, "HcclReduceScatter");
    find(calls_.all_gather, "HcclAllGather");
    find(calls_.reduce, "HcclReduce");
    find(calls_.broadcast, "HcclBroadcast");
    find(calls_.error_text, "HcclGetErrorString");
    if (calls_.make_id == nullptr || calls_.join == nullptr || calls_.destroy == nullptr ||
        calls_.all_reduce == nullptr || calls_.reduce_scatter == nullptr ||
        calls_.all_gather == nullptr || calls_.broadcast == nullptr || calls_.reduce == nullptr) {
      return {Code::Unavailable, text("hccl: ", library_.path(),
                                      " lacks functions of HCCL; it is "
                                      "too old, or another library")};
    }
    return {};
  }

  std::string name() const override { return "hccl"; }
  std::string path() const override { return library_.path(); }
  std::string version() const override { return "unknown"; }  // HCCL tells none
  std::string compatible() const override { return "hccl"; }
  std::string refuses(DType type, RedOp op) const override {
    if (number(type) < 0) return text("hccl does not reduce ", dtype::name(type));
    if (number(op) < 0) return text("hccl has no operation ", dtype::name(op));
    return "";
  }
  Result<std::string> make_id() override {
    std::string id(kIdBytes, '\0');
    if (const int code = calls_.make_id(id.data()); code != 0) {
      return failed(calls_, code, "HcclGetRootInfo");
    }
    return id;
  }
  Result<std::unique_ptr<Group>> join(const std::string& id, int rank, int size,
                                      device::Runtime& runtime, int device) override {
    if (id.size() != kIdBytes) {
      return Status(Code::InvalidArgument,
                    text("hccl: an id of ", id.size(), " bytes is none of its own"));
    }
    void* comm = nullptr;
    const Status status = runtime.on_device(device, [&] {
      const int code = calls_.join(static_cast<std::uint32_t>(size), id.data(),
                                   static_cast<std::uint32_t>(rank), &comm);
      return code == 0 ? Status() : failed(calls_, code, "HcclCommInitRootInfo");
    });
    if (!status.ok()) return status;
    return std::unique_ptr<Group>(std::make_unique<HcclGroup>(calls_, comm, rank, runtime, device));
  }

 private:
  const DynamicLibrary library_;
  HcclFunctions calls_{};  // constant after open()
};

Result<std::unique_ptr<Library>> probe() {
  auto found = device::find_library("ccl_ascend", kFiles);
  if (!found.ok()) return found.status();
  auto library = std::make_unique<Hccl>(std::move(found).value());
  if (Status status = library->open(); !status.ok()) return status;
  return std::unique_ptr<Library>(std::move(library));
}

}  // namespace

Builtin hccl_ccl() {
  return {device::Kind::Ascend, "hccl", "Huawei HCCL", probe, kFiles, "/dev/davinci_manager"};
}

}  // namespace hccomm::native
