// SPDX-License-Identifier: Apache-2.0
//
// Ranks that die while they have a store open: who waits hears of it, who comes instead goes on.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "rendezvous/meet.hpp"
#include "rendezvous/store.hpp"
#include "support/stores.hpp"

using namespace hccomm;
using namespace hccomm::rendezvous;
using test::Place;
using test::soon;

namespace {

class StoreThatSees : public testing::TestWithParam<test::Make> {
 protected:
  std::unique_ptr<Place> place = GetParam().make();
};

// A process that opens the store as `rank` and is killed with it open.
pid_t die_in_store(Place& place, int rank) {
  int ready[2];
  EXPECT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto store = place.open(rank);
    [[maybe_unused]] const auto told = write(ready[1], "x", 1);
    for (;;) pause();
  }
  char byte = 0;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  close(ready[1]);
  kill(child, SIGKILL);
  return child;
}

TEST_P(StoreThatSees, TellsRankZeroWhoDiedAndNobodyElse) {
  auto zero = place->open(0), one = place->open(1);

  const pid_t child = die_in_store(*place, 2);  // not reaped yet, as under a launcher
  const Status at_zero = zero->get("card/2", soon()).status();
  const Status at_one = one->get("book", Deadline::after(Seconds(0.3))).status();
  waitpid(child, nullptr, 0);

  EXPECT_EQ(at_zero.code(), Code::PeerLost) << at_zero.text();
  EXPECT_EQ(at_zero.rank(), 2) << at_zero.text();
  EXPECT_EQ(at_one.code(), Code::Timeout) << at_one.text();
  one->finish(soon());
  zero->finish(soon());  // the dead rank keeps nobody
}

TEST_P(StoreThatSees, TheRanksThatMeetAllLoseTheOneThatDied) {
  auto zero = place->open(0), one = place->open(1);
  const pid_t child = die_in_store(*place, 2);
  const auto meets = [](Store& store, int rank) {
    const auto job = agree_job(store, "world", rank, 3, {}, soon());
    if (!job) return job.status();
    transport::Card card;
    card.uuid.assign(16, static_cast<char>('a' + rank));
    return exchange_cards(store, "world", rank, 3, card, soon()).status();
  };
  Status at_one;

  std::thread other([&] { at_one = meets(*one, 1); });
  const Status at_zero = meets(*zero, 0);
  other.join();
  waitpid(child, nullptr, 0);

  for (const Status& each : {at_zero, at_one}) {
    EXPECT_EQ(each.code(), Code::PeerLost) << each.text();
    EXPECT_EQ(each.rank(), 2) << each.text();
  }
}

TEST_P(StoreThatSees, GoesOnWhenAnotherProcessTakesTheRankOfTheDead) {
  auto zero = place->open(0), heir = place->open(1);

  const pid_t child = die_in_store(*place, 1);
  waitpid(child, nullptr, 0);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_TRUE(heir->set("card/1", "mine").ok());
  });

  EXPECT_EQ(zero->get("card/1", soon()).take(), "mine");
  later.join();
}

// Of a store of the caller's, the caller sees who leaves it.
std::vector<test::Make> own_places() {
  std::vector<test::Make> places = test::all_places();
  std::erase_if(places, [](const auto& each) { return std::string(each.name) == "callback"; });
  return places;
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreThatSees, testing::ValuesIn(own_places()),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
