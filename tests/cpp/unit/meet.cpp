// SPDX-License-Identifier: Apache-2.0
//
// Rendezvous on each kind of store, with threads as ranks: everybody arrives, or the ranks learn
// what is wrong and with whom. And the records they exchange, damaged in every way.
#include "rendezvous/meet.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "rendezvous/records.hpp"
#include "support/stores.hpp"

using namespace hccomm;
using namespace hccomm::rendezvous;
using test::Place;
using test::soon;
using transport::Card;

namespace {

Card card_of(int rank, const std::string& host = "host-0") {
  Card card;
  card.uuid = text("uuid", 100000000000 + rank);
  card.host = host;
  card.machine = host + "/net 4.5";
  card.pid = 1000 + rank;
  card.cores = 2 + rank;
  card.choices = 77;
  card.addresses = {{"shm", text("@hccomm-", rank)}, {"tcp", std::string("\0\1\2 any", 8)}};
  return card;
}

bool same(const Card& one, const Card& other) {
  return one.cores == other.cores && one.choices == other.choices && one.uuid == other.uuid &&
         one.host == other.host && one.machine == other.machine && one.pid == other.pid &&
         one.addresses == other.addresses;
}

// How one rank takes part.
struct Part {
  int rank = 0;
  int size = 1;
  std::string name = "world";
  Deadline deadline = soon();
  std::string job;
  Seconds late{0};
  enum Refusal { Joins, RefusesAtOnce, RefusesTheJob } refusal = Joins;
};

const Status kRefused(Code::System, "no such provider");

Result<Book> take_part(Store& store, const Part& part, const Card& card) {
  std::this_thread::sleep_for(part.late);
  const auto refuses = [&] {
    EXPECT_TRUE(refuse(store, part.name, part.rank, part.size, kRefused, part.deadline).ok());
    return kRefused;
  };
  if (part.refusal == Part::RefusesAtOnce) return refuses();
  Result<std::string> job =
      agree_job(store, part.name, part.rank, part.size, part.job, part.deadline);
  if (!job) return job.status();
  if (part.refusal == Part::RefusesTheJob) return refuses();
  Result<Book> book = exchange_cards(store, part.name, part.rank, part.size, card, part.deadline);
  if (book) {
    EXPECT_EQ(book.value().job, job.value());
    EXPECT_NE(book.value().session, 0u);
  }
  return book;
}

class Meet : public testing::TestWithParam<test::Make> {
 protected:
  // All parts at once, each in a thread with a store of its own. All are open before the first
  // rank can fail and take the place away.
  std::vector<Result<Book>> meet(const std::vector<Part>& parts) {
    std::vector<std::optional<Result<Book>>> books(parts.size());
    std::vector<std::unique_ptr<Store>> stores;
    for (const Part& part : parts) stores.push_back(place->open(part.rank));
    std::vector<std::thread> ranks;
    for (std::size_t each = 0; each < parts.size(); ++each) {
      ranks.emplace_back([&, each] {
        Card card = card_of(parts[each].rank);
        card.pid += static_cast<int>(each) * 100;
        books[each] = take_part(*stores[each], parts[each], card);
        stores[each]->finish(soon());
      });
    }
    for (std::thread& rank : ranks) rank.join();
    std::vector<Result<Book>> all;
    for (auto& book : books) all.push_back(std::move(*book));
    return all;
  }

  static std::vector<Part> parts_of(int size) {
    std::vector<Part> parts(static_cast<std::size_t>(size));
    for (int rank = 0; rank < size; ++rank) {
      parts[static_cast<std::size_t>(rank)].rank = rank;
      parts[static_cast<std::size_t>(rank)].size = size;
    }
    return parts;
  }

  std::unique_ptr<Place> place = GetParam().make();
};

void expect_failure(const Result<Book>& book, Code code, const std::string& words) {
  ASSERT_FALSE(book.ok());
  EXPECT_EQ(book.status().code(), code) << book.status().text();
  EXPECT_NE(book.status().text().find(words), std::string::npos) << book.status().text();
}

TEST_P(Meet, GivesAllRanksTheSameBook) {
  for (const int size : {1, 2, 3, 5, 8, 16}) {
    place = GetParam().make();

    std::vector<Result<Book>> books = meet(parts_of(size));

    for (Result<Book>& book : books) {
      ASSERT_TRUE(book.ok()) << book.status().text();
      EXPECT_EQ(book.value().job.size(), 16u);
      EXPECT_EQ(book.value().job, books[0].value().job);
      EXPECT_EQ(book.value().session, books[0].value().session);
      ASSERT_EQ(book.value().cards.size(), static_cast<std::size_t>(size));
      for (int rank = 0; rank < size; ++rank) {
        const Card& card = book.value().cards[static_cast<std::size_t>(rank)];
        EXPECT_EQ(card.uuid, card_of(rank).uuid);
        EXPECT_EQ(card.addresses, card_of(rank).addresses);
      }
    }
  }
}

TEST_P(Meet, KeepsTheJobThatRankZeroHasAlready) {
  std::vector<Part> parts = parts_of(3);
  parts[0].job = "0123456789abcdef";

  for (Result<Book>& book : meet(parts)) EXPECT_EQ(book.value().job, "0123456789abcdef");
}

TEST_P(Meet, WaitsForASlowRankAndForRankZero) {
  std::vector<Part> parts = parts_of(4);
  parts[0].late = Seconds(0.05);
  parts[2].late = Seconds(0.15);

  for (Result<Book>& book : meet(parts)) EXPECT_TRUE(book.ok()) << book.status().text();
}

TEST_P(Meet, TellsAllRanksWhoIsMissing) {
  std::vector<Part> parts = parts_of(6);
  for (Part& part : parts) part.deadline = Deadline::after(Seconds(2));
  parts.erase(parts.begin() + 5);
  parts.erase(parts.begin() + 2);

  const std::vector<Result<Book>> books = meet(parts);

  for (const Result<Book>& book : books) {
    expect_failure(book, Code::Timeout, "ranks 2, 5 of 6 did not arrive within ");
    EXPECT_EQ(book.status(), books[0].status());
    EXPECT_EQ(book.status().rank(), 2);
  }
}

TEST_P(Meet, TellsAllRanksWhoHasAnotherSize) {
  std::vector<Part> parts = parts_of(4);
  parts[3].size = 7;

  for (const Result<Book>& book : meet(parts)) {
    expect_failure(book, Code::Mismatch,
                   "rank 3 was started with size 7, rank 0 with size 4: start all ranks with the "
                   "same size");
    EXPECT_EQ(book.status().rank(), 3);
  }
}

TEST_P(Meet, TellsAllRanksThatRankZeroHasAnotherSize) {
  std::vector<Part> parts = parts_of(4);
  parts[0].size = 2;

  for (const Result<Book>& book : meet(parts)) {
    expect_failure(book, Code::Mismatch, "with size 4, rank 0 with size 2");
  }
}

TEST_P(Meet, TellsAllRanksAtOnceWhoCannotJoin) {
  for (const Part::Refusal refusal : {Part::RefusesAtOnce, Part::RefusesTheJob}) {
    for (const std::size_t refusing : {0u, 2u}) {
      place = GetParam().make();
      std::vector<Part> parts = parts_of(4);
      for (Part& part : parts) part.deadline = Deadline::never();  // none is waited for
      parts[refusing].refusal = refusal;
      parts[3].late = Seconds(0.1);

      const std::vector<Result<Book>> books = meet(parts);

      for (std::size_t rank = 0; rank < books.size(); ++rank) {
        if (rank == refusing) continue;
        expect_failure(books[rank], Code::System,
                       text("rendezvous: rank ", refusing, " could not join: no such provider"));
        EXPECT_EQ(books[rank].status().rank(), static_cast<int>(refusing));
      }
    }
  }
}

TEST_P(Meet, LeavesAJobAloneThatAnotherRankZeroHasOpened) {
  const auto store = place->open(0);
  std::string other;
  {
    ASSERT_TRUE(agree_job(*store, "world", 0, 2, {}, soon()).ok());
    Result<std::string> mine = store->get("world/job", soon());
    ASSERT_TRUE(mine.ok());
    other = mine.value();
    other.back() = static_cast<char>(other.back() + 1);  // the pid
    ASSERT_TRUE(store->set("world/job", other).ok());
  }

  const Status told = refuse(*store, "world", 0, 2, kRefused, soon());

  EXPECT_EQ(told.code(), Code::Mismatch) << told.text();
  EXPECT_EQ(store->get("world/job", soon()).value(), other);
}

TEST_P(Meet, NamesAWrongSizeRatherThanTheRankThatIsMissing) {
  std::vector<Part> parts = parts_of(4);
  for (Part& part : parts) part.deadline = Deadline::after(Seconds(2));
  parts[3].size = 5;
  parts.erase(parts.begin() + 1);

  for (const Result<Book>& book : meet(parts)) {
    expect_failure(book, Code::Mismatch, "rank 3 was started with size 5, rank 0 with size 4");
  }
}

TEST_P(Meet, RefusesOneOfTwoProcessesThatClaimARank) {
  std::vector<Part> parts = parts_of(3);
  parts.push_back(parts[2]);  // pids 1202 and 1302

  std::vector<Result<Book>> books = meet(parts);

  EXPECT_TRUE(books[0].ok());
  EXPECT_TRUE(books[1].ok());
  ASSERT_NE(books[2].ok(), books[3].ok());
  const Result<Book>& loser = books[2].ok() ? books[3] : books[2];
  expect_failure(loser, Code::Mismatch, "rank 2 was claimed by two processes");
  expect_failure(loser, Code::Mismatch, "pid 1202 on host-0");
  expect_failure(loser, Code::Mismatch, "pid 1302 on host-0");
}

TEST_P(Meet, NamesRankZeroAndWhoElseIsHere) {
  auto server = place->open(0);  // the store is there, its rank 0 does not come
  std::vector<Part> parts = parts_of(5);
  for (Part& part : parts) part.deadline = Deadline::after(Seconds(2));
  parts.erase(parts.begin() + 2);
  parts.erase(parts.begin());
  std::vector<std::thread> ranks;
  std::vector<Status> failures(parts.size());

  for (std::size_t each = 0; each < parts.size(); ++each) {
    ranks.emplace_back([&, each] {
      auto store = place->open(parts[each].rank);
      failures[each] = take_part(*store, parts[each], card_of(parts[each].rank)).status();
    });
  }
  for (std::thread& rank : ranks) rank.join();

  for (const Status& failure : failures) {
    EXPECT_EQ(failure.code(), Code::Timeout);
    EXPECT_EQ(failure.rank(), 0);
    EXPECT_NE(failure.text().find("rank 0 of 5 did not arrive within "), std::string::npos);
    EXPECT_NE(failure.text().find("absent: rank 2"), std::string::npos) << failure.text();
  }
  EXPECT_NE(failures[0].text().find("here: ranks 3, 4"), std::string::npos) << failures[0].text();
}

TEST_P(Meet, NamesRankZeroWhenItLeavesHalfway) {
  auto zero = place->open(0), one = place->open(1);
  EXPECT_TRUE(agree_job(*zero, "world", 0, 2, {}, soon()).ok());
  EXPECT_TRUE(agree_job(*one, "world", 1, 2, {}, soon()).ok());

  const auto book = exchange_cards(*one, "world", 1, 2, card_of(1), Deadline::after(Seconds(0.05)));

  expect_failure(book, Code::Timeout, "rank 0 of 2 did not publish the list of ranks within");
}

TEST_P(Meet, MeetsAgainUnderAnotherNameOnly) {
  auto zero = place->open(0), one = place->open(1);
  const auto both = [&](const std::string& name) {
    std::optional<Result<Book>> other;
    std::thread rank([&] { other = take_part(*one, {1, 2, name}, card_of(1)); });
    Result<Book> book = take_part(*zero, {0, 2, name}, card_of(0));
    rank.join();
    EXPECT_TRUE(other->ok()) << other->status().text();
    return book;
  };

  EXPECT_TRUE(both("first").ok());
  EXPECT_TRUE(both("second").ok());
  expect_failure(take_part(*zero, {0, 2, "first"}, card_of(0)), Code::Mismatch,
                 text("the name \"first\" has been used on this store by pid ", getpid()));
}

TEST_P(Meet, TellsAllRanksThatOneSpeaksAnotherWireVersion) {
  auto zero = place->open(0), one = place->open(1), two = place->open(2);
  CardRecord newer{{7, 3, 3}, 0, card_of(2)};
  std::optional<Result<Book>> other;
  std::thread rank([&] { other = take_part(*one, {1, 3}, card_of(1)); });

  EXPECT_TRUE(two->set("world/card/2", encode(newer) + "what version 7 has there").ok());
  const Result<Book> book = take_part(*zero, {0, 3}, card_of(0));
  rank.join();

  expect_failure(book, Code::Mismatch, "rank 2 speaks wire version 7.3, rank 0 version 1.");
  expect_failure(*other, Code::Mismatch, "rank 2 speaks wire version 7.3, rank 0 version 1.");
}

TEST_P(Meet, SaysThatTheStoreHoldsGarbage) {
  auto zero = place->open(0), one = place->open(1);
  EXPECT_TRUE(one->set("world/card/1", "garbage").ok());

  expect_failure(take_part(*zero, {0, 2}, card_of(0)), Code::Integrity, "in the store");
}

// Rank 0's store, on which something happens before rank 0 looks for the last card.
class Interrupted final : public Store {
 public:
  Interrupted(std::unique_ptr<Store> store, std::function<void()> interrupt)
      : store_(std::move(store)), interrupt_(std::move(interrupt)) {}
  Status set(const std::string& key, std::string value) override { return store_->set(key, value); }
  Result<std::string> get(const std::string& key, Deadline deadline) override {
    if (key == "world/card/3" && interrupt_) std::exchange(interrupt_, nullptr)();
    return store_->get(key, deadline);
  }
  void finish(Deadline deadline) noexcept override { store_->finish(deadline); }

 private:
  std::unique_ptr<Store> store_;
  std::function<void()> interrupt_;
};

TEST(MeetTwice, NamesTheRankClaimedTwiceWhereAnotherIsMissing) {
  test::MapPlace place;
  const CardRecord second{{1, 0, 4}, 4711, card_of(77)};
  Interrupted zero(place.open(0),
                   [&] { EXPECT_TRUE(place.open(1)->set("world/card/1", encode(second)).ok()); });
  const Deadline deadline = Deadline::after(Seconds(2));
  std::vector<std::optional<Result<Book>>> books(3);
  std::vector<std::thread> ranks;

  for (const int rank : {1, 2}) {
    ranks.emplace_back([&, rank] {
      auto store = place.open(rank);
      books[static_cast<std::size_t>(rank)] =
          take_part(*store, {rank, 4, "world", deadline}, card_of(rank));
    });
  }
  books[0] = take_part(zero, {0, 4, "world", deadline}, card_of(0));
  for (std::thread& rank : ranks) rank.join();

  for (const auto& book : books) {
    expect_failure(
        *book, Code::Mismatch,
        "rank 1 was claimed by two processes, pid 1001 on host-0 and pid 1077 on host-0");
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, Meet, testing::ValuesIn(test::all_places()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(MeetArguments, RefusesRanksSizesAndNamesThatCannotBe) {
  test::MapPlace place;
  auto store = place.open(0);

  EXPECT_THROW((void)agree_job(*store, "world", 2, 2, {}, soon()), Error);
  EXPECT_THROW((void)agree_job(*store, "world", -1, 2, {}, soon()), Error);
  EXPECT_THROW((void)agree_job(*store, "world", 0, 0, {}, soon()), Error);
  EXPECT_THROW((void)agree_job(*store, "", 0, 1, {}, soon()), Error);
  EXPECT_THROW((void)agree_job(*store, std::string(201, 'n'), 0, 1, {}, soon()), Error);
  EXPECT_THROW((void)agree_job(*store, "world", 0, 1, "short", soon()), Error);
  EXPECT_THROW((void)exchange_cards(*store, "world", 0, 1, Card{}, soon()), Error);
}

// A name at its limit fits every key, also that of the largest rank.
TEST(MeetArguments, TakesTheLongestName) {
  test::MapPlace place;
  auto store = place.open(2'000'000'000);
  const std::string name(200, 'n');

  const auto job =
      agree_job(*store, name, 2'000'000'000, 2'000'000'001, {}, Deadline::after(Seconds(0)));

  EXPECT_EQ(job.status().code(), Code::Timeout);
}

TEST(HostsOf, NumbersHostsInOrderOfFirstRank) {
  Book book;
  for (const char* host : {"b", "a", "b", "c", "a"}) book.cards.push_back(card_of(0, host));

  EXPECT_EQ(hosts_of(book), (std::vector<int>{0, 1, 0, 2, 1}));
}

// ---- records
// -------------------------------------------------------------------------------------

BookRecord book_of(int size) {
  BookRecord book;
  book.head.size = static_cast<std::uint32_t>(size);
  book.job = "0123456789abcdef";
  for (int rank = 0; rank < size; ++rank) {
    book.tokens.push_back(0x1111111111111111u * static_cast<unsigned>(rank));
    book.cards.push_back(card_of(rank));
  }
  return book;
}

TEST(Records, ComeBackAsTheyWere) {
  const Greeting greeting{{1, 0, 8}, "0123456789abcdef", "node-1/boot", 77};
  const CardRecord record{{1, 0, 8}, 42, card_of(3)};

  const Greeting greeting_back = decode_greeting(encode(greeting)).take();
  const CardRecord record_back = decode_card(encode(record)).take();
  const BookRecord book_back = decode_book(encode(book_of(3))).take();

  EXPECT_EQ(greeting_back.head, greeting.head);
  EXPECT_EQ(greeting_back.job, greeting.job);
  EXPECT_EQ(greeting_back.host, greeting.host);
  EXPECT_EQ(greeting_back.pid, 77);
  EXPECT_EQ(record_back.token, 42u);
  EXPECT_TRUE(same(record_back.card, record.card));
  EXPECT_EQ(book_back.tokens, book_of(3).tokens);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(same(book_back.cards[rank], card_of(static_cast<int>(rank))));
  }
}

TEST(Records, CarryAFailureWithoutControlCharacters) {
  BookRecord book;
  book.failure = {Code::Timeout, "rank 2\x1b[31m\n did not arrive", 2};

  const BookRecord back = decode_book(encode(book)).take();

  EXPECT_EQ(back.failure, Status(Code::Timeout, "rank 2.[31m. did not arrive", 2));
}

TEST(Records, IgnoreWhatANewerPeerAppends) {
  const std::string more = "fields of version 1.9";

  EXPECT_TRUE(decode_greeting(encode(Greeting{{1, 9, 2}, {}, "h", 1}) + more).ok());
  EXPECT_TRUE(decode_card(encode(CardRecord{{1, 9, 2}, 1, card_of(0)}) + more).ok());
  EXPECT_TRUE(decode_book(encode(book_of(2)) + more).ok());
}

TEST(Records, AreRefusedWhenCutAnywhere) {
  const std::string greeting = encode(Greeting{{1, 0, 2}, {}, "host", 1});
  const std::string card = encode(CardRecord{{1, 0, 2}, 1, card_of(0)});
  const std::string book = encode(book_of(2));

  for (std::size_t cut = 0; cut < greeting.size(); ++cut) {
    EXPECT_EQ(decode_greeting(greeting.substr(0, cut)).status().code(), Code::Integrity) << cut;
  }
  for (std::size_t cut = 0; cut < card.size(); ++cut) {
    EXPECT_EQ(decode_card(card.substr(0, cut)).status().code(), Code::Integrity) << cut;
  }
  for (std::size_t cut = 0; cut < book.size(); ++cut) {
    EXPECT_EQ(decode_book(book.substr(0, cut)).status().code(), Code::Integrity) << cut;
  }
}

// What decodes encodes to something that decodes alike; nothing crashes (the sanitizers watch).
TEST(Records, SurviveEveryByteTurnedIntoAnyOther) {
  const std::string book = encode(book_of(2));

  for (std::size_t place = 0; place < book.size(); ++place) {
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::string damaged = book;
      damaged[place] = static_cast<char>(value);
      Result<BookRecord> back = decode_book(damaged);
      (void)decode_card(damaged);
      (void)decode_greeting(damaged);
      if (!back || !back.value().failure.ok()) continue;
      EXPECT_EQ(back.value().cards.size(), back.value().head.size);
      EXPECT_TRUE(decode_book(encode(back.value())).ok());
    }
  }
}

TEST(Records, AllocateNothingForACountThatTheirBytesDoNotPay) {
  std::string book = encode(book_of(1));
  const std::size_t count = 12 + 4 + 4 + 4 + 4 + 16;
  for (std::size_t each = 0; each < 4; ++each) book[count + each] = '\xff';

  EXPECT_EQ(decode_book(book).status().code(), Code::Integrity);
}

}  // namespace
