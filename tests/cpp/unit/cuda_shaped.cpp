// SPDX-License-Identifier: Apache-2.0
//
// What is special to CUDA-shaped runtimes: how the vendor is told, what is done without optional
// functions, how failures read. Against the fakes, and the real libcudart where the machine has it.
#include "device/cuda_shaped.hpp"

#include <gtest/gtest.h>

#include "support/fakes.hpp"

namespace hccomm::device {

using test::comes;
using test::Fake;
using test::fake_path;

static const Builtin& builtin(const std::string& name) {
  for (const Builtin& each : builtins()) {
    if (name == each.name) return each;
  }
  throw Error(Code::Internal, "no adapter " + name);
}

// The fake of a kind, named by its setting while the test runs.
class Named {
 public:
  explicit Named(const std::string& kind, const std::string& path = "")
      : setting_(library_setting(kind)) {
    setenv(setting_.c_str(), (path.empty() ? fake_path(kind) : path).c_str(), 1);
  }
  ~Named() { unsetenv(setting_.c_str()); }
  Named(const Named&) = delete;
  Named& operator=(const Named&) = delete;

 private:
  const std::string setting_;
};

TEST(CudaShaped, TellsTheVendorByThePathOfItsLibrary) {
  EXPECT_EQ(owner_of("/usr/local/corex-4.2/lib64/libcudart.so.12"), "corex");
  EXPECT_EQ(owner_of("/opt/dtk-24.04/cuda/lib64/libcudart.so"), "dtk");
  EXPECT_EQ(owner_of("/usr/local/PPU_SDK/targets/lib/libcudart.so"), "ppu");
  EXPECT_EQ(owner_of("/usr/local/xpu-5.0/so/libcudart.so.12"), "kunlun");
  EXPECT_EQ(owner_of("/usr/lib/python3/site-packages/nvidia/cu13/lib/libcudart.so.13"), "");
}

TEST(CudaShaped, TakesALoadedLibraryForItsVendorOnly) {
  void* loaded = dlopen(fake_path("corex").c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(loaded, nullptr) << dlerror();

  auto corex = builtin("corex").probe();
  auto kunlun = builtin("kunlun").probe();

  ASSERT_TRUE(corex.ok()) << corex.status().text();
  EXPECT_EQ(real_path(corex.value()->library()), real_path(fake_path("corex")));
  ASSERT_FALSE(kunlun.ok());
  EXPECT_NE(kunlun.status().text().find("HCCOMM_KUNLUN_LIB"), std::string::npos)
      << kunlun.status().text();
}

TEST(CudaShaped, SaysWhichPathCannotBeLoaded) {
  const Named named("musa", "/nowhere/libmusart.so");

  auto musa = builtin("musa").probe();

  ASSERT_FALSE(musa.ok());
  EXPECT_EQ(musa.status().code(), Code::Unavailable);
  EXPECT_NE(musa.status().text().find("HCCOMM_MUSA_LIB cannot be loaded"), std::string::npos);
  EXPECT_NE(musa.status().text().find("/nowhere/libmusart.so"), std::string::npos);
}

TEST(CudaShaped, SaysWhenALibraryCountsNoDevices) {
  const Named named("supa");
  const Fake fake("supa");
  fake.set("devices=0");

  auto supa = builtin("supa").probe();
  fake.set("devices=2");

  ASSERT_FALSE(supa.ok());
  EXPECT_NE(supa.status().text().find("no device is detected (100)"), std::string::npos)
      << supa.status().text();
  EXPECT_NE(supa.status().text().find("a Biren GPU"), std::string::npos);
}

TEST(CudaShaped, RefusesALibraryOfAnotherPrefix) {
  const Named named("tops", fake_path("tang"));

  auto tops = builtin("tops").probe();

  ASSERT_FALSE(tops.ok());
  EXPECT_NE(tops.status().text().find("has no topsGetDeviceCount"), std::string::npos);
}

TEST(CudaShaped, DescribesByNameAndBusWhereTheRuntimeHasThem) {
  const Named cuda("cuda"), hip("hip"), tang("tang");

  EXPECT_EQ(std::move(builtin("cuda").probe()).take()->describe(1), "Fake cuda 1, 0000:11:00.0");
  EXPECT_EQ(std::move(builtin("hip").probe()).take()->describe(0), "Fake hip 0");
  EXPECT_EQ(std::move(builtin("tang").probe()).take()->describe(0), "tang:0, 0000:10:00.0");
}

TEST(CudaShaped, NamesDeviceCallAndCodeOfAFailure) {
  const Named named("maca");
  const Fake fake("maca");
  auto maca = std::move(builtin("maca").probe()).take();
  fake.set("fail=HostAlloc:1:2");

  auto memory = maca->host_allocate(1, 4096);

  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.status().code(), Code::System);
  EXPECT_EQ(memory.status().text(), "maca:1: mcHostAlloc failed: out of memory (2)");
  EXPECT_TRUE(maca->health(1).ok());
}

TEST(CudaShaped, SaysThatADeviceIsLost) {
  const Named named("kunlun");
  const Fake fake("kunlun");
  auto kunlun = std::move(builtin("kunlun").probe()).take();
  void* host = std::move(kunlun->host_allocate(1, 4096)).take();
  const Place place = std::move(kunlun->allocate(1, 4096)).take();
  const Stream stream = std::move(kunlun->stream_create(1)).take();
  const Event event = std::move(kunlun->event_create(1)).take();
  fake.set("lost=1");

  ASSERT_TRUE(kunlun->copy_in(stream, place, host, 4096).ok());
  Status told = kunlun->event_record(event, stream);  // the copy may already have gone wrong
  if (told.ok()) {
    EXPECT_FALSE(comes(*kunlun, event));
    told = kunlun->event_query(event).status();
  }

  EXPECT_NE(told.text().find("restart the rank"), std::string::npos) << told.text();
  EXPECT_FALSE(kunlun->health(1).ok());
  EXPECT_TRUE(kunlun->health(0).ok());
  fake.set("lost=0");
  kunlun->event_destroy(event);
  kunlun->stream_destroy(stream);
  kunlun->release(1, place);
  kunlun->host_free(1, host);
}

TEST(CudaShaped, TheRealLibcudartSaysWhyThereIsNoGpu) {
  auto cuda = builtin("cuda").probe();  // no setting: what the machine has

  if (cuda.ok()) GTEST_SKIP() << "this machine has " << cuda.value()->describe(0);
  EXPECT_EQ(cuda.status().code(), Code::Unavailable);
  EXPECT_NE(cuda.status().text().find("cuda"), std::string::npos);
  RecordProperty("reason", cuda.status().text());
}

}  // namespace hccomm::device
