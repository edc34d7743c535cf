// SPDX-License-Identifier: Apache-2.0
//
// What every store promises, and what is special to each: the caller's, tcp and file.
#include "rendezvous/store.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "base/machine.hpp"
#include "base/unique_fd.hpp"
#include "rendezvous/tcp_server.hpp"
#include "rendezvous/tcp_store.hpp"
#include "support/stores.hpp"

using namespace hccomm;
using namespace hccomm::rendezvous;
using test::Folder;
using test::Place;
using test::soon;

namespace {

class EveryStore : public testing::TestWithParam<test::Make> {
 protected:
  std::unique_ptr<Place> place = GetParam().make();
};

TEST_P(EveryStore, GivesWhatAnotherRankHasSet) {
  auto zero = place->open(0), one = place->open(1);

  EXPECT_TRUE(zero->set("world/job", "abc").ok());

  EXPECT_EQ(one->get("world/job", soon()).take(), "abc");
  EXPECT_EQ(zero->get("world/job", soon()).take(), "abc");
}

TEST_P(EveryStore, WaitsForAValueThatComesLater) {
  auto zero = place->open(0), one = place->open(1);
  std::string got;

  std::thread waiter([&] { got = one->get("late", soon()).take(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_TRUE(zero->set("late", "here").ok());
  waiter.join();

  EXPECT_EQ(got, "here");
}

TEST_P(EveryStore, SaysTimeoutForAKeyThatNobodySetsAndGoesOn) {
  auto zero = place->open(0);

  const auto nothing = zero->get("never", Deadline::after(Seconds(0.02)));
  const auto looked = zero->get("never", Deadline::after(Seconds(0)));

  EXPECT_EQ(nothing.status().code(), Code::Timeout);
  EXPECT_NE(nothing.status().text().find("never"), std::string::npos);
  EXPECT_EQ(looked.status().code(), Code::Timeout);
  EXPECT_TRUE(zero->set("never", "after all").ok());
  EXPECT_EQ(zero->get("never", Deadline::after(Seconds(0))).take(), "after all");
}

TEST_P(EveryStore, KeepsTheLastOfTwoValues) {
  auto zero = place->open(0), one = place->open(1);

  EXPECT_TRUE(zero->set("key", "first, and longer").ok());
  EXPECT_TRUE(one->set("key", "second").ok());

  EXPECT_EQ(zero->get("key", soon()).take(), "second");
}

TEST_P(EveryStore, CarriesEmptyAndLargeValuesOfAnyBytes) {
  auto zero = place->open(0), one = place->open(1);
  std::string large(3'000'000, '\0');
  for (std::size_t each = 0; each < large.size(); ++each) large[each] = static_cast<char>(each * 7);

  EXPECT_TRUE(zero->set("empty", "").ok());
  EXPECT_TRUE(zero->set("large", large).ok());

  EXPECT_EQ(one->get("empty", soon()).take(), "");
  EXPECT_EQ(one->get("large", soon()).take(), large);
}

TEST_P(EveryStore, TellsKeysOfAnyTextApart) {
  auto zero = place->open(0), one = place->open(1);
  std::vector<std::string> keys{"a/b",
                                "a%2fb",
                                "a_b",
                                "..",
                                ".",
                                "A/b",
                                "\xc3\xa4",
                                "a b\n",
                                std::string(256, '/'),
                                std::string(255, '/') + "x"};

  for (const std::string& key : keys) EXPECT_TRUE(zero->set(key, "value of " + key).ok()) << key;

  for (const std::string& key : keys) EXPECT_EQ(one->get(key, soon()).take(), "value of " + key);
}

TEST_P(EveryStore, RefusesKeysAndValuesOutsideTheBounds) {
  auto zero = place->open(0);

  EXPECT_EQ(zero->set("", "x").code(), Code::InvalidArgument);
  EXPECT_EQ(zero->set(std::string(257, 'k'), "x").code(), Code::InvalidArgument);
  EXPECT_EQ(zero->set("key", std::string(kMaxValue + 1, 'x')).code(), Code::InvalidArgument);
  EXPECT_EQ(zero->get("", soon()).status().code(), Code::InvalidArgument);
}

TEST_P(EveryStore, ServesManyRanksAtOnce) {
  constexpr int kRanks = 12;
  auto zero = place->open(0);
  std::vector<std::thread> ranks;
  std::atomic<int> right = 0;

  for (int rank = 1; rank < kRanks; ++rank) {
    ranks.emplace_back([&, rank] {
      auto mine = place->open(rank);
      EXPECT_TRUE(mine->set(text("rank/", rank), text("I am ", rank)).ok());
      if (mine->get("all", soon()).take() == "done") ++right;
      mine->finish(soon());
    });
  }
  for (int rank = 1; rank < kRanks; ++rank) {
    EXPECT_EQ(zero->get(text("rank/", rank), soon()).take(), text("I am ", rank));
  }
  EXPECT_TRUE(zero->set("all", "done").ok());
  zero->finish(soon());
  for (std::thread& rank : ranks) rank.join();

  EXPECT_EQ(right, kRanks - 1);
}

INSTANTIATE_TEST_SUITE_P(Stores, EveryStore, testing::ValuesIn(test::all_places()),
                         [](const auto& each) { return std::string(each.param.name); });

// ---- urls
// ----------------------------------------------------------------------------------------

TEST(OpenStore, RefusesWhatIsNoPlaceToMeetAt) {
  for (const char* url : {"",
                          "tcp",
                          "tcp://",
                          "tcp://host",
                          "tcp://host:",
                          "tcp://host:0",
                          "tcp://host:65536",
                          "tcp://host:80x",
                          "tcp://:80",
                          "tcp://::1:80",
                          "tcp://[::1]",
                          "tcp://host:80/",
                          "file://",
                          "file:///",
                          "file://relative/path",
                          "file:/one",
                          "udp://host:80",
                          "tcp://a b:80",
                          "tcp://host:-1",
                          "/tmp/dir"}) {
    const auto store = open_store(url, 0, soon());

    ASSERT_FALSE(store.ok()) << url;
    EXPECT_EQ(store.status().code(), Code::InvalidArgument) << url;
    EXPECT_NE(store.status().text().find("tcp://host:port"), std::string::npos) << url;
  }
  EXPECT_EQ(open_store("tcp://host:80", -1, soon()).status().code(), Code::InvalidArgument);
}

// ---- the caller's
// --------------------------------------------------------------------------------

TEST(CallbackStore, ReportsTheFailureOfTheCallersStore) {
  auto store = callback_store(
      {nullptr, [](void*, const char*, const void*, std::size_t) { return 7; },
       [](void*, const char*, double, void*, std::size_t) -> std::int64_t { return -2; }});

  EXPECT_EQ(store->set("key", "x").code(), Code::System);
  EXPECT_EQ(store->get("key", soon()).status().code(), Code::System);
}

TEST(CallbackStore, NeverAsksForTimeoutZeroNorBelievesAHugeSize) {
  double asked = 0;
  auto store = callback_store(
      {&asked, [](void*, const char*, const void*, std::size_t) { return 0; },
       [](void* context, const char*, double timeout, void*, std::size_t) -> std::int64_t {
         *static_cast<double*>(context) = timeout;
         return std::int64_t{1} << 60;
       }});

  EXPECT_EQ(store->get("key", Deadline::after(Seconds(-5))).status().code(), Code::System);
  EXPECT_GT(asked, 0);
}

TEST(CallbackStore, NeedsBothFunctions) { EXPECT_THROW(callback_store({}), Error); }

// ---- tcp
// -----------------------------------------------------------------------------------------

TEST(TcpStore, LetsRanksComeBeforeRankZero) {
  const test::Port port;
  const std::string url = text("tcp://127.0.0.1:", port.number);
  std::string got;

  std::thread early([&] {
    auto one = open_store(url, 1, soon()).take();
    got = one->get("key", soon()).take();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  auto zero = open_store(url, 0, soon()).take();
  EXPECT_TRUE(zero->set("key", "value").ok());
  early.join();

  EXPECT_EQ(got, "value");
}

TEST(TcpStore, MeetsOverIPv6) {
  auto started = TcpServer::start({"::1", 0});
  if (!started.ok()) GTEST_SKIP() << "no IPv6 here: " << started.status().text();
  auto server = std::move(started).take();

  auto one = open_store(describe(server->bound()), 1, soon()).take();

  EXPECT_NE(describe(server->bound()).find("tcp://[::1]:"), std::string::npos);
  EXPECT_TRUE(one->set("key", "value").ok());
  EXPECT_EQ(one->get("key", soon()).take(), "value");
}

TEST(TcpStore, NamesThePortThatIsInUse) {
  auto server = TcpServer::start({"127.0.0.1", 0}).take();

  const auto second = open_store(describe(server->bound()), 0, soon());

  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::Unavailable);
  EXPECT_NE(second.status().text().find(text("port ", server->bound().port, " is in use")),
            std::string::npos);
}

TEST(TcpStore, SaysThatRankZeroMustRunAtItsAddress) {
  const auto store = open_store("tcp://192.0.2.1:4000", 0, soon());

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::InvalidArgument);
  EXPECT_NE(store.status().text().find("no address of this machine"), std::string::npos);
}

TEST(TcpStore, NamesTheAddressWhereNobodyAnswers) {
  const test::Port port;

  const auto store =
      open_store(text("tcp://127.0.0.1:", port.number), 1, Deadline::after(Seconds(0.1)));

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::Timeout);
  EXPECT_EQ(store.status().rank(), 0);
  EXPECT_NE(store.status().text().find(text("tcp://127.0.0.1:", port.number)), std::string::npos);
}

TEST(TcpStore, SaysThatSomethingElseAnswersThere) {
  const test::Port port;
  ASSERT_EQ(listen(port.fd.get(), 4), 0);
  std::thread web([&] {
    const UniqueFd guest(accept(port.fd.get(), nullptr, nullptr));
    const std::string page = "HTTP/1.1 400 Bad Request\r\n\r\n";
    EXPECT_GT(send(guest.get(), page.data(), page.size(), MSG_NOSIGNAL), 0);
  });

  const auto store = open_store(text("tcp://127.0.0.1:", port.number), 1, soon());
  web.join();

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::Unavailable);
  EXPECT_NE(store.status().text().find("no hccomm store"), std::string::npos);
}

TEST(TcpStore, EndsAWaitWhenRankZeroLeaves) {
  auto server = TcpServer::start({"127.0.0.1", 0}).take();
  auto one = open_tcp_store(server->bound(), 1, soon()).take();
  Status status;

  std::thread waiter([&] { status = one->get("never", soon()).status(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  server.reset();
  waiter.join();

  EXPECT_EQ(status.code(), Code::PeerLost);
  EXPECT_EQ(status.rank(), 0);
}

TEST(TcpStore, WaitsInFinishUntilTheOthersHaveReadTheirs) {
  const test::Port port;
  const std::string url = text("tcp://127.0.0.1:", port.number);
  auto zero = open_store(url, 0, soon()).take();
  auto one = open_store(url, 1, soon()).take();
  EXPECT_TRUE(zero->set("key", "value").ok());
  std::string got;

  std::thread slow([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    got = one->get("key", soon()).take();
    one->finish(soon());
  });
  zero->finish(soon());
  slow.join();

  EXPECT_EQ(got, "value");
}

// ---- file
// ----------------------------------------------------------------------------------------

TEST(FileStore, LeavesNothingBehindWhenAllHaveFinished) {
  const Folder folder;
  const std::string path = folder.path + "/job-1";
  auto zero = open_store("file://" + path, 0, soon()).take();
  auto one = open_store("file://" + path + "/", 1, soon()).take();
  EXPECT_TRUE(zero->set("key", "value").ok());
  EXPECT_TRUE(one->set(std::string(256, '/'), "value").ok());
  struct stat about = {};
  ASSERT_EQ(stat(path.c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0700u);

  std::thread leaver([&] {
    EXPECT_EQ(one->get("key", soon()).take(), "value");
    one->finish(soon());
  });
  zero->finish(soon());
  leaver.join();

  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(FileStore, LeavesADirectoryThatItWasGivenEmpty) {
  const Folder folder;

  open_store("file://" + folder.path, 0, soon()).take()->finish(soon());

  EXPECT_TRUE(std::filesystem::exists(folder.path));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

TEST(FileStore, WritesFilesThatOnlyTheUserCanRead) {
  const Folder folder;
  auto zero = open_store("file://" + folder.path, 0, soon()).take();

  EXPECT_TRUE(zero->set("key", "value").ok());

  for (const auto& entry : std::filesystem::directory_iterator(folder.path)) {
    struct stat about = {};
    ASSERT_EQ(stat(entry.path().c_str(), &about), 0);
    EXPECT_EQ(about.st_mode & 0777, 0600u) << entry.path();
  }
}

TEST(FileStore, RefusesADirectoryThatOthersCanEnter) {
  const Folder folder;
  chmod(folder.path.c_str(), 0755);

  const auto store = open_store("file://" + folder.path, 0, soon());

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::InvalidArgument);
  EXPECT_NE(store.status().text().find("chmod 700"), std::string::npos);
}

TEST(FileStore, RefusesADirectoryThatAnEarlierJobHasLeft) {
  const Folder folder;
  auto first = open_store("file://" + folder.path, 0, soon()).take();

  const auto second = open_store("file://" + folder.path, 0, soon());

  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::InvalidArgument);
  EXPECT_NE(second.status().text().find("is not empty"), std::string::npos);
}

TEST(FileStore, DoesNotJoinWhatADeadJobHasLeft) {
  const Folder folder;
  const pid_t dead = fork();
  if (dead == 0) _exit(0);
  waitpid(dead, nullptr, 0);
  test::write_file(folder.path + "/open", text(machine_id(), "\n", dead, "\n"));
  test::write_file(folder.path + "/k.world%2fjob", "stale");

  const auto store = open_store("file://" + folder.path, 1, Deadline::after(Seconds(0.05)));

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::Timeout);
  EXPECT_NE(store.status().text().find("job that died"), std::string::npos);
}

TEST(FileStore, NamesTheDirectoryThatRankZeroDoesNotOpen) {
  const Folder folder;

  const auto store =
      open_store("file://" + folder.path + "/job", 3, Deadline::after(Seconds(0.05)));

  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), Code::Timeout);
  EXPECT_NE(store.status().text().find(folder.path + "/job"), std::string::npos);
}

TEST(FileStore, EndsAWaitWhenRankZeroLeaves) {
  const Folder folder;
  auto zero = open_store("file://" + folder.path + "/job", 0, soon()).take();
  auto one = open_store("file://" + folder.path + "/job", 1, soon()).take();

  zero->finish(Deadline::after(Seconds(0)));
  const auto value = one->get("key", soon());

  ASSERT_FALSE(value.ok());
  EXPECT_EQ(value.status().code(), Code::PeerLost);
  EXPECT_EQ(one->set("key", "value").code(), Code::PeerLost);
}

}  // namespace
