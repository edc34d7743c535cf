// SPDX-License-Identifier: Apache-2.0
//
// What is special to the link of transport/shm: rings exchanged over a socket, sleep without lost
// wake-ups, death of the peer in every shape, single copy, and nothing left behind.
#include "transport/shm/shm_link.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "support/inbox.hpp"
#include "transport/shm/exchange.hpp"
#include "transport/shm/sharing.hpp"

namespace hccomm::transport::shm {
namespace {

using test::Frame;
using test::pattern;
using test::Recorder;

Deadline soon() { return Deadline::after(Seconds(20)); }

struct Sockets {
  Sockets() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) abort();
    a.reset(ends[0]);
    b.reset(ends[1]);
  }
  UniqueFd a, b;
};

Result<std::unique_ptr<Link>> link_over(UniqueFd socket, pid_t peer, const Wishes& wishes) {
  auto agreed = exchange(socket.get(), peer, wishes, soon());
  if (!agreed) return agreed.status();
  return make_link(std::move(socket), peer, std::move(agreed).value());
}

// Two links between two threads of this process.
struct Pair {
  explicit Pair(const Wishes& wishes = {}) {
    Sockets sockets;
    std::thread other([&] { b = link_over(std::move(sockets.b), getpid(), wishes).take(); });
    a = link_over(std::move(sockets.a), getpid(), wishes).take();
    other.join();
  }
  std::unique_ptr<Link> a, b;
};

bool readable(int fd, int timeout_ms) {
  pollfd entry = {fd, POLLIN, 0};
  return ::poll(&entry, 1, timeout_ms) == 1;
}

// Sleeps as the engine does; false when nothing woke it for 20 seconds.
bool doze(Link& link) {
  if (!link.sleeping(true)) return true;
  const bool woken = readable(link.fd(), 20000);
  link.sleeping(false);
  return woken;
}

void send_all(Link& link, const Frame& frame) {
  Outgoing out = frame.outgoing();
  while (link.send(out) == Progress::Again) {
    link.flush();
    if (!doze(link)) abort();
  }
  link.flush();
}

// One frame, or none once the link is broken.
std::optional<Frame> receive(Link& link, Recorder& inbox) {
  while (inbox.frames.empty()) {
    if (!link.poll(inbox, 1)) return std::nullopt;
    if (inbox.frames.empty() && !link.pending() && !doze(link)) abort();
  }
  Frame frame = std::move(inbox.frames.front());
  inbox.frames.erase(inbox.frames.begin());
  return frame;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

TEST(ShmLink, CarriesFramesBothWaysAndSaysHow) {
  Pair pair;
  Recorder at_a(true);
  Recorder at_b(false);

  send_all(*pair.a, pattern(100, 1));
  send_all(*pair.b, pattern(100000, 2));

  EXPECT_EQ(receive(*pair.b, at_b), pattern(100, 1));
  EXPECT_EQ(receive(*pair.a, at_a), pattern(100000, 2));
  EXPECT_EQ(pair.a->describe(), pair.a->pulls() ? "shm (single copy)" : "shm (ring)");
}

TEST(ShmLink, SingleCopyIsOffWhenEitherSideForbidsIt) {
  Pair pair({std::size_t{1} << 20, false});

  EXPECT_FALSE(pair.a->pulls());
  EXPECT_FALSE(pair.b->pulls());
  EXPECT_EQ(pair.a->describe(), "shm (ring)");
}

TEST(ShmLink, PullsThePeersMemoryAndRefusesWhatIsNotThere) {
  Pair pair;
  if (!pair.a->pulls()) GTEST_SKIP() << "process_vm_readv is refused here";
  const Frame source = pattern(3'000'001, 5);
  std::vector<std::byte> copy(source.payload.size());

  const auto address = reinterpret_cast<std::uintptr_t>(source.payload.data());
  const Status read = pair.a->pull(7, copy.data(), address, copy.size());
  const Status wild = pair.a->pull(7, copy.data(), 16, copy.size());

  EXPECT_TRUE(read.ok()) << read.text();
  EXPECT_EQ(copy, source.payload);
  EXPECT_EQ(wild.code(), Code::System) << wild.text();
}

wire::Header large_message() {
  wire::Header header;
  header.type = wire::Type::Data;
  header.context = 3;
  header.sequence = 4;
  return header;
}

TEST(ShmLink, TheSenderWritesWhatTheReceiverExpects) {
  Pair pair;
  if (!pair.a->pulls()) GTEST_SKIP() << "process_vm_writev is refused here";
  const Frame source = pattern(3'000'001, 6);
  std::vector<std::byte> place(source.payload.size());
  std::uint64_t wrote = 1;

  const auto write = [&] {
    return pair.a->write(large_message(), source.payload.data(), place.size(), wrote).take();
  };
  EXPECT_EQ(write(), Progress::Again);
  EXPECT_EQ(wrote, 0u) << "nobody has said where";
  pair.b->expect(large_message(), place.data(), place.size());
  EXPECT_TRUE(pair.a->awaited(large_message(), place.size()));
  std::uint64_t sum = 0;
  Progress progress = Progress::Again;
  for (int piece = 0; piece < 100 && progress == Progress::Again; ++piece) {
    progress = write();
    sum += wrote;
  }

  EXPECT_EQ(progress, Progress::Done);
  EXPECT_EQ(sum, place.size());
  EXPECT_EQ(place, source.payload);
}

TEST(ShmLink, WhatLiesInSharedMemoryIsStoredThere) {
  Pair pair;
  if (!pair.a->pulls()) GTEST_SKIP() << "process_vm_writev is refused here";
  constexpr std::size_t kBytes = 3'000'001;
  const Frame source = pattern(kBytes, 9);
  const auto shared = shm::share(kBytes + 7).take();
  std::vector<std::byte> own(kBytes);
  wire::Header other = large_message();
  other.sequence = 5;
  pair.b->expect(large_message(), shared->data() + 7, kBytes);
  pair.b->expect(other, own.data(), kBytes);

  EXPECT_TRUE(pair.a->maps(large_message(), kBytes));
  EXPECT_FALSE(pair.a->maps(other, kBytes));
  EXPECT_TRUE(pair.a->shows(shared->data(), kBytes));
  EXPECT_FALSE(pair.a->shows(own.data(), kBytes));
  Progress progress = Progress::Again;
  for (int piece = 0; piece < 100 && progress == Progress::Again; ++piece) {
    std::uint64_t wrote = 0;
    progress = pair.a->write(large_message(), source.payload.data(), kBytes, wrote).take();
  }

  EXPECT_EQ(progress, Progress::Done);
  EXPECT_EQ(std::memcmp(shared->data() + 7, source.payload.data(), kBytes), 0);
}

TEST(ShmLink, NothingIsWrittenOnceItWasTakenBackOrTheLinkHasGone) {
  for (const bool whole_link : {false, true}) {
    Pair pair;
    if (!pair.a->pulls()) GTEST_SKIP() << "process_vm_writev is refused here";
    const Frame source = pattern(1 << 20, 7);
    std::vector<std::byte> place(source.payload.size());
    pair.b->expect(large_message(), place.data(), place.size());
    if (whole_link) {
      pair.b.reset();
    } else {
      pair.b->reclaim(large_message());
    }
    std::uint64_t wrote = 1;

    EXPECT_TRUE(pair.a->write(large_message(), source.payload.data(), place.size(), wrote).ok());

    EXPECT_EQ(wrote, 0u);
    EXPECT_EQ(place, std::vector<std::byte>(place.size()));
  }
}

TEST(ShmLink, APlaceThatCannotBeWrittenIsAnErrorWithTheRemedy) {
  Pair pair;
  if (!pair.a->pulls()) GTEST_SKIP() << "process_vm_writev is refused here";
  const Frame source = pattern(100'000, 8);
  void* place = mmap(nullptr, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(place, MAP_FAILED);
  pair.b->expect(large_message(), static_cast<std::byte*>(place), 100'000);
  std::uint64_t wrote = 1;

  const auto outcome = pair.a->write(large_message(), source.payload.data(), 100'000, wrote);

  ASSERT_FALSE(outcome.ok());
  EXPECT_NE(outcome.status().text().find("HCCOMM_CMA=off"), std::string::npos);
  EXPECT_EQ(wrote, 0u);
  pair.b->reclaim(large_message());  // nobody writes there any more: it does not wait
  munmap(place, 1 << 20);
}

TEST(ShmLink, AWriterAsleepForRoomIsWokenByTheReader) {
  Pair pair({kMinAreaBytes, false});
  constexpr int kFrames = 200;
  std::thread writer([&] {
    for (int i = 0; i < kFrames; ++i) send_all(*pair.a, pattern(70000, i));
  });

  Recorder inbox(false);
  for (int i = 0; i < kFrames; ++i) ASSERT_EQ(receive(*pair.b, inbox), pattern(70000, i));
  writer.join();
}

// Both sides sleep and spin at random while one small frame goes to and fro: a lost wake-up would
// leave both asleep.
TEST(ShmLink, NoWakeUpIsLostInAHundredThousandRounds) {
  constexpr int kRounds = 100000;
  Pair pair;
  std::atomic<int> lost{0};
  const auto play = [&](Link& link, bool serve, unsigned seed) {
    std::minstd_rand random(seed);
    Recorder inbox(false);
    for (int round = 0; round < kRounds && lost == 0; ++round) {
      if (serve) send_all(link, pattern(8, round));
      for (unsigned spin = random() % 64; spin > 0 && !link.pending(); --spin) {
      }
      while (inbox.frames.empty() && lost == 0) {
        if (!link.poll(inbox, 1 << 16) ||
            !(link.pending() || !inbox.frames.empty() || doze(link))) {
          ++lost;
        }
      }
      if (lost == 0) inbox.frames.clear();
      if (!serve) send_all(link, pattern(8, round));
    }
  };

  std::thread other([&] { play(*pair.b, false, 1); });
  play(*pair.a, true, 2);
  other.join();

  EXPECT_EQ(lost, 0);
}

TEST(ShmLink, WhatWasSentBeforeTheCloseStillArrives) {
  Pair pair;
  for (int i = 0; i < 5; ++i) send_all(*pair.a, pattern(50, i));
  pair.a.reset();

  Recorder inbox(false);
  for (int i = 0; i < 5; ++i) ASSERT_EQ(receive(*pair.b, inbox), pattern(50, i));

  EXPECT_EQ(receive(*pair.b, inbox), std::nullopt);
  EXPECT_EQ(pair.b->status().code(), Code::PeerLost) << pair.b->status().text();
  const Frame late = pattern(1, 1);
  Outgoing out = late.outgoing();
  EXPECT_EQ(pair.b->send(out), Progress::Broken);
}

TEST(ShmLink, ADamagedRingBreaksTheLinkWithIntegrity) {
  Sockets sockets;
  Exchanged at_a;
  Exchanged at_b;
  std::thread other([&] { at_b = exchange(sockets.b.get(), getpid(), {}, soon()).take(); });
  at_a = exchange(sockets.a.get(), getpid(), {}, soon()).take();
  other.join();
  const std::uint64_t control = std::uint64_t{1} << 32 | 77;
  std::memcpy(at_a.mine.data() + kHeadBytes, &control, sizeof control);
  const auto link = make_link(std::move(sockets.b), getpid(), std::move(at_b)).take();

  Recorder inbox(false);

  EXPECT_FALSE(link->poll(inbox, 1));
  EXPECT_EQ(link->status().code(), Code::Integrity);
}

// The peer as a process of its own: it sends one frame, then is killed.
class ShmLinkToAProcess : public testing::Test {
 protected:
  void start(bool with_forked_child) {
    Sockets sockets;
    const int theirs = sockets.b.release();  // a UniqueFd would be closed by fork()
    const pid_t parent = getpid();
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      sockets.a.reset();
      auto link = link_over(UniqueFd(theirs), parent, {}).take();
      // The grandchild inherits the socket and the ring, and outlives its parent.
      if (with_forked_child && fork() == 0) {
        char byte;
        close(pipe_ends[1]);
        [[maybe_unused]] const auto end = read(pipe_ends[0], &byte, 1);  // until the test is over
        _exit(0);
      }
      send_all(*link, pattern(1000, 9));
      for (;;) pause();
    }
    close(pipe_ends[0]);
    end_.reset(pipe_ends[1]);
    close(theirs);
    link_ = link_over(std::move(sockets.a), child_, {}).take();
    const Deadline deadline = soon();
    while (!link_->pending() && !deadline.passed()) usleep(100);
  }
  void kill_peer() {
    ASSERT_EQ(kill(child_, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child_, &status, 0), child_);
  }

  pid_t child_ = -1;
  UniqueFd end_;  // a forked child of the peer lives until this is closed
  std::unique_ptr<Link> link_;
  Recorder inbox_{false};
};

TEST_F(ShmLinkToAProcess, ASleeperLearnsOfTheKillAfterItsLastFrame) {
  start(false);
  kill_peer();

  EXPECT_EQ(receive(*link_, inbox_), pattern(1000, 9));
  EXPECT_EQ(receive(*link_, inbox_), std::nullopt);
  EXPECT_EQ(link_->status().code(), Code::PeerLost) << link_->status().text();
}

TEST_F(ShmLinkToAProcess, ASpinnerLearnsOfTheKillThoughAForkedChildLives) {
  start(true);
  ASSERT_EQ(receive(*link_, inbox_), pattern(1000, 9));
  kill_peer();

  const Deadline deadline = soon();
  while (!link_->pending() && !deadline.passed()) {
  }

  EXPECT_FALSE(link_->poll(inbox_, 1));
  EXPECT_EQ(link_->status().code(), Code::PeerLost) << link_->status().text();
}

TEST_F(ShmLinkToAProcess, ASleeperLearnsOfTheKillThoughAForkedChildLives) {
  start(true);
  ASSERT_EQ(receive(*link_, inbox_), pattern(1000, 9));
  kill_peer();

  EXPECT_EQ(receive(*link_, inbox_), std::nullopt);
}

TEST_F(ShmLinkToAProcess, APullFromADeadProcessIsPeerLost) {
  start(false);
  if (!link_->pulls()) GTEST_SKIP() << "process_vm_readv is refused here";
  kill_peer();
  std::uint64_t word = 0;

  const Status read = link_->pull(7, &word, reinterpret_cast<std::uintptr_t>(&word), sizeof word);

  EXPECT_EQ(read.code(), Code::PeerLost) << read.text();
}

TEST(ShmExchange, ReportsThePeerThatLeavesInTheMiddle) {
  Sockets sockets;
  sockets.b.reset();

  const auto agreed = exchange(sockets.a.get(), getpid(), {}, soon());

  ASSERT_FALSE(agreed.ok());
  EXPECT_EQ(agreed.status().code(), Code::PeerLost) << agreed.status().text();
}

TEST(ShmExchange, GivesUpAtItsDeadline) {
  Sockets sockets;

  const auto agreed = exchange(sockets.a.get(), getpid(), {}, Deadline::after(Seconds(0.05)));

  ASSERT_FALSE(agreed.ok());
  EXPECT_EQ(agreed.status().code(), Code::Timeout);
}

TEST(ShmExchange, CommonsAreUsedWhereThePeerSeesThem) {
  Sockets sockets;
  Wishes wishes;
  wishes.commons = Commons::make().take();
  Exchanged at_a, at_b;
  std::thread other([&] { at_b = exchange(sockets.b.get(), getpid(), {}, soon()).take(); });
  at_a = exchange(sockets.a.get(), getpid(), wishes, soon()).take();
  other.join();

  EXPECT_EQ(at_a.my_commons, wishes.commons);
  EXPECT_EQ(at_b.their_commons.size(), kCommonsBytes);
  EXPECT_EQ(at_b.my_commons, nullptr);  // b has none
  EXPECT_EQ(at_a.their_commons.size(), 0U);
  EXPECT_EQ(at_a.no_memory + at_b.no_memory, "");
}

TEST(ShmExchange, WithoutMemoryBothSidesAgreeOnNone) {
  ASSERT_EQ(setenv("HCCOMM_TEST_NO_MEMFD", "1", 1), 0);
  Pair pair;
  ASSERT_EQ(unsetenv("HCCOMM_TEST_NO_MEMFD"), 0);
  Recorder inbox(false);

  send_all(*pair.a, pattern(100000, 3));

  EXPECT_EQ(receive(*pair.b, inbox), pattern(100000, 3));
  EXPECT_NE(pair.a->describe().find("stream"), std::string::npos) << pair.a->describe();
  EXPECT_NE(pair.b->describe().find("stream"), std::string::npos) << pair.b->describe();
}

TEST(ShmSegment, RefusesMemoryWhoseSizeIsNotSealedOrNotAsAgreed) {
  const UniqueFd loose(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(loose.get(), 8192), 0);
  UniqueFd sealed;
  ASSERT_TRUE(Segment::make(8192, sealed).ok());

  EXPECT_EQ(Segment::map(loose, 8192).status().code(), Code::Integrity);
  EXPECT_EQ(Segment::map(sealed, 4096).status().code(), Code::Integrity);
  EXPECT_TRUE(Segment::map(sealed, 8192).ok());
  EXPECT_NE(ftruncate(sealed.get(), 4096), 0);
}

TEST(ShmLink, LeavesNoDescriptorAndNoFileBehind) {
  const auto shm_files = [] {
    std::vector<std::string> names;
    for (const auto& each : std::filesystem::directory_iterator("/dev/shm")) {
      if (each.path().filename().string().find("hccomm") != std::string::npos) {
        names.push_back(each.path());
      }
    }
    return names;
  };
  {
    const Pair warm;
  }
  const std::size_t before = open_descriptors();

  for (int i = 0; i < 10; ++i) {
    Pair pair;
    EXPECT_TRUE(shm_files().empty());
  }

  EXPECT_EQ(open_descriptors(), before);
  EXPECT_TRUE(shm_files().empty());
}

}  // namespace
}  // namespace hccomm::transport::shm
