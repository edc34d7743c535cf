// SPDX-License-Identifier: Apache-2.0
//
// The registry of device runtimes: kinds by name, lazy probes, plug-in tables that are refused.
#include "device/registry.hpp"

#include <gtest/gtest.h>

#include "device/plugin.hpp"

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

}  // namespace hccomm::device
