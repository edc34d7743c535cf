// SPDX-License-Identifier: Apache-2.0
#include "device/opencl_sums.hpp"

#include <algorithm>
#include <bit>

namespace hccomm::device {

static constexpr std::uint32_t kBuildLog = 0x1183;
static constexpr std::uint64_t kReadOnly = 4;
static constexpr std::uint64_t kLeastScratch = 64 << 10, kMostScratch = 4 << 20;  // bytes
static constexpr std::int32_t kSum = 0, kMin = 3, kMax = 4;                       // HCCOMM_SUM, ...

// What the host's kernels compute (dtype/reduce.hpp), bit by bit. TYPE and OP are the C ABI's.
// f16 is taken apart by hand, as PoCL 3.1 stores another NaN, and without a switch, which oclgrind
// takes wrongly.
static constexpr const char* kSource = R"(
#define ONE_NAN(x) (x != x ? as_float(0x7fc00000u) : x)
#define LOAD(p, i) p[i]
#define STORE(p, i, x) p[i] = x
#define ADD(a, b) ((a) + (b))
#if TYPE == 3
typedef int stored; typedef int work;
#undef ADD
#define ADD(a, b) as_int(as_uint(a) + as_uint(b))
#elif TYPE == 4
typedef long stored; typedef long work;
#undef ADD
#define ADD(a, b) as_long(as_ulong(a) + as_ulong(b))
#elif TYPE == 9
typedef ushort stored; typedef float work;
float loaded(ushort bits) {
  uint sign = (uint)(bits & 0x8000) << 16, power = (bits >> 10) & 31;
  uint rest = bits & 1023;
  uint large = ((power > 30 ? 255 : power + 112) << 23) | (rest << 13);
  return as_float(sign | (power > 0 ? large : as_uint((float)rest * 0x1p-24f)));
}
ushort rounded(float x) {
  uint bits = as_uint(x) & 0x7fffffffu, sign = (as_uint(x) >> 16) & 0x8000u;
  if (x != x) return 0x7e00;
  if (bits >= 0x47800000u) return (ushort)(sign | 0x7c00u);
  if (bits < 0x38800000u) return (ushort)(sign | (as_uint(as_float(bits) + 0.5f) - 0x3f000000u));
  return (ushort)(sign | ((bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13));
}
#undef LOAD
#undef STORE
#define LOAD(p, i) loaded(p[i])
#define STORE(p, i, x) p[i] = rounded(x)
#elif TYPE == 10
typedef ushort stored; typedef float work;
ushort rounded(float x) {
  uint bits = as_uint(ONE_NAN(x));
  return (ushort)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#undef LOAD
#undef STORE
#define LOAD(p, i) as_float((uint)p[i] << 16)
#define STORE(p, i, x) p[i] = rounded(x)
#elif TYPE == 13
typedef float stored; typedef float work;
#undef STORE
#define STORE(p, i, x) p[i] = ONE_NAN(x)
#elif TYPE == 14
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
typedef double stored; typedef double work;
#undef STORE
#define STORE(p, i, x) p[i] = (x != x ? as_double(0x7ff8000000000000ul) : x)
#endif
#if OP == 0
#define REDUCE(a, b) ADD(a, b)
#elif OP == 3
#define REDUCE(a, b) (a != a ? a : a < b ? a : b)
#elif OP == 4
#define REDUCE(a, b) (a != a ? a : a > b ? a : b)
#endif
kernel void reduce(global char* dst, ulong dst_at, const global char* src, ulong src_at,
                   const global char* piece, int piece_first) {
  size_t i = get_global_id(0);
  global stored* to = (global stored*)(dst + dst_at);
  const global stored* from = (const global stored*)(src + src_at);
  const global stored* came = (const global stored*)piece;
  work mine = LOAD(from, i), its = LOAD(came, i);
  work a = piece_first ? its : mine, b = piece_first ? mine : its;
  work c = REDUCE(a, b);
  STORE(to, i, c);
}
)";

// Bytes of an element that there is a kernel for; 0: none.
static std::uint64_t size_of(std::int32_t type) {
  switch (type) {
    case 9:
    case 10: return 2;  // f16, bf16
    case 3:
    case 13: return 4;  // i32, f32
    case 4:
    case 14: return 8;  // i64, f64
    default: return 0;
  }
}

void OpenClSums::find(const DynamicLibrary& library) {
  here_ = true;
  const auto look = [&]<typename Function>(Function*& function, const char* name) {
    function = library.find_as<Function>(name);
    if (function == nullptr) here_ = false;
  };
  look(call_.program, "clCreateProgramWithSource");
  look(call_.build, "clBuildProgram");
  look(call_.build_info, "clGetProgramBuildInfo");
  look(call_.program_release, "clReleaseProgram");
  look(call_.kernel, "clCreateKernel");
  look(call_.argument, "clSetKernelArg");
  look(call_.launch, "clEnqueueNDRangeKernel");
  look(call_.buffer, "clCreateBuffer");
  look(call_.buffer_release, "clReleaseMemObject");
  look(call_.write, "clEnqueueWriteBuffer");
}

std::string OpenClSums::absent() const {
  return here_ ? std::string() : "this OpenCL library has no functions for kernels";
}

std::string OpenClSums::lacks(void* context, void* device, std::uint64_t offsets,
                              const Reduction& how) {
  if (!here_) return absent();
  if (size_of(how.type) == 0 || (how.op != kSum && how.op != kMin && how.op != kMax)) {
    return "there is no kernel for this type and operation";
  }
  if (offsets % size_of(how.type) != 0) return "the elements are not aligned";
  const std::lock_guard lock(mutex_);
  return kernel(context, device, how).why_not;
}

// Requires: the lock.
const OpenClSums::Kernel& OpenClSums::kernel(void* context, void* device, const Reduction& how) {
  const Key key{context, device, how.type, how.op};
  auto found = kernels_.find(key);
  if (found == kernels_.end()) {
    found = kernels_.emplace(key, compile(context, device, how)).first;
  }
  return found->second;
}

OpenClSums::Kernel OpenClSums::compile(void* context, void* device, const Reduction& how) const {
  int code = 0;
  const char* source = kSource;
  void* const program = call_.program(context, 1, &source, nullptr, &code);
  if (code != 0) return {nullptr, text("clCreateProgramWithSource failed with ", code)};
  const std::string options = text("-DTYPE=", how.type, " -DOP=", how.op);
  Kernel made;
  code = call_.build(program, 1, &device, options.c_str(), nullptr, nullptr);
  if (code != 0) {
    char log[200] = "";
    call_.build_info(program, device, kBuildLog, sizeof log - 1, log, nullptr);
    made.why_not = text("its compiler refuses the kernel (", code, ") ", log);
  } else {
    made.native = call_.kernel(program, "reduce", &code);
    if (code != 0) made.why_not = text("clCreateKernel failed with ", code);
  }
  call_.program_release(program);  // the kernel keeps it
  return made;
}

// Requires: the lock. What was too small goes once its commands have ended.
Result<void*> OpenClSums::scratch(void* queue, void* context, std::uint64_t bytes) {
  Scratch& mine = scratch_[queue];
  if (mine.bytes >= bytes) return mine.buffer;
  const std::uint64_t wanted = std::max(kLeastScratch, std::bit_ceil(bytes));
  int code = 0;
  void* const made = call_.buffer(context, kReadOnly, wanted, nullptr, &code);
  if (code != 0) {
    return Status(Code::System,
                  text("opencl: clCreateBuffer of ", wanted, " bytes for sums failed with ", code,
                       "; HCCOMM_STAGING_SUMS=host needs none"));
  }
  if (mine.buffer != nullptr) call_.buffer_release(mine.buffer);
  mine = {made, wanted};
  return made;
}

int OpenClSums::launch(void* queue, void* kernel, void* piece, Place dst, Place src,
                       std::size_t count, bool host_first) const {
  const std::int32_t first = host_first ? 1 : 0;
  int code = call_.argument(kernel, 0, sizeof dst.handle, &dst.handle);
  if (code == 0) code = call_.argument(kernel, 1, sizeof dst.offset, &dst.offset);
  if (code == 0) code = call_.argument(kernel, 2, sizeof src.handle, &src.handle);
  if (code == 0) code = call_.argument(kernel, 3, sizeof src.offset, &src.offset);
  if (code == 0) code = call_.argument(kernel, 4, sizeof piece, &piece);
  if (code == 0) code = call_.argument(kernel, 5, sizeof first, &first);
  if (code != 0) return code;
  return call_.launch(queue, kernel, 1, nullptr, &count, nullptr, 0, nullptr, nullptr);
}

Status OpenClSums::enqueue(void* queue, void* context, void* device, Place dst, Place src,
                           const void* host, std::uint64_t count, const Reduction& how) {
  const std::uint64_t size = size_of(how.type);
  const std::lock_guard lock(mutex_);
  void* const adds = kernel(context, device, how).native;
  if (adds == nullptr) return {Code::Unavailable, "opencl: lacks_reduction() told why not"};
  auto piece = scratch(queue, context, std::min(count * size, kMostScratch));
  if (!piece.ok()) return piece.status();
  const auto* from = static_cast<const char*>(host);
  for (std::uint64_t left = count * size; left > 0;) {
    const std::uint64_t bytes = std::min(left, kMostScratch);
    int code = call_.write(queue, piece.value(), 0, 0, bytes, from, 0, nullptr, nullptr);
    if (code == 0) {
      code = launch(queue, adds, piece.value(), dst, src, bytes / size, how.host_first);
    }
    if (code != 0) {
      return {Code::System, text("opencl: a sum on the device failed with ", code,
                                 " (CL/cl.h names it); HCCOMM_STAGING_SUMS=host avoids it")};
    }
    left -= bytes;
    from += bytes;
    dst.offset += bytes;
    src.offset += bytes;
  }
  return {};
}

void OpenClSums::forget(void* queue) {
  const std::lock_guard lock(mutex_);
  const auto found = scratch_.find(queue);
  if (found == scratch_.end()) return;
  if (found->second.buffer != nullptr) call_.buffer_release(found->second.buffer);
  scratch_.erase(found);
}

}  // namespace hccomm::device
