// SPDX-License-Identifier: Apache-2.0
#include "rendezvous/meet.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.hpp"
#include "base/machine.hpp"
#include "rendezvous/records.hpp"
#include "wire/crypto.hpp"

namespace hccomm::rendezvous {
namespace {

constexpr double kCensusSeconds = 0.3;  // to find out who is there, once the deadline has passed
constexpr double kGraceSeconds = 0.5;   // more than that: rank 0 tells the others
constexpr double kLateSeconds = 2;      // for ranks that come after one has died
constexpr double kLookSeconds = 0.005;
constexpr std::size_t kMaxName = 200;
constexpr std::size_t kMaxRanksNamed = 16;

// A look, no wait.
Deadline already() { return Deadline::after(Seconds(0)); }

std::string in_seconds(Seconds seconds) {
  const double value = seconds.count();
  if (value >= 10) return text(std::lround(value), " s");
  return text(std::round(value * 100) / 100, " s");
}

// "rank 2", "ranks 2, 5", "ranks 0, 1, ... (812 in all)".
std::string named(const std::vector<int>& ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t each = 0; each < std::min(ranks.size(), kMaxRanksNamed); ++each) {
    out += (each > 0 ? ", " : "") + std::to_string(ranks[each]);
  }
  if (ranks.size() > kMaxRanksNamed) out += text(", ... (", ranks.size(), " in all)");
  return out;
}

std::string process(std::int64_t pid, const std::string& host) {
  return text("pid ", pid, " on ", printable(host.substr(0, host.find('/')), 64));
}

// What is wrong between rank `rank`, whose head is `its`, and rank 0; or "".
std::string objection(int rank, const Head& its, const Head& zero) {
  if (its.major != zero.major) {
    return text("rendezvous: rank ", rank, " speaks wire version ", its.major, ".", its.minor,
                ", rank 0 version ", zero.major, ".", zero.minor,
                ": use builds of hccomm with equal major wire versions");
  }
  if (its.size != zero.size) {
    return text("rendezvous: rank ", rank, " was started with size ", its.size,
                ", rank 0 with size ", zero.size, ": start all ranks with the same size");
  }
  return {};
}

Status claimed_twice(int rank, const transport::Card& one, const transport::Card& other) {
  return {
      Code::Mismatch,
      text("rendezvous: rank ", rank, " was claimed by two processes, ", process(one.pid, one.host),
           " and ", process(other.pid, other.host), ": give each process a rank of its own"),
      rank};
}

// Who of the asked ranks has left a record.
struct Census {
  std::vector<int> here, absent;
  bool complete = true;  // time sufficed for all
};

// One rank's meeting: what its steps share.
class Meeting {
 public:
  Meeting(Store& store, const std::string& name, int rank, int size, Deadline deadline)
      : store_(store),
        name_(name),
        rank_(rank),
        size_(size),
        deadline_(deadline),
        time_(deadline.left()) {
    head_.size = static_cast<std::uint32_t>(size);
  }

  Result<std::string> open_job(std::string job);
  Result<std::string> join_job();
  Result<Book> bind(const transport::Card& card);
  Result<Book> read(const transport::Card& card);
  Status refuse(const Status& failure);

 private:
  std::string key(const char* what) const { return name_ + "/" + what; }
  std::string key(const char* what, int rank) const { return text(name_, "/", what, "/", rank); }
  CardRecord record_of(const transport::Card& card) const;
  Result<std::string> job_of_mine();
  Status gather(BookRecord& book);
  Status take_card(int rank, const std::string& bytes, BookRecord& book) const;
  Status missing(int first, BookRecord& book);
  void await_the_late(const char* sign, int lost);
  Status check_own(const BookRecord& book, const CardRecord& mine) const;
  Status rank_0_missing(const char* what, const char* sign);
  Status with_rival(Status failure, const CardRecord& mine);
  Census look_for(const char* what);

  Store& store_;
  const std::string& name_;
  const int rank_, size_;
  const Deadline deadline_;
  const Seconds time_;  // from the start to the deadline
  Head head_;
};

// What a rank that cannot join has left in place of its record: a book that only says why.
Status refusal(const std::string& bytes) {
  if (!decode_head(bytes, Kind::Book)) return {};
  Result<BookRecord> said = decode_book(bytes);
  return said ? said.value().failure : said.status();
}

Status in_store(const Status& status) {
  return {status.code(), "rendezvous: " + status.text(), status.rank()};
}

Result<std::string> Meeting::open_job(std::string job) {
  Result<std::string> earlier = store_.get(key("job"), already());
  if (earlier) {
    Result<Greeting> other = decode_greeting(earlier.value());
    const std::string who =
        other ? " by " + process(other.value().pid, other.value().host) : std::string();
    return Status(Code::Mismatch,
                  text("rendezvous: the name \"", printable(name_, 64),
                       "\" has been used on this "
                       "store",
                       who,
                       ": start rank 0 once, and give each communicator on a store "
                       "a name of its own"),
                  0);
  }
  if (earlier.status().code() != Code::Timeout) return in_store(earlier.status());
  if (job.empty()) job = wire::random_bytes(kIdBytes);
  const Status status = store_.set(key("job"), encode(Greeting{head_, job, host_id(), getpid()}));
  if (!status.ok()) return in_store(status);
  return job;
}

Result<std::string> Meeting::join_job() {
  const Greeting mine{head_, {}, host_id(), getpid()};
  if (Status status = store_.set(key("here", rank_), encode(mine)); !status.ok()) {
    return in_store(status);
  }
  Result<std::string> bytes = store_.get(key("job"), deadline_);
  if (!bytes && bytes.status().code() == Code::Timeout) {
    return rank_0_missing("arrive", "here");
  }
  if (!bytes) return in_store(bytes.status());
  if (Status status = refusal(bytes.value()); !status.ok()) return status;
  Result<Head> zero = decode_head(bytes.value(), Kind::Greeting);
  if (!zero) return zero.status();
  if (const std::string why = objection(rank_, head_, zero.value()); !why.empty()) {
    // Rank 0 shall know, and tell the others: the head of this card says it all.
    transport::Card card;
    card.uuid.assign(kIdBytes, '\0');
    const Status told = store_.set(key("card", rank_), encode(CardRecord{head_, 0, card}));
    if (!told.ok()) HCCOMM_LOG(Warn, "rendezvous: rank 0 cannot be told: ", told.text());
    return Status(Code::Mismatch, why, rank_);
  }
  Result<Greeting> greeting = decode_greeting(bytes.value());
  if (!greeting) return greeting.status();
  if (greeting.value().job.empty()) {
    return Status(Code::Integrity,
                  "rendezvous: rank 0 has left no job id in the store; give this "
                  "job a store or a name that nothing else writes to");
  }
  return std::move(greeting.value().job);
}

CardRecord Meeting::record_of(const transport::Card& card) const {
  CardRecord record{head_, 0, card};
  std::memcpy(&record.token, wire::random_bytes(sizeof record.token).data(), sizeof record.token);
  record.token |= 1;  // rank 0's is the session's number, which is not 0
  return record;
}

// Rank 0: the job that it has opened, unless another process has done so, too.
Result<std::string> Meeting::job_of_mine() {
  Result<std::string> bytes = store_.get(key("job"), Deadline::after(Seconds(kGraceSeconds)));
  if (!bytes) return in_store(bytes.status());
  Result<Greeting> greeting = decode_greeting(bytes.value());
  if (!greeting) return greeting.status();
  if (greeting.value().pid != getpid() || greeting.value().host != host_id()) {
    transport::Card mine, other;
    mine.pid = getpid();
    mine.host = host_id();
    other.pid = greeting.value().pid;
    other.host = greeting.value().host;
    return claimed_twice(0, mine, other);
  }
  return std::move(greeting.value().job);
}

Result<Book> Meeting::bind(const transport::Card& card) {
  Result<std::string> job = job_of_mine();
  if (!job) return job.status();
  const CardRecord mine = record_of(card);
  BookRecord book{head_, {}, job.value(), {}, {}};
  book.tokens.assign(static_cast<std::size_t>(size_), 0);
  book.cards.resize(static_cast<std::size_t>(size_));
  book.tokens[0] = mine.token;
  book.cards[0] = mine.card;
  Status failure = gather(book);
  Status told = failure.ok()
                    ? store_.set(key("book"), encode(book))
                    : store_.set(key("book"), encode(BookRecord{head_, failure, {}, {}, {}}));
  if (failure.rank() > 0 && failure.code() != Code::Timeout && told.ok()) {
    await_the_late("card", failure.rank());
  }
  if (!failure.ok()) return failure;
  if (!told.ok()) return in_store(told);
  return Book{std::move(book.job), book.tokens[0], std::move(book.cards)};
}

Status Meeting::gather(BookRecord& book) {
  for (int rank = 1; rank < size_; ++rank) {
    Result<std::string> bytes = store_.get(key("card", rank), deadline_);
    if (!bytes && bytes.status().code() == Code::Timeout) return missing(rank, book);
    if (!bytes) return in_store(bytes.status());
    if (Status status = take_card(rank, bytes.value(), book); !status.ok()) return status;
  }
  return {};
}

// Puts a card that has arrived into the book. A second one of the same rank must be the same.
Status Meeting::take_card(int rank, const std::string& bytes, BookRecord& book) const {
  if (Status status = refusal(bytes); !status.ok()) return status;
  Result<Head> head = decode_head(bytes, Kind::Card);
  if (!head) return head.status();
  if (std::string why = objection(rank, head.value(), head_); !why.empty()) {
    return {Code::Mismatch, std::move(why), rank};
  }
  Result<CardRecord> record = decode_card(bytes);
  if (!record) return record.status();
  const auto place = static_cast<std::size_t>(rank);
  transport::Card& card = book.cards[place];
  if (!card.uuid.empty() && book.tokens[place] != record.value().token) {
    return claimed_twice(rank, card, record.value().card);
  }
  card = std::move(record.value().card);
  book.tokens[place] = record.value().token;
  return {};
}

// The deadline has passed without a card of `first`. Looks at all the others once more, for a
// better explanation than absence: a wrong size, or a rank that two processes claim.
Status Meeting::missing(int first, BookRecord& book) {
  const Deadline until = Deadline::after(Seconds(kCensusSeconds));
  std::vector<int> absent{first}, order;
  for (int rank = first + 1; rank < size_; ++rank) order.push_back(rank);
  for (int rank = 1; rank < first; ++rank) order.push_back(rank);
  bool complete = true;
  for (const int rank : order) {
    if (complete = !until.passed(); !complete) break;
    Result<std::string> bytes =
        store_.get(key("card", rank), Deadline::after(Seconds(kLookSeconds)));
    if (!bytes && bytes.status().code() != Code::Timeout) return in_store(bytes.status());
    if (!bytes) {
      absent.push_back(rank);
    } else if (Status status = take_card(rank, bytes.value(), book); !status.ok()) {
      return status;
    }
  }
  return {Code::Timeout,
          text("rendezvous: ", named(absent), complete ? "" : ", and perhaps more,", " of ", size_,
               " did not arrive within ", in_seconds(time_),
               "; see whether they were started and what they wrote, or set a longer timeout"),
          first};
}

// Launchers start ranks within a moment of each other: those who have still to come shall hear what
// went wrong, and not find rank 0 gone. It leaves when the last of them has left the record `sign`.
void Meeting::await_the_late(const char* sign, int lost) {
  const Deadline until(std::min(Deadline::after(Seconds(kLateSeconds)).at(), deadline_.at()));
  for (int rank = 1; rank < size_; ++rank) {
    while (rank != lost && !until.passed() && !store_.get(key(sign, rank), already())) {
      std::this_thread::sleep_for(Seconds(kLookSeconds));
    }
  }
}

Result<Book> Meeting::read(const transport::Card& card) {
  const CardRecord mine = record_of(card);
  if (Status status = store_.set(key("card", rank_), encode(mine)); !status.ok()) {
    return in_store(status);
  }
  Deadline patient = deadline_;
  if (patient.finite()) {
    patient = Deadline(std::max(deadline_.at(), Clock::now()) +
                       std::chrono::duration_cast<Clock::duration>(Seconds(kGraceSeconds)));
  }
  Result<std::string> bytes = store_.get(key("book"), patient);
  if (!bytes && bytes.status().code() == Code::Timeout) {
    return with_rival(rank_0_missing("publish the list of ranks", "card"), mine);
  }
  if (!bytes) return in_store(bytes.status());
  Result<BookRecord> book = decode_book(bytes.value());
  if (!book) return book.status();
  if (!book.value().failure.ok()) return with_rival(book.value().failure, mine);
  if (Status status = check_own(book.value(), mine); !status.ok()) return status;
  return Book{std::move(book.value().job), book.value().tokens[0], std::move(book.value().cards)};
}

Status Meeting::check_own(const BookRecord& book, const CardRecord& mine) const {
  if (std::string why = objection(rank_, head_, book.head); !why.empty()) {
    return {Code::Mismatch, std::move(why), rank_};
  }
  const auto place = static_cast<std::size_t>(rank_);
  if (book.tokens[place] == mine.token && book.cards[place].uuid == mine.card.uuid) return {};
  return claimed_twice(rank_, mine.card, book.cards[place]);
}

// Adds to a failure that somebody else claims this very rank, where that is so: it may be the
// cause.
Status Meeting::with_rival(Status failure, const CardRecord& mine) {
  Result<std::string> bytes = store_.get(key("card", rank_), already());
  if (!bytes) return failure;
  Result<CardRecord> there = decode_card(bytes.value());
  if (!there || there.value().token == mine.token) return failure;
  return {Code::Mismatch,
          claimed_twice(rank_, mine.card, there.value().card).text() + " (" + failure.text() + ")",
          rank_};
}

// Rank 0 answers for the job, and once that is open for the book; another rank for its card.
Status Meeting::refuse(const Status& failure) {
  const BookRecord why{
      head_,
      {failure.code(), text("rendezvous: rank ", rank_, " could not join: ", failure.text()),
       rank_},
      {},
      {},
      {}};
  if (rank_ != 0) return store_.set(key("card", rank_), encode(why));
  Result<std::string> job = store_.get(key("job"), already());
  if (job) {
    if (Result<std::string> mine = job_of_mine(); !mine) return mine.status();
  }
  const Status told = store_.set(key(job ? "book" : "job"), encode(why));
  if (told.ok()) await_the_late(job ? "card" : "here", rank_);
  return told;
}

Census Meeting::look_for(const char* what) {
  const Deadline until = Deadline::after(Seconds(kCensusSeconds));
  Census census;
  for (int rank = 1; rank < size_; ++rank) {
    if (rank == rank_) continue;
    if (census.complete = !until.passed(); !census.complete) break;
    const auto seen = store_.get(key(what, rank), Deadline::after(Seconds(kLookSeconds)));
    (seen.ok() ? census.here : census.absent).push_back(rank);
  }
  return census;
}

// `what` rank 0 has not done; `sign` is the record by which the others are known.
Status Meeting::rank_0_missing(const char* what, const char* sign) {
  const Census census = look_for(sign);
  std::string others;
  if (!census.here.empty()) others += "; here: " + named(census.here);
  if (!census.absent.empty()) others += "; absent: " + named(census.absent);
  if (!census.complete) others += " (not all were looked for)";
  return {Code::Timeout,
          text("rendezvous: rank 0 of ", size_, " did not ", what, " within ", in_seconds(time_),
               others,
               "; see whether rank 0 was started and what it wrote, and whether all ranks "
               "were given the same store and the name \"",
               printable(name_, 64), "\""),
          0};
}

void check_call(const std::string& name, int rank, int size) {
  if (size < 1 || rank < 0 || rank >= size) {
    throw Error(Code::InvalidArgument, text("rendezvous: rank ", rank, " of ", size,
                                            " is impossible; ranks are 0..size-1"));
  }
  if (name.empty() || name.size() > kMaxName || name.find('\0') != std::string::npos) {
    throw Error(Code::InvalidArgument, text("rendezvous: a name of ", name.size(),
                                            " bytes; use text of 1 to ", kMaxName, " bytes"));
  }
}

}  // namespace

Result<std::string> agree_job(Store& store, const std::string& name, int rank, int size,
                              const std::string& my_job, Deadline deadline) {
  check_call(name, rank, size);
  if (!my_job.empty() && my_job.size() != kIdBytes) {
    throw Error(Code::InvalidArgument, text("rendezvous: a job id of ", my_job.size(), " bytes"));
  }
  Meeting meeting(store, name, rank, size, deadline);
  return rank == 0 ? meeting.open_job(my_job) : meeting.join_job();
}

Result<Book> exchange_cards(Store& store, const std::string& name, int rank, int size,
                            const transport::Card& card, Deadline deadline) {
  check_call(name, rank, size);
  if (card.uuid.size() != kIdBytes) {
    throw Error(Code::InvalidArgument, text("rendezvous: a uuid of ", card.uuid.size(), " bytes"));
  }
  const Clock::time_point start = Clock::now();
  Meeting meeting(store, name, rank, size, deadline);
  Result<Book> book = rank == 0 ? meeting.bind(card) : meeting.read(card);
  if (book) {
    HCCOMM_LOG(Info, "rendezvous \"", printable(name, 64), "\": ", size, " ranks met in ",
               in_seconds(Clock::now() - start));
  }
  return book;
}

Status refuse(Store& store, const std::string& name, int rank, int size, const Status& failure,
              Deadline deadline) {
  check_call(name, rank, size);
  return Meeting(store, name, rank, size, deadline).refuse(failure);
}

std::vector<int> hosts_of(const Book& book) {
  std::unordered_map<std::string, int> numbers;
  std::vector<int> hosts;
  hosts.reserve(book.cards.size());
  for (const transport::Card& card : book.cards) {
    hosts.push_back(numbers.emplace(card.host, static_cast<int>(numbers.size())).first->second);
  }
  return hosts;
}

}  // namespace hccomm::rendezvous
