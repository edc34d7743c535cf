// SPDX-License-Identifier: Apache-2.0
//
// The control connections of a Fabric's peers, orderly farewells, and the thread that moves things
// while nobody polls: a rank that computes must still let its peers' writes end.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/log.hpp"
#include "base/worded.hpp"
#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

// Looks of the keeper: while something is under way, while links are in use, else.
static constexpr std::chrono::milliseconds kBusy{1}, kIdle{10}, kAlone{200};
static constexpr std::chrono::seconds kPatience{5};  // with a peer that does not answer a farewell

void Fabric::listen(Peer& peer) {
  const std::lock_guard lock(mutex_);
  listen_to(peer);
}

// Takes what the peer has said over the control connection.
void Fabric::listen_to(Peer& peer) {
  while (!peer.over && peer.control) {
    const ssize_t got = recv(peer.control.get(), peer.note + peer.note_bytes,
                             sizeof peer.note - peer.note_bytes, MSG_DONTWAIT);
    const int err = errno;
    if (got < 0 && err == EINTR) continue;
    if (got < 0 && (err == EAGAIN || err == EWOULDBLOCK)) return;
    if (got <= 0) {
      peer.over = true;
      return;
    }
    peer.note_bytes += static_cast<std::size_t>(got);
    if (peer.note_bytes < sizeof peer.note) continue;
    Note note;
    std::memcpy(&note, peer.note, sizeof note);
    peer.note_bytes = 0;
    noted(peer, note);
  }
}

void Fabric::noted(Peer& peer, const Note& note) {
  if (note.type == Note::Bye) {
    peer.heard_bye = true;
    peer.bye = static_cast<std::uint16_t>(note.value);
    if ((note.value & Note::kBroken) != 0 && peer.failure.ok()) {
      peer.failure = worded(Code::PeerLost, [&]() -> Status {
        return {Code::PeerLost, peer.name + ": the peer has given up the connection"};
      });
    }
    answer_bye(peer);
  } else if (note.type == Note::Taken) {
    peer.all_taken = true;
  } else if (note.type == Note::Revoke) {
    answer_revoke(peer, note);
  } else if (note.type == Note::Revoked) {
    noted_revoked(peer, note);
  } else if (note.type == Note::Ring) {
    nap_us_ = 0;
    if (asleep_) eventfd_write(bell_.get(), 1);  // who sleeps no longer sees what is read here
  } else if (peer.failure.ok()) {
    peer.failure = worded(Code::Integrity, [&]() -> Status {
      return {Code::Integrity, text(peer.name, ": the peer says ", note.type)};
    });
  }
}

// An empty socket takes sixteen bytes whole; it gets a note when an operation has failed, two in
// the end, and one for each time that the peer has said that it sleeps.
void Fabric::say(Peer& peer, const Note& note) {
  if (!peer.control || peer.over) return;
  if (send(peer.control.get(), &note, sizeof note, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    peer.over = true;
  }
}

// "All you sent is here, and nothing of mine is on its way to you": the peer may take down what we
// could have written to.
void Fabric::answer_bye(Peer& peer) {
  if (!peer.heard_bye || peer.told_taken || peer.in_flight != 0) return;
  for (std::uint16_t number = peer.expected; number != peer.bye && peer.failure.ok(); ++number) {
    if (static_cast<std::uint16_t>(number - peer.expected) >= kWindow) break;
    if (!peer.slot_of(number).here) return;
  }
  peer.told_taken = true;
  say(peer, {Note::Taken});
}

void Fabric::leave(Peer& peer) {
  reclaim(peer, nullptr);
  const std::lock_guard lock(mutex_);
  progress();
  peer.linked = false;
  peer.left_at = Clock::now();
  peer.said_bye = true;
  listen_to(peer);
  const std::uint32_t broken = peer.failure.ok() ? 0 : Note::kBroken;
  say(peer, {Note::Bye, peer.next | broken});
  stir_.notify_all();
}

// Nothing more is owed to the peer or by it.
void Fabric::drop(Peer& peer) {
  by_id_[peer.id] = nullptr;
  for (Op& op : ops_) {
    if (op.peer != &peer) continue;
    op.peer = nullptr;
    op.untold = false;
  }
  // Where the peer may still be writing its inbox is never used again.
  if (peer.all_taken || peer.over || !peer.met) pool_.give_back(peer.inbox);
  peers_.erase(peer.id);
}

void Fabric::tend() noexcept {
  std::unique_lock lock(mutex_);
  std::uint64_t seen = 0;
  while (!stopping_) {
    if (seen == polls_) progress();
    seen = polls_;
    judge();
    const bool busy = tend_once();
    const auto nap = busy ? kBusy : peers_.empty() ? kAlone : kIdle;
    stir_.wait_for(lock, nap);
  }
}

// Sees off those that leave. True while something is under way.
bool Fabric::tend_once() {
  bool busy = !suspicion_.ok();
  for (auto each = peers_.begin(); each != peers_.end();) {
    Peer& peer = *(each++)->second;
    busy = busy || peer.in_flight != 0 || peer.said_bye || peer.heard_bye;
    listen_to(peer);
    answer_bye(peer);
    if (peer.linked) continue;
    const bool late = Clock::now() - peer.left_at > kPatience;
    const bool even = (peer.all_taken || peer.over) && peer.in_flight == 0 &&
                      (peer.over || !peer.heard_bye || peer.told_taken);
    if (!even && !late) continue;
    if (late) HCCOMM_LOG(Info, peer.name, ": does not answer the farewell");
    drop(peer);
  }
  return busy;
}

}  // namespace hccomm::transport::ofi
