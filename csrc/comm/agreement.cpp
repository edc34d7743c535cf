// SPDX-License-Identifier: Apache-2.0
#include "comm/agreement.hpp"

#include <algorithm>
#include <cstring>
#include <list>

namespace hccomm::comm {

namespace {

enum class Kind : std::uint8_t { Round = 1, Decided = 2, Expelled = 3 };

// A word of the agreement: its kind, then one byte for each rank, 1 if it is lost.
using Word = std::vector<std::uint8_t>;
using Lost = std::vector<std::uint8_t>;

constexpr Seconds kFarewellSeconds{0.1};  // for words that are still on their way at the end

// One rank's part in one agreement.
//
// Owns:   a tolerant context of the engine, and every word sent or awaited.
// Thread: one.
// Fails:  run() throws.
class Agreement {
 public:
  Agreement(engine::Engine& engine, const std::vector<transport::Card>& cards,
            const std::vector<std::string>& who, int rank, std::uint64_t id, Deadline deadline)
      : engine_(engine), deadline_(deadline), lost_(cards.size(), 0) {
    context_.id = id;
    context_.name = "shrink";
    context_.rank = rank;
    context_.size = static_cast<int>(cards.size());
    context_.who = who;
    context_.tolerant = true;
    engine_.add(context_, cards);
  }
  ~Agreement() {
    engine_.remove(context_, Deadline::after(kFarewellSeconds), true);
    for (engine::Operation* each : sends_) engine_.release(*each);
  }

  Lost run(const std::vector<int>& known) {
    for (const int each : known) lose(each);
    while (!round()) {
    }
    return lost_;
  }

 private:
  bool round();
  void lose(int rank);
  void send(int rank, Kind kind, const Lost& lost);
  void tell_all(Kind kind, const Lost& lost);  // whom this rank holds for living
  // The next word of that rank, or nothing once it is lost.
  bool hear(engine::Operation& op, int rank);
  engine::Parcel parcel(int peer, Word& word) const {
    return {peer,
            0,
            reinterpret_cast<std::byte*>(word.data()),
            word.size(),
            0,
            deadline_.left(),
            engine::Follow::Soon};
  }

  engine::Engine& engine_;
  const Deadline deadline_;
  engine::Context context_;
  Lost lost_;
  std::list<Word> words_;  // sent, or being received: they stay where they are
  std::vector<engine::Operation*> sends_;
};

void Agreement::send(int rank, Kind kind, const Lost& lost) {
  Word& word = words_.emplace_back(1, static_cast<std::uint8_t>(kind));
  word.insert(word.end(), lost.begin(), lost.end());
  sends_.push_back(engine_.start(context_, engine::OperationKind::Send, parcel(rank, word)));
}

void Agreement::tell_all(Kind kind, const Lost& lost) {
  for (int rank = 0; rank < context_.size; ++rank) {
    if (rank != context_.rank && lost_[rank] == 0) send(rank, kind, lost);
  }
}

// It may live and wait for us: then it shall know that nobody waits for it.
void Agreement::lose(int rank) {
  if (rank == context_.rank) {
    throw Error(Code::PeerLost,
                "shrink: the other ranks have taken this one for lost and go on without it; make a "
                "new communicator with them, or end",
                rank);
  }
  if (std::exchange(lost_[rank], 1) == 0) send(rank, Kind::Expelled, lost_);
}

bool Agreement::hear(engine::Operation& op, int rank) {
  const Status status = engine_.wait(op, deadline_);
  if (status.ok()) return true;
  if (status.code() == Code::Timeout) {
    throw Error(Code::Timeout,
                text("shrink: ", context_.who[rank],
                     " has not called shrink() within the timeout, and lives; call it on every "
                     "rank that survived"),
                rank);
  }
  return false;
}

// True when the lost are agreed on.
bool Agreement::round() {
  const Lost mine = lost_;
  tell_all(Kind::Round, mine);
  struct Ear {
    int rank;
    Word* word;
    engine::Operation* op;
  };
  std::vector<Ear> ears;
  for (int rank = 0; rank < context_.size; ++rank) {
    if (rank == context_.rank || mine[rank] != 0) continue;
    Word& word = words_.emplace_back(1 + lost_.size());
    ears.push_back(
        {rank, &word, engine_.start(context_, engine::OperationKind::Recv, parcel(rank, word))});
    sends_.push_back(ears.back().op);  // released with the others
  }
  bool alike = true, decided = false;
  Lost decision;
  std::vector<int> more;
  for (const Ear& ear : ears) {
    if (!hear(*ear.op, ear.rank)) {
      more.push_back(ear.rank);
      alike = false;
      continue;
    }
    const Lost theirs(ear.word->begin() + 1, ear.word->end());
    const auto kind = static_cast<Kind>(ear.word->front());
    if (kind == Kind::Expelled) lose(context_.rank);
    if (kind == Kind::Decided) {
      decided = true;
      decision = theirs;
    }
    alike = alike && theirs == mine;
    for (int rank = 0; rank < context_.size; ++rank) {
      if (theirs[rank] != 0 && mine[rank] == 0) more.push_back(rank);
    }
  }
  if (decided) {
    if (decision[context_.rank] != 0) lose(context_.rank);
    tell_all(Kind::Decided, decision);
    lost_ = decision;
    return true;
  }
  if (alike) {
    tell_all(Kind::Decided, mine);
    return true;
  }
  for (const int rank : more) lose(rank);
  return false;
}

}  // namespace

std::vector<int> agree_on_the_dead(engine::Engine& engine,
                                   const std::vector<transport::Card>& cards,
                                   const std::vector<std::string>& who, int rank, std::uint64_t id,
                                   const std::vector<int>& lost, Deadline deadline) {
  Agreement agreement(engine, cards, who, rank, id, deadline);
  const Lost agreed = agreement.run(lost);
  std::vector<int> dead;
  for (int each = 0; each < static_cast<int>(agreed.size()); ++each) {
    if (agreed[each] != 0) dead.push_back(each);
  }
  return dead;
}

}  // namespace hccomm::comm
