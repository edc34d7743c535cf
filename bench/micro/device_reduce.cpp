// SPDX-License-Identifier: Apache-2.0
//
// What reducing on the device would cost beside reducing on the host, on an OpenCL device: a piece
// has come over the wire into pinned memory, and the device has the other operand. Two ways, each
// until the sum of f32 or i32 lies where it is needed next:
//
//   host     the host's kernel over the two mirrors; to the device as well where the sum ends there
//   device   the piece to the device, a kernel there; back to the host where the sum is sent on
//
//   device_reduce [min bytes = 65536] [max bytes = 16777216] [rounds = 15]
//
// Medians of the rounds, in which both take turns, in microseconds.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/dynlib.hpp"
#include "dtype/reduce.hpp"

using namespace hccomm;

namespace {

constexpr std::uint32_t kDeviceName = 0x102B, kBuildLog = 0x1183;
constexpr std::uint64_t kAllDevices = 0xFFFFFFFF, kReadWrite = 1;

constexpr std::uint32_t kOne = 0x3F800000;  // of f32; of i32 it is as good as any

constexpr const char* kSource =
    "__kernel void sum_f32(__global float* a, __global const float* b) {\n"
    "  a[get_global_id(0)] += b[get_global_id(0)];\n"
    "}\n"
    "__kernel void sum_i32(__global uint* a, __global const uint* b) {\n"
    "  a[get_global_id(0)] += b[get_global_id(0)];\n"
    "}\n";

void require(int code, const char* what) {
  if (code == 0) return;
  std::fprintf(stderr, "device_reduce: %s failed with %d\n", what, code);
  std::exit(1);
}

// The first device of the first platform, an in-order queue, and the two kernels.
class Chip {
 public:
  Chip() : library_(DynamicLibrary::open({"libOpenCL.so.1", "libOpenCL.so"}).take()) {
    void* platform = nullptr;
    require(call<int>("clGetPlatformIDs", 1U, &platform, nullptr), "clGetPlatformIDs");
    require(call<int>("clGetDeviceIDs", platform, kAllDevices, 1U, &device_, nullptr),
            "clGetDeviceIDs");
    int code = 0;
    context_ = call<void*>("clCreateContext", nullptr, 1U, &device_, nullptr, nullptr, &code);
    require(code, "clCreateContext");
    queue_ = call<void*>("clCreateCommandQueue", context_, device_, std::uint64_t{0}, &code);
    require(code, "clCreateCommandQueue");
    const char* source = kSource;
    program_ = call<void*>("clCreateProgramWithSource", context_, 1U, &source, nullptr, &code);
    require(code, "clCreateProgramWithSource");
    build();
  }

  std::string name() {
    char words[256] = "";
    call<int>("clGetDeviceInfo", device_, kDeviceName, sizeof words - 1, words, nullptr);
    return words;
  }
  void* buffer(std::size_t bytes) {
    int code = 0;
    void* const made = call<void*>("clCreateBuffer", context_, kReadWrite, bytes, nullptr, &code);
    require(code, "clCreateBuffer");
    return made;
  }
  void drop(void* buffer) { call<int>("clReleaseMemObject", buffer); }
  void write(void* to, const void* from, std::size_t bytes) {
    require(call<int>("clEnqueueWriteBuffer", queue_, to, 0U, std::size_t{0}, bytes, from, 0U,
                      nullptr, nullptr),
            "clEnqueueWriteBuffer");
  }
  void read(void* to, void* from, std::size_t bytes) {
    require(call<int>("clEnqueueReadBuffer", queue_, from, 0U, std::size_t{0}, bytes, to, 0U,
                      nullptr, nullptr),
            "clEnqueueReadBuffer");
  }
  void* kernel(const char* name, void* a, void* b) {
    int code = 0;
    void* const made = call<void*>("clCreateKernel", program_, name, &code);
    require(code, "clCreateKernel");
    require(call<int>("clSetKernelArg", made, 0U, sizeof a, &a), "clSetKernelArg");
    require(call<int>("clSetKernelArg", made, 1U, sizeof b, &b), "clSetKernelArg");
    return made;
  }
  void run(void* kernel, std::size_t count) {
    require(call<int>("clEnqueueNDRangeKernel", queue_, kernel, 1U, nullptr, &count, nullptr, 0U,
                      nullptr, nullptr),
            "clEnqueueNDRangeKernel");
  }
  void finish() { require(call<int>("clFinish", queue_), "clFinish"); }

 private:
  // The C types of the arguments are those of the function: callers write them out.
  template <typename Result, typename... Arguments>
  Result call(const char* name, Arguments... arguments) {
    auto* const function = library_.find_as<Result(Arguments...)>(name);
    if (function == nullptr) require(-1, name);
    return function(arguments...);
  }

  void build() {
    const int code = call<int>("clBuildProgram", program_, 1U, &device_, nullptr, nullptr, nullptr);
    if (code == 0) return;
    char log[2000] = "";
    call<int>("clGetProgramBuildInfo", program_, device_, kBuildLog, sizeof log - 1, log, nullptr);
    std::fprintf(stderr, "%s\n", log);
    require(code, "clBuildProgram");
  }

  DynamicLibrary library_;
  void *device_ = nullptr, *context_ = nullptr, *queue_ = nullptr, *program_ = nullptr;
};

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return Seconds(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

struct Way {
  const char* name;
  std::function<void()> work;
  std::vector<double> took;
};

void compare(Chip& chip, const char* kernel_name, dtype::DType type, std::size_t bytes,
             int rounds) {
  const std::size_t count = bytes / 4;
  std::vector<std::uint32_t> mirror(count, kOne), arrived(count, kOne), seen(count);
  void* const own = chip.buffer(bytes);
  void* const piece = chip.buffer(bytes);
  void* const kernel = chip.kernel(kernel_name, own, piece);
  const dtype::Reduce sum = dtype::reduce(type, dtype::RedOp::Sum);
  const auto on_host = [&] { sum(mirror.data(), mirror.data(), arrived.data(), count); };
  const auto on_device = [&] {
    chip.write(piece, arrived.data(), bytes);
    chip.run(kernel, count);
  };
  std::vector<Way> ways = {
      {"host, sent on", on_host, {}},
      {"device, sent on",
       [&] {
         on_device();
         chip.read(mirror.data(), own, bytes);
         chip.finish();
       },
       {}},
      {"host, stays on the device",
       [&] {
         on_host();
         chip.write(own, mirror.data(), bytes);
         chip.finish();
       },
       {}},
      {"device, stays there",
       [&] {
         on_device();
         chip.finish();
       },
       {}},
  };
  chip.write(own, mirror.data(), bytes);
  on_device();
  chip.read(seen.data(), own, bytes);
  chip.finish();
  on_host();
  require(seen == mirror ? 0 : 1, "the comparison of the device's sum with the host's");
  for (int round = -1; round < rounds; ++round) {  // the first is not counted
    for (Way& each : ways) {
      const double took = seconds_of(each.work);
      if (round >= 0) each.took.push_back(took);
    }
  }
  std::printf("%s %9zu bytes:", kernel_name, bytes);
  for (const Way& each : ways) std::printf("  %s %.0f", each.name, median(each.took) * 1e6);
  std::printf("\n");
  chip.drop(own);
  chip.drop(piece);
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t least = argc > 1 ? std::strtoull(argv[1], nullptr, 0) : 64 << 10;
  const std::size_t most = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 16 << 20;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 15;
  if (least < 4 || least > most || rounds < 1) {
    std::fprintf(stderr, "device_reduce [min bytes] [max bytes] [rounds]\n");
    return 2;
  }
  Chip chip;
  std::printf("%s; the host's kernels: %s; us\n", chip.name().c_str(), dtype::simd_name());
  for (std::size_t bytes = least; bytes <= most; bytes *= 4) {
    compare(chip, "sum_f32", dtype::DType::F32, bytes, rounds);
    compare(chip, "sum_i32", dtype::DType::I32, bytes, rounds);
  }
}
