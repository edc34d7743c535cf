// SPDX-License-Identifier: Apache-2.0
//
// What is special to OpenCL: buffers of the caller's own context, the caller's out-of-order queue,
// several platforms at once. Against real implementations: PoCL and oclgrind, whichever are
// installed; skipped with the reason where there is none.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "dtype/reduce.hpp"
#include "engine/sums.hpp"
#include "support/fakes.hpp"

namespace hccomm::device {

using test::comes;

// A folder of .icd files that names what is installed, so that all platforms are seen at once.
static void offer_all_platforms() {
  static const std::string folder = [] {
    char name[] = "/tmp/hccomm-icd-XXXXXX";
    const std::string made = mkdtemp(name);
    for (const char* each :
         {"/usr/lib/x86_64-linux-gnu/libpocl.so.2", "/usr/lib/aarch64-linux-gnu/libpocl.so.2",
          "/usr/lib/oclgrind/liboclgrind-rt-icd.so"}) {
      if (!std::filesystem::exists(each)) continue;
      std::ofstream(made + "/" + std::filesystem::path(each).stem().string() + ".icd") << each;
    }
    setenv("OCL_ICD_VENDORS", made.c_str(), 1);
    setenv("POCL_CACHE_DIR", made.c_str(), 1);
    setenv("POCL_MAX_PTHREAD_COUNT", "1", 1);
    return made;
  }();
}

class OpenClPlatforms : public testing::Test {
 protected:
  void SetUp() override {
    static Registry* const registry = new Registry(builtins());
    find(*registry);
  }

  void find(Registry& registry) {
    offer_all_platforms();
    auto found = registry.runtime(Kind::OpenCl);
    if (!found.ok()) GTEST_SKIP() << found.status().text();
    runtime = found.value();
    devices = std::move(runtime->count()).take();
  }

  // The first device that has shared virtual memory, as the runtime numbers it; -1: none.
  int find_svm() {
    void* platforms[8];
    std::uint32_t many = 0;
    int index = 0;
    cl<int(std::uint32_t, void**, std::uint32_t*)>("clGetPlatformIDs")(8, platforms, &many);
    for (std::uint32_t each = 0; each < many; ++each) {
      void* here[8];
      std::uint32_t count = 0;
      cl<int(void*, std::uint64_t, std::uint32_t, void**, std::uint32_t*)>("clGetDeviceIDs")(
          platforms[each], 0xFFFFFFFF, 8, here, &count);
      for (std::uint32_t k = 0; k < count; ++k, ++index) {
        std::uint64_t svm = 0;
        cl<int(void*, std::uint32_t, std::size_t, void*, std::size_t*)>("clGetDeviceInfo")(
            here[k], 0x1053, sizeof svm, &svm, nullptr);
        if ((svm & 1) == 0) continue;
        platform = platforms[each];
        device = here[k];
        return index;
      }
    }
    return -1;
  }

  // A context and a queue of the caller's, on the device that find_svm() found.
  void open_context() {
    int code = 0;
    context = cl<void*(void*, std::uint32_t, void**, void*, void*, int*)>("clCreateContext")(
        nullptr, 1, &device, nullptr, nullptr, &code);
    queue = cl<void*(void*, void*, std::uint64_t, int*)>("clCreateCommandQueue")(context, device, 0,
                                                                                 &code);
    ASSERT_EQ(code, 0);
  }
  void close_context() {
    cl<int(void*)>("clReleaseCommandQueue")(queue);
    cl<int(void*)>("clReleaseContext")(context);
  }

  // Copies 4096 bytes of `letter` to a place and back; true when they come back.
  bool comes_back(int index, Place place, char letter) {
    const Stream ours = std::move(runtime->stream_create(index)).take();
    const Event event = std::move(runtime->event_create(index)).take();
    auto* host = static_cast<char*>(std::move(runtime->host_allocate(index, 8192)).take());
    std::memset(host, letter, 4096);
    std::memset(host + 4096, 0, 4096);
    EXPECT_TRUE(runtime->event_record(event, {index, 0, queue}).ok());
    EXPECT_TRUE(comes(*runtime, event));
    EXPECT_TRUE(runtime->copy_in(ours, place, host, 4096).ok());
    EXPECT_TRUE(runtime->copy_out(ours, host + 4096, place, 4096).ok());
    EXPECT_TRUE(runtime->event_record(event, ours).ok());
    EXPECT_TRUE(comes(*runtime, event));
    const bool same = std::memcmp(host, host + 4096, 4096) == 0;
    runtime->event_destroy(event);
    runtime->stream_destroy(ours);
    runtime->host_free(index, host);
    return same;
  }

  // A function of the loader, as a program of the caller would have it.
  template <typename Function>
  Function* cl(const char* name) {
    void* library = dlopen(runtime->library().c_str(), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<Function*>(dlsym(library, name));
  }

  Runtime* runtime = nullptr;
  int devices = 0;
  void *platform = nullptr, *device = nullptr, *context = nullptr, *queue = nullptr;
};

// The same platforms with Intel's unified shared memory added (tests/fakes/opencl_usm.c).
class OpenClUsm : public OpenClPlatforms {
 protected:
  void SetUp() override {
    const std::string path = test::fake_path("opencl_usm");
    if (path.empty()) GTEST_SKIP() << "no OpenCL loader here when the fakes were built";
    static Registry* const registry = new Registry(builtins());
    setenv("HCCOMM_OPENCL_LIB", path.c_str(), 1);
    find(*registry);
    unsetenv("HCCOMM_OPENCL_LIB");
  }

  template <typename Function>
  Function* usm(const char* name) {
    return reinterpret_cast<Function*>(
        cl<void*(void*, const char*)>("clGetExtensionFunctionAddressForPlatform")(platform, name));
  }
  std::int64_t copies() { return cl<std::int64_t()>("fake_usm_copies")(); }
};

// Elements of all kinds: bits at random, and those next to zero and infinity with either sign.
static void fill(std::byte* to, std::size_t bytes, std::size_t element_bytes, std::uint64_t state) {
  for (std::size_t at = 0; at < bytes; at += element_bytes) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::uint64_t value = state ^ (state >> 29);
    const std::uint64_t near = value % 3, kind = at / element_bytes % 5;
    const std::uint64_t sign = (value >> 8 & 1) << (8 * element_bytes - 1);
    if (kind == 1) value = sign | near;
    if (kind == 2)
      value = sign | (element_bytes == 8   ? 0x7FF0000000000000 + near - 1
                      : element_bytes == 4 ? 0x7F800000 + near - 1
                                           : 0x7C00 + near - 1);
    std::memcpy(to + at, &value, element_bytes);
  }
}

// A device's reduction of `count` elements beside the host's, from odd places to odd places.
static void expect_the_hosts_bits(Runtime& runtime, int index, dtype::DType type, dtype::RedOp op,
                                  bool host_first) {
  constexpr std::size_t kBytes = 32 << 10;
  const std::size_t element_bytes = dtype::size_of(type), count = kBytes / element_bytes - 3;
  const Reduction how{static_cast<std::int32_t>(type), static_cast<std::int32_t>(op), host_first};
  auto* host = static_cast<std::byte*>(std::move(runtime.host_allocate(index, 3 * kBytes)).take());
  std::byte *const came = host + kBytes, *const back = host + 2 * kBytes;
  const Place memory = std::move(runtime.allocate(index, 2 * kBytes)).take();
  const Place src{memory.handle, element_bytes}, dst{memory.handle, kBytes + 2 * element_bytes};
  const Stream stream = std::move(runtime.stream_create(index)).take();
  const Event event = std::move(runtime.event_create(index)).take();
  fill(host, kBytes, element_bytes, 1);
  fill(came, kBytes, element_bytes, 2);
  std::memset(back, 0, kBytes);

  ASSERT_EQ(runtime.lacks_reduction(index, dst, src, how), "");
  ASSERT_TRUE(runtime.copy_in(stream, src, host, count * element_bytes).ok());
  const Status status = runtime.reduce_in(stream, dst, src, came, count, how);
  ASSERT_TRUE(status.ok()) << status.text();
  ASSERT_TRUE(runtime.copy_out(stream, back, dst, count * element_bytes).ok());
  ASSERT_TRUE(runtime.event_record(event, stream).ok());
  ASSERT_TRUE(comes(runtime, event));

  std::vector<std::byte> wanted(kBytes);
  dtype::reduce(type, op)(wanted.data(), host_first ? came : host, host_first ? host : came, count);
  for (std::size_t at = 0; at < count * element_bytes; at += element_bytes) {
    ASSERT_EQ(std::memcmp(wanted.data() + at, back + at, element_bytes), 0)
        << dtype::name(type) << ' ' << dtype::name(op) << ", element " << at / element_bytes << ": "
        << testing::PrintToString(std::vector<std::byte>(back + at, back + at + element_bytes))
        << " instead of "
        << testing::PrintToString(
               std::vector<std::byte>(wanted.begin() + static_cast<long>(at),
                                      wanted.begin() + static_cast<long>(at + element_bytes)));
  }
  runtime.event_destroy(event);
  runtime.stream_destroy(stream);
  runtime.release(index, memory);
  runtime.host_free(index, host);
}

TEST_F(OpenClPlatforms, ReducesToTheBitsOfTheHost) {
  using dtype::DType;
  using dtype::RedOp;
  ASSERT_EQ(runtime->lacks(Feature::Reduce), "");
  for (int index = 0; index < devices; ++index) {
    SCOPED_TRACE(runtime->describe(index));
    for (const DType type :
         {DType::I32, DType::I64, DType::F16, DType::BF16, DType::F32, DType::F64}) {
      for (const RedOp op : {RedOp::Sum, RedOp::Min, RedOp::Max}) {
        for (const bool host_first : {false, true}) {
          expect_the_hosts_bits(*runtime, index, type, op, host_first);
        }
      }
    }
  }
}

TEST_F(OpenClPlatforms, SaysWhatItDoesNotReduce) {
  const Place one = std::move(runtime->allocate(0, 4096)).take();
  const auto lacks = [&](std::uint64_t offset, dtype::DType type, dtype::RedOp op) {
    return runtime->lacks_reduction(
        0, {one.handle, offset}, one,
        {static_cast<std::int32_t>(type), static_cast<std::int32_t>(op)});
  };

  EXPECT_EQ(lacks(8, dtype::DType::F64, dtype::RedOp::Sum), "");
  EXPECT_NE(lacks(4, dtype::DType::F64, dtype::RedOp::Sum).find("aligned"), std::string::npos);
  EXPECT_NE(lacks(0, dtype::DType::U8, dtype::RedOp::Sum).find("no kernel"), std::string::npos);
  EXPECT_NE(lacks(0, dtype::DType::F32, dtype::RedOp::Prod).find("no kernel"), std::string::npos);
  runtime->release(0, one);
}

TEST_F(OpenClPlatforms, ReducesMoreThanItsOwnMemoryTakesAtOnce) {
  constexpr std::size_t kBytes = (9 << 20) + 4;
  const int last = devices - 1;
  auto* host = static_cast<std::byte*>(std::move(runtime->host_allocate(last, kBytes)).take());
  const Place place = std::move(runtime->allocate(last, kBytes)).take();
  const Stream stream = std::move(runtime->stream_create(last)).take();
  const Event event = std::move(runtime->event_create(last)).take();
  auto* const numbers = reinterpret_cast<std::int32_t*>(host);
  for (std::size_t k = 0; k < kBytes / 4; ++k) numbers[k] = static_cast<std::int32_t>(k);

  ASSERT_TRUE(runtime->copy_in(stream, place, host, kBytes).ok());
  ASSERT_TRUE(runtime->reduce_in(stream, place, place, host, kBytes / 4, {3, 0}).ok());
  ASSERT_TRUE(runtime->copy_out(stream, host, place, kBytes).ok());
  ASSERT_TRUE(runtime->event_record(event, stream).ok());
  ASSERT_TRUE(comes(*runtime, event));

  for (std::size_t k = 0; k < kBytes / 4; ++k) ASSERT_EQ(numbers[k], 2 * static_cast<int>(k));
  runtime->event_destroy(event);
  runtime->stream_destroy(stream);
  runtime->release(last, place);
  runtime->host_free(last, host);
}

TEST_F(OpenClPlatforms, ServesTheDevicesOfEveryPlatform) {
  for (int index = 0; index < devices; ++index) {
    SCOPED_TRACE(runtime->describe(index));
    auto* host = static_cast<char*>(std::move(runtime->host_allocate(index, 8192)).take());
    const Place place = std::move(runtime->allocate(index, 4096)).take();
    const Stream stream = std::move(runtime->stream_create(index)).take();
    const Event event = std::move(runtime->event_create(index)).take();
    std::memset(host, 'x', 4096);

    ASSERT_TRUE(runtime->copy_in(stream, place, host, 4096).ok());
    ASSERT_TRUE(runtime->copy_out(stream, host + 4096, place, 4096).ok());
    ASSERT_TRUE(runtime->event_record(event, stream).ok());
    ASSERT_TRUE(comes(*runtime, event));

    EXPECT_EQ(std::memcmp(host, host + 4096, 4096), 0);
    runtime->event_destroy(event);
    runtime->stream_destroy(stream);
    runtime->release(index, place);
    runtime->host_free(index, host);
  }
}

TEST_F(OpenClPlatforms, RefusesACopyBeyondTheBuffer) {
  const Place place = std::move(runtime->allocate(0, 4096)).take();
  const Stream stream = std::move(runtime->stream_create(0)).take();
  void* host = std::move(runtime->host_allocate(0, 8192)).take();

  const Status status = runtime->copy_in(stream, {place.handle, 4000}, host, 4096);

  EXPECT_EQ(status.code(), Code::System);
  EXPECT_NE(status.text().find("clEnqueueWriteBuffer failed with -30"), std::string::npos)
      << status.text();
  runtime->host_free(0, host);
  runtime->stream_destroy(stream);
  runtime->release(0, place);
}

// The caller's context, queue and buffer are its own; what it enqueued is seen, in its order.
TEST_F(OpenClPlatforms, StandsBehindTheCallersQueueInTheCallersContext) {
  std::uint32_t many = 0;
  int code = 0;
  ASSERT_EQ(cl<int(std::uint32_t, void**, std::uint32_t*)>("clGetPlatformIDs")(1, &platform, &many),
            0);
  ASSERT_EQ((cl<int(void*, std::uint64_t, std::uint32_t, void**, std::uint32_t*)>("clGetDeviceIDs")(
                platform, 0xFFFFFFFF, 1, &device, nullptr)),
            0);
  context = cl<void*(void*, std::uint32_t, void**, void*, void*, int*)>("clCreateContext")(
      nullptr, 1, &device, nullptr, nullptr, &code);
  queue = cl<void*(void*, void*, std::uint64_t, int*)>("clCreateCommandQueue")(
      context, device, 1 /* out of order */, &code);
  ASSERT_EQ(code, 0);
  void* buffer = cl<void*(void*, std::uint64_t, std::size_t, void*, int*)>("clCreateBuffer")(
      context, 1, 1 << 20, nullptr, &code);
  std::vector<char> written(1 << 20, 'w');
  auto* host = static_cast<char*>(std::move(runtime->host_allocate(0, 1 << 20)).take());
  const Stream ours = std::move(runtime->stream_create(0)).take();
  const Stream callers{0, 0, queue};
  const Event event = std::move(runtime->event_create(0)).take();

  ASSERT_EQ((cl<int(void*, void*, std::uint32_t, std::size_t, std::size_t, const void*,
                    std::uint32_t, void*, void*)>("clEnqueueWriteBuffer")(
                queue, buffer, 0, 0, written.size(), written.data(), 0, nullptr, nullptr)),
            0);
  ASSERT_TRUE(runtime->event_record(event, callers).ok());
  ASSERT_TRUE(runtime->stream_wait(ours, event).ok());
  ASSERT_TRUE(runtime->copy_out(ours, host, {buffer, 0}, 1 << 20).ok());
  ASSERT_TRUE(runtime->event_record(event, ours).ok());
  ASSERT_TRUE(runtime->stream_wait(callers, event).ok());
  ASSERT_TRUE(comes(*runtime, event));

  EXPECT_EQ(std::memcmp(host, written.data(), written.size()), 0);
  runtime->event_destroy(event);
  runtime->stream_destroy(ours);
  runtime->host_free(0, host);
  cl<int(void*)>("clReleaseMemObject")(buffer);
  cl<int(void*)>("clFinish")(queue);
  cl<int(void*)>("clReleaseCommandQueue")(queue);
  cl<int(void*)>("clReleaseContext")(context);
}

// What the standard offers without an extension: a cl_mem over it is the same memory.
TEST_F(OpenClPlatforms, TakesABufferOverSharedVirtualMemory) {
  const int index = find_svm();
  if (index < 0) GTEST_SKIP() << "no device with shared virtual memory";
  open_context();
  auto* memory = static_cast<char*>(cl<void*(void*, std::uint64_t, std::size_t, std::uint32_t)>(
      "clSVMAlloc")(context, 1, 8192, 0));
  int code = 0;
  void* buffer = cl<void*(void*, std::uint64_t, std::size_t, void*, int*)>("clCreateBuffer")(
      context, 1 | 8 /* use host pointer */, 8192, memory, &code);
  ASSERT_EQ(code, 0);

  EXPECT_TRUE(comes_back(index, {buffer, 4096}, 'v'));

  ASSERT_EQ((cl<int(void*, std::uint32_t, std::uint64_t, void*, std::size_t, std::uint32_t, void*,
                    void*)>("clEnqueueSVMMap")(queue, 1, 1, memory, 8192, 0, nullptr, nullptr)),
            0);
  EXPECT_EQ(std::string(memory + 4096, 4096), std::string(4096, 'v'));
  cl<int(void*, void*, std::uint32_t, void*, void*)>("clEnqueueSVMUnmap")(queue, memory, 0, nullptr,
                                                                          nullptr);
  cl<int(void*)>("clFinish")(queue);
  cl<int(void*)>("clReleaseMemObject")(buffer);
  cl<void(void*, void*)>("clSVMFree")(context, memory);
  close_context();
}

TEST_F(OpenClUsm, TakesPointersAndBuffersOfTheContextOfTheCallersQueue) {
  const int index = find_svm();
  if (index < 0) GTEST_SKIP() << "no device with shared virtual memory, of which the fake makes it";
  open_context();
  int code = 0;
  void* memory = usm<void*(void*, void*, const std::uint64_t*, std::size_t, std::uint32_t, int*)>(
      "clDeviceMemAllocINTEL")(context, device, nullptr, 8192, 0, &code);
  ASSERT_EQ(code, 0);
  void* buffer = cl<void*(void*, std::uint64_t, std::size_t, void*, int*)>("clCreateBuffer")(
      context, 1, 8192, nullptr, &code);

  EXPECT_TRUE(comes_back(index, {memory, 4096}, 'u'));
  EXPECT_EQ(copies(), 2) << "not by clEnqueueMemcpyINTEL";
  EXPECT_TRUE(comes_back(index, {buffer, 4096}, 'b'));
  EXPECT_EQ(copies(), 2) << "a cl_mem is none";

  const Stream ours = std::move(runtime->stream_create(index)).take();
  void* host = std::move(runtime->host_allocate(index, 8192)).take();
  const Status beyond = runtime->copy_in(ours, {memory, 4097}, host, 4096);
  EXPECT_NE(beyond.text().find("clEnqueueMemcpyINTEL failed with -30"), std::string::npos)
      << beyond.text();
  runtime->stream_destroy(ours);
  runtime->host_free(index, host);
  usm<int(void*, void*)>("clMemFreeINTEL")(context, memory);
  cl<int(void*)>("clReleaseMemObject")(buffer);
  close_context();
}

}  // namespace hccomm::device
