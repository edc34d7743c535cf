// SPDX-License-Identifier: Apache-2.0
//
// The registry of device runtimes: kinds by name, lazy probes, plug-in tables that are refused.
#include "device/registry.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "device/plugin.hpp"
#include "support/fakes.hpp"

namespace hccomm::device {

static int probes = 0;

static Result<std::unique_ptr<Runtime>> absent() {
  ++probes;
  return Status(Code::Unavailable, "no such chip here");
}

static constexpr Builtin kAbsent[] = {{Kind::Cuda, "cuda", "a chip that is never here", absent}};

TEST(Registry, ProbesAKindAtItsFirstUseAndNotBefore) {
  probes = 0;
  Registry registry(kAbsent);
  ASSERT_EQ(registry.kind("cuda").value(), Kind::Cuda);
  EXPECT_EQ(probes, 0);

  auto runtime = registry.runtime(Kind::Cuda);

  EXPECT_EQ(probes, 1);
  ASSERT_FALSE(runtime.ok());
  EXPECT_EQ(runtime.status().code(), Code::Unavailable);
  EXPECT_EQ(runtime.status().text(), "no such chip here");
}

TEST(Registry, GivesWhatIsAddedTheNumbersAboveTheBuiltins) {
  Registry registry(kAbsent);

  const Kind first = std::move(registry.add("one", "", absent)).take();
  const Kind second = std::move(registry.add("two", "", absent)).take();

  EXPECT_EQ(first, Kind::FirstPlugin);
  EXPECT_EQ(static_cast<int>(second), static_cast<int>(first) + 1);
  EXPECT_EQ(registry.name(second), "two");
  EXPECT_EQ(registry.kind("two").value(), second);
  EXPECT_EQ(registry.add("cuda", "", absent).status().code(), Code::InvalidArgument);
}

TEST(Registry, NamesTheKindsItKnowsWhenAskedForAnother) {
  Registry registry(kAbsent);

  auto kind = registry.kind("abacus");

  ASSERT_FALSE(kind.ok());
  EXPECT_NE(kind.status().text().find("host, cuda"), std::string::npos) << kind.status().text();
  EXPECT_EQ(registry.runtime(static_cast<Kind>(63)).status().code(), Code::InvalidArgument);
}

TEST(Registry, RefusesATableOfAnotherVersionAndOneWithHoles) {
  Registry registry(kAbsent);
  hccomm_device_plugin_v1 table{};
  table.struct_size = sizeof table;
  table.abi_version = 7;
  table.name = "later";
  EXPECT_NE(register_plugin(&table, "test", registry).status().text().find("version 7"),
            std::string::npos);

  table.abi_version = HCCOMM_DEVICE_PLUGIN_ABI;

  EXPECT_NE(register_plugin(&table, "test", registry).status().text().find("has no probe"),
            std::string::npos);
  EXPECT_EQ(registry.survey().size(), 1u);
}

// One that was built before reduce_in was added, and has other things behind it.
TEST(Registry, TakesAShorterTableOfItsVersion) {
  Registry registry(kAbsent);
  static hccomm_device_plugin_v1 older = [] {
    void* const library = dlopen(HCCOMM_FAKES "/plugins/libexample_plugin.so", RTLD_NOW);
    auto* entry =
        reinterpret_cast<hccomm_device_plugin_function>(dlsym(library, "hccomm_device_plugin"));
    hccomm_device_plugin_v1 table = *entry();
    table.struct_size = offsetof(hccomm_device_plugin_v1, reduce_in);
    return table;
  }();

  const Kind kind = std::move(register_plugin(&older, "test", registry)).take();
  Runtime* const runtime = std::move(registry.runtime(kind)).take();

  EXPECT_EQ(runtime->lacks(Feature::Reduce), "this adapter has no reduction");
  EXPECT_NE(runtime->lacks_reduction(0, {}, {}, {13, 0}), "");
  older.struct_size -= sizeof(void*);
  EXPECT_EQ(register_plugin(&older, "test", registry).status().code(), Code::InvalidArgument);
}

// What HCCOMM_PLUGINS names is set while the test runs.
class Plugins {
 public:
  explicit Plugins(const std::string& paths) { setenv("HCCOMM_PLUGINS", paths.c_str(), 1); }
  ~Plugins() { unsetenv("HCCOMM_PLUGINS"); }
  Plugins(const Plugins&) = delete;
  Plugins& operator=(const Plugins&) = delete;
};

TEST(Registry, LoadsAPluginWhenItsNameIsAskedFor) {
  const Plugins named(HCCOMM_FAKES "/plugins/libexample_plugin.so");
  Registry registry(kAbsent);
  EXPECT_EQ(registry.kind("cuda").value(), Kind::Cuda);
  EXPECT_EQ(registry.name(Kind::FirstPlugin), "device kind 64");

  const Kind kind = std::move(registry.kind("examplechip")).take();
  Runtime* runtime = std::move(registry.runtime(kind)).take();

  EXPECT_EQ(kind, Kind::FirstPlugin);
  EXPECT_EQ(runtime->count().value(), 2);
  EXPECT_EQ(runtime->describe(1), "Example chip 1");
  EXPECT_FALSE(runtime->lacks(Feature::Dmabuf).empty());
  EXPECT_EQ(runtime->host_allocate(7, 64).status().text(),
            "examplechip:7: host_allocate failed: no such device (2); see the messages of its "
            "runtime");
}

TEST(Registry, GoesOnWithoutAPluginThatIsStaleOrMissing) {
  const Plugins named(HCCOMM_FAKES "/plugins/libstale_plugin.so," HCCOMM_FAKES
                                   "/plugins/libexample_plugin.so,/nowhere/libchip.so");
  Registry registry(kAbsent);
  std::vector<std::string> failures;

  const auto answers = registry.survey(&failures);

  ASSERT_EQ(answers.size(), 2u);  // cuda and examplechip
  EXPECT_NE(answers[1].runtime, nullptr);
  ASSERT_EQ(failures.size(), 2u);
  EXPECT_NE(failures[0].find("version 99"), std::string::npos) << failures[0];
  EXPECT_NE(failures[1].find("/nowhere/libchip.so cannot be loaded"), std::string::npos)
      << failures[1];
}

}  // namespace hccomm::device
