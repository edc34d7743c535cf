// SPDX-License-Identifier: Apache-2.0
//
// The shm transport as a whole: whom it refuses and why, a peer that has ended, the settings.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>

#include "base/machine.hpp"
#include "support/inbox.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {
namespace {

Deadline soon() { return Deadline::after(Seconds(20)); }

class Rank final : public Acceptor {
 public:
  explicit Rank(char id) {
    card.uuid = std::string(16, id);
    card.host = host_id();
    card.machine = machine_id();
    card.pid = getpid();
    transport = shm_transport().open({std::string(16, 'j'), "", card.uuid}, *this).take();
    card.addresses = {{"shm", transport->address()}};
  }
  ~Rank() { transport->stop(); }
  bool reserve(const std::string&) override { return true; }
  void accepted(Accepted peer) override {
    const std::lock_guard lock(mutex_);
    link_ = std::move(peer.link);
    came_.notify_all();
  }
  void abandoned(const std::string&) override {}
  std::unique_ptr<Link> take() {
    std::unique_lock lock(mutex_);
    came_.wait_for(lock, Seconds(20), [&] { return link_ != nullptr; });
    return std::move(link_);
  }

  Card card;
  std::unique_ptr<Transport> transport;

 private:
  std::mutex mutex_;  // guards link_
  std::condition_variable came_;
  std::unique_ptr<Link> link_;
};

TEST(Shm, RefusesOtherHostsAndMachinesWithTheReason) {
  const Rank rank('a');
  Card emulated = rank.card;
  emulated.host = "nodeB";
  Card container = rank.card;
  container.machine = "elsewhere";
  Card odd = rank.card;
  odd.addresses = {{"shm", "short"}};

  EXPECT_EQ(rank.transport->refuses(rank.card, rank.card), "");
  EXPECT_NE(rank.transport->refuses(rank.card, emulated).find("nodeB"), std::string::npos);
  EXPECT_NE(rank.transport->refuses(rank.card, container).find("namespace"), std::string::npos);
  EXPECT_NE(rank.transport->refuses(rank.card, odd), "");
}

TEST(Shm, APeerThatHasEndedIsPeerLost) {
  Rank a('a');
  Card gone;
  {
    const Rank b('b');
    gone = b.card;
  }

  const auto link = a.transport->connect(gone, soon());

  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.status().code(), Code::PeerLost) << link.status().text();
}

TEST(Shm, AProcessOfAnotherUserIsTurnedAway) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can start a process of another user";
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();  // before there are threads
  if (child == 0) {
    Card peer;
    std::string address(std::size_t{39}, 0);
    const auto got = read(ends[0], address.data(), address.size());
    if (got != static_cast<ssize_t>(address.size()) || setuid(65534) != 0) _exit(2);
    peer.uuid = std::string(16, 's');
    peer.addresses = {{"shm", address}};
    Rank stranger('x');
    const auto link = stranger.transport->connect(peer, soon());
    const bool refused = !link.ok() && link.status().text().find("user 0") != std::string::npos;
    _exit(refused ? 0 : 1);
  }
  const Rank server('s');
  const std::string address = server.transport->address();
  ASSERT_EQ(write(ends[1], address.data(), address.size()), static_cast<ssize_t>(address.size()));
  close(ends[0]);
  close(ends[1]);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);

  EXPECT_EQ(status, 0);
}

TEST(Shm, SettingsTurnSingleCopyOffAndSizeTheRing) {
  ASSERT_EQ(setenv("HCCOMM_CMA", "off", 1), 0);
  ASSERT_EQ(setenv("HCCOMM_SHM_BYTES", "4M", 1), 0);
  Rank a('a');
  Rank b('b');
  ASSERT_EQ(unsetenv("HCCOMM_CMA"), 0);
  ASSERT_EQ(unsetenv("HCCOMM_SHM_BYTES"), 0);

  auto dialed = a.transport->connect(b.card, soon());
  ASSERT_TRUE(dialed.ok()) << dialed.status().text();
  const auto taken = b.take();
  ASSERT_NE(taken, nullptr);
  const test::Frame frame = test::pattern(3 << 20, 1);
  Outgoing out = frame.outgoing();

  EXPECT_EQ(dialed.value()->describe(), "shm (ring)");
  EXPECT_EQ(dialed.value()->send(out), Progress::Done) << "a ring of 4 MiB takes 3 MiB at once";
}

TEST(Shm, ListensOnAnAbstractSocketOnly) {
  const Rank rank('a');
  std::ifstream sockets("/proc/net/unix");
  std::string line;
  std::string found;
  while (std::getline(sockets, line)) {
    if (line.find(rank.transport->address()) != std::string::npos) found = line;
  }

  EXPECT_NE(found.find(" @hccomm-"), std::string::npos) << found;
}

}  // namespace
}  // namespace hccomm::transport
