// SPDX-License-Identifier: Apache-2.0
//
// A host's own job key: who gets it from rank 0, and what those are told who cannot.
#include "rendezvous/key_door.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace hccomm::rendezvous {
namespace {

const std::string kKey(32, 'k');
constexpr uid_t kNobody = 65534;

Deadline soon() { return Deadline::after(Seconds(20)); }

TEST(KeyDoor, GivesTheKeyToEveryProcessOfItsUser) {
  const auto door = KeyDoor::open(kKey).take();

  for (int each = 0; each < 3; ++each) EXPECT_EQ(fetch_key(door->name(), soon()).take(), kKey);
}

TEST(KeyDoor, HasAnotherNameEachTime) {
  const auto one = KeyDoor::open(kKey).take(), two = KeyDoor::open(kKey).take();

  EXPECT_EQ(one->name().size(), 32u);
  EXPECT_NE(one->name(), two->name());
}

TEST(KeyDoor, IsShutOnceItIsGone) {
  const std::string name = KeyDoor::open(kKey).take()->name();

  const auto key = fetch_key(name, soon());

  ASSERT_FALSE(key.ok());
  EXPECT_EQ(key.status().code(), Code::Unavailable);
  EXPECT_NE(key.status().text().find("HCCOMM_KEY_FILE"), std::string::npos) << key.status().text();
}

TEST(KeyDoor, ANameThatIsNoneIsRefused) {
  EXPECT_EQ(fetch_key("", soon()).status().code(), Code::Unavailable);
  EXPECT_EQ(fetch_key(std::string(500, 'x'), soon()).status().code(), Code::Unavailable);
}

// Runs `what` in a child of another user; its exit status.
template <typename What>
int as_nobody(What what) {
  const pid_t child = fork();
  if (child == 0) _exit(setresuid(kNobody, kNobody, kNobody) == 0 ? what() : 99);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(KeyDoor, AnotherUserGetsNothing) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const auto door = KeyDoor::open(kKey).take();

  const int status = as_nobody([&] {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, door->name().data(), door->name().size());
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval limit{20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const auto bytes =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + door->name().size());
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), bytes) != 0) return 2;
    char got[32];
    return recv(fd, got, sizeof got, 0) <= 0 ? 0 : 1;  // closed without a byte
  });

  EXPECT_EQ(status, 0);
  EXPECT_EQ(fetch_key(door->name(), soon()).take(), kKey);
}

TEST(KeyDoor, AKeyFromAnotherUserIsNotTaken) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const auto door = KeyDoor::open(kKey).take();

  const int status = as_nobody([&] {
    const auto key = fetch_key(door->name(), soon());
    return !key.ok() && key.status().text().find("in its place") != std::string::npos ? 0 : 1;
  });

  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace hccomm::rendezvous
