// SPDX-License-Identifier: Apache-2.0
//
// What jobs that were killed while they met leave in the user's folder, and who takes it away.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/machine.hpp"
#include "rendezvous/store.hpp"
#include "support/stores.hpp"

using namespace hccomm;
using namespace hccomm::rendezvous;
using test::Folder;
using test::soon;

TEST(FileStore, SweepsWhatKilledJobsHaveLeftInTheUsersFolder) {
  Folder base;
  const std::string home = base.path + text("/hccomm-", geteuid());
  const pid_t gone = fork();
  if (gone == 0) _exit(0);
  waitpid(gone, nullptr, 0);
  const auto leave = [&](const char* name, pid_t pid) {
    std::filesystem::create_directories(home + "/" + name);
    std::filesystem::permissions(home + "/" + name, std::filesystem::perms::owner_all);
    test::write_file(home + "/" + name + "/m.1.x", text(machine_id(), "\n", pid, "\n"));
    test::write_file(home + "/" + name + "/k.world%2fjob", "value");
  };
  std::filesystem::create_directories(home);
  std::filesystem::permissions(home, std::filesystem::perms::owner_all);
  leave("dead", gone);
  leave("alive", getpid());

  open_store("file://" + home + "/next", 0, soon()).take()->finish(soon());

  EXPECT_FALSE(std::filesystem::exists(home + "/dead"));
  EXPECT_TRUE(std::filesystem::exists(home + "/alive/k.world%2fjob"));
}
