// SPDX-License-Identifier: Apache-2.0
//
// Which machine this is: ids that are stable within it, and a count of cores that obeys affinity.
#include "base/machine.hpp"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

namespace hccomm {
namespace {

TEST(Machine, HasOneIdInAProcessAndItsChild) {
  const std::string here = machine_id();

  const pid_t child = fork();
  if (child == 0) _exit(machine_id() == here ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);

  EXPECT_EQ(status, 0);
  EXPECT_NE(here.find("/net "), std::string::npos);
}

TEST(Machine, HostIdIsOverriddenByTheSetting) {
  ASSERT_EQ(unsetenv("HCCOMM_HOST"), 0);
  const std::string own = host_id();

  ASSERT_EQ(setenv("HCCOMM_HOST", "nodeA", 1), 0);
  const std::string named = host_id();
  ASSERT_EQ(unsetenv("HCCOMM_HOST"), 0);

  EXPECT_EQ(named, "nodeA");
  EXPECT_FALSE(own.empty());
  EXPECT_EQ(host_id(), own);
}

TEST(Machine, HasSomeMemoryLeftAndNotMoreThanThereIs) {
  const std::uint64_t left = available_memory();

  EXPECT_GT(left, 1u << 20);
  const auto pages = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES));
  EXPECT_LE(left, pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
}

TEST(Machine, CountsOneCoreWhenPinnedToOne) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  const int all = available_cores();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);

  const int pinned = available_cores();
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);

  EXPECT_EQ(pinned, 1);
  EXPECT_GE(all, 1);
  EXPECT_LE(all, CPU_COUNT(&before));
}

}  // namespace
}  // namespace hccomm
