// SPDX-License-Identifier: Apache-2.0
//
// The receiving half of a Fabric: reads the completion queue, restores the order of each peer's
// frames, returns credits, and turns the queue's errors into the failure of a peer.
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.hpp"
#include "base/worded.hpp"
#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

static constexpr std::size_t kEntries = 16;  // read at once
static constexpr int kRounds = 8;            // so that a look ends however much comes
static constexpr long kShortestNapUs = 50, kLongestNapUs = 1000;
// How long an error that belongs to nobody waits for a control connection to name the culprit.
static constexpr std::chrono::milliseconds kSuspicion{200};

void Fabric::progress() {
  ++polls_;
  if (ended_) return;
  for (std::size_t left = untold_.size(); left > 0; --left) {  // it may be appended to again
    Op* const first = untold_.front();
    untold_.erase(untold_.begin());
    finished(*first);
  }
  fi_cq_data_entry entries[kEntries];
  for (const auto& rail : rails_) {
    for (int round = 0; round < kRounds; ++round) {
      const ssize_t count = fi_cq_read(rail->queue, entries, kEntries);
      for (ssize_t i = 0; i < count; ++i) completed(entries[i]);
      if (count == -FI_EAVAIL) {
        queue_error(*rail);
      } else if (count < 0 && count != -FI_EAGAIN && count != -FI_EINTR) {  // the provider is gone
        if (!suspicion_.ok()) break;
        suspect(worded(Code::System, [&] {
          return library().failure(Code::System, "fi_cq_read", static_cast<int>(-count));
        }));
        break;
      } else if (count < static_cast<ssize_t>(kEntries)) {
        break;
      }
    }
  }
}

void Fabric::completed(const fi_cq_data_entry& entry) {
  if ((entry.flags & (FI_REMOTE_WRITE | FI_REMOTE_CQ_DATA)) != 0) {
    arrived(Immediate::unpack(entry.data));  // its context and length mean nothing
  } else if (entry.op_context != nullptr) {
    finished(*static_cast<Op*>(entry.op_context));
  }
}

// Something has been written to an inbox.
void Fabric::arrived(Immediate what) {
  Peer* const peer = what.peer < by_id_.size() ? by_id_[what.peer] : nullptr;
  if (peer == nullptr) return;  // late: it has left
  switch (what.kind) {
    case Kind::EagerCredit: peer->eager.credit(what.value); break;
    case Kind::RingCredit: peer->ring.credit(what.value); break;
    case Kind::DirectCredit: peer->direct.credit(what.value); break;
    case Kind::Hello:
      if ((what.value & kAsleep) == 0) {
        peer->met |= 1u << (what.value % kMaxRails);
      } else {
        peer->asleep = true;
        if (peer->overtaken(what.value)) ring(*peer);
      }
      break;
    default: numbered(*peer, what);
  }
  if (asleep_) eventfd_write(bell_.get(), 1);
}

void Fabric::numbered(Peer& peer, Immediate what) {
  const bool brief = what.kind == Kind::Direct;
  const unsigned slot = brief ? what.value >> 8 : 0;
  const bool piece = slot >= kPieceOfEager;
  const auto ahead = static_cast<std::uint16_t>(what.value - peer.expected) & (brief ? 0xff : ~0u);
  Arrival& place = peer.slot_of(static_cast<std::uint16_t>(peer.expected + ahead));
  if (ahead < kWindow && !place.here) {
    const Kind whole = slot == kPieceOfEager ? Kind::Eager : Kind::Ring;
    place = {true, piece ? whole : what.kind, piece, static_cast<std::uint8_t>(slot)};
    if (brief && !piece) ++peer.direct_arrived;
    nap_us_ = 0;
  } else if (peer.failure.ok()) {
    peer.failure = worded(Code::Integrity, [&]() -> Status {
      return {Code::Integrity,
              text(peer.name, ": frame ", what.value, " came while ", peer.expected, " was due")};
    });
  }
}

// ---- errors -------------------------------------------------------------------------------------

void Fabric::queue_error(Rail& rail) {
  fi_cq_err_entry entry{};
  if (fi_cq_readerr(rail.queue, &entry, 0) <= 0) return;
  char buffer[256] = {};
  const char* said =
      fi_cq_strerror(rail.queue, entry.prov_errno, entry.err_data, buffer, sizeof buffer);
  // The context of an error is not always what was given: look before it is used.
  const auto same = [&](const Op& each) { return &each == entry.op_context; };
  const auto found = std::ranges::find_if(ops_, same);
  Op* const op = found == ops_.end() ? nullptr : &*found;
  Status what = worded(Code::PeerLost, [&]() -> Status {
    return {Code::PeerLost, text(library().strerror(entry.err), " (", entry.err, ")",
                                 said != nullptr ? text(", ", said) : std::string())};
  });
  Peer* const peer = op != nullptr ? op->peer : nullptr;
  if (op != nullptr) {
    op->untold = false;
    finished(*op);
  }
  if (peer != nullptr && peer->failure.ok()) {
    peer->failure = worded(Code::PeerLost, [&]() -> Status {
      return {Code::PeerLost, text(peer->name, ": the provider reports ", what.text())};
    });
    if (asleep_) eventfd_write(bell_.get(), 1);
  } else if (op == nullptr && entry.err != FI_ECANCELED) {
    suspect(std::move(what));
  }
}

// An error that names nobody. Who has ended will show on its control connection; where nobody has,
// the fabric cannot be trusted (tend_once).
void Fabric::suspect(Status why) {
  const auto line = [&]() -> Status {
    return {why.code(), "ofi: the provider reports, for no peer in particular: " + why.text()};
  };
  if (log::enabled(log::Level::Info)) {
    log::write(log::Level::Info, worded(why.code(), line).text());
  }
  if (!suspicion_.ok()) return;
  suspicion_ = std::move(why);
  suspected_at_ = Clock::now();
}

void Fabric::judge() {
  if (suspicion_.ok()) return;
  bool named = false;
  for (auto& [id, peer] : peers_) {
    listen_to(*peer);
    named = named || peer->over || !peer->failure.ok();
  }
  const bool late = Clock::now() - suspected_at_ > kSuspicion;
  if (!named && !late) return;
  for (auto& [id, peer] : peers_) {
    if (named || !peer->failure.ok()) continue;
    peer->failure = worded(suspicion_.code(), [&, &at = *peer]() -> Status {
      return {suspicion_.code(), text(at.name, ": the provider reports ", suspicion_.text(),
                                      ", for one of its peers")};
    });
  }
  if (asleep_) eventfd_write(bell_.get(), 1);
  suspicion_ = {};
}

// ---- what a link asks ---------------------------------------------------------------------------

bool Fabric::ready(Peer& peer) {
  const std::lock_guard lock(mutex_);
  if (in_order(peer)) return true;
  // Several links look in turn; one of them reads the queue for all.
  if (std::exchange(peer.seen, polls_) == polls_) {
    progress();
    peer.seen = polls_;
  }
  settle(peer);
  return in_order(peer) || !peer.failure.ok() || peer.over || peer.heard_bye;
}

bool Fabric::next(Peer& peer, Arrived& out, bool look) {
  const std::lock_guard lock(mutex_);
  if (out.held) taken(peer, out);
  const auto comes = [&] {
    return in_order(peer) && is_settled(peer, peer.slot_of(peer.expected));
  };
  if (!comes()) {
    if (look) progress();
    if (!comes()) return false;
  }
  if (peer.settled > 0) --peer.settled;
  const Arrival& place = peer.slot_of(peer.expected);
  out.kind = place.kind;
  out.number = peer.expected;
  out.slot = place.slot;
  if (place.kind != Kind::Direct) {
    out.data = peer.next_slot(place.kind);
    out.bytes = place.kind == Kind::Ring ? kRingSlotBytes : kEagerBytes;
  }
  out.in_pieces = place.piece;
  if (place.piece) take_pieces(peer);
  out.held = true;
  out.given = peer.given != 0;
  peer.slot_of(peer.expected++) = {};
  peer.announced = false;
  return true;
}

void Fabric::take_back(Peer& peer, Arrived& arrived) {
  const std::lock_guard lock(mutex_);
  taken(peer, arrived);
}

void Fabric::taken(Peer& peer, Arrived& arrived) {
  arrived.held = false;
  if (std::exchange(arrived.credits, false)) peer.credited(arrived.credit);
  ++(arrived.kind == Kind::Ring     ? peer.ring_in
     : arrived.kind == Kind::Direct ? peer.direct_in
                                    : peer.eager_in)
        .count;
  if (arrived.kind == Kind::Direct && peer.given != 0) reuse(peer);
  settle(peer);
}

// Tells the peer what has been taken, once it is worth a message. What the provider does not take
// now is said at the next look: the counts are totals.
void Fabric::settle(Peer& peer) {
  const unsigned lane = peer.works[0];
  const auto due = [](const Taken& each, unsigned slots) {
    return each.count - each.told >= slots;
  };
  if (due(peer.eager_in, kEagerSlots / 2) &&
      inject(peer, Kind::EagerCredit, static_cast<std::uint16_t>(peer.eager_in.count), lane)) {
    peer.eager_in.told = peer.eager_in.count;
  }
  if (due(peer.ring_in, kRingSlots / 4) &&
      inject(peer, Kind::RingCredit, static_cast<std::uint16_t>(peer.ring_in.count), lane)) {
    peer.ring_in.told = peer.ring_in.count;
  }
  if (due(peer.direct_in, kDirectWrites / 4) &&
      inject(peer, Kind::DirectCredit, static_cast<std::uint16_t>(peer.direct_in.count), lane)) {
    peer.direct_in.told = peer.direct_in.count;
  }
}

Status Fabric::failure(Peer& peer) {
  const std::lock_guard lock(mutex_);
  const auto lost = [&](const char* what) {
    return worded(Code::PeerLost, [&]() -> Status { return {Code::PeerLost, peer.name + what}; });
  };
  if (!peer.failure.ok()) return worded(peer.failure.code(), [&] { return peer.failure; });
  if (peer.heard_bye && peer.expected == peer.bye) return lost(": the peer closed the connection");
  if (!peer.over || in_order(peer)) return {};
  // A last look: what came before the end is handed over first.
  progress();
  if (in_order(peer)) return {};
  return lost(": the peer's process has ended or closed the connection");
}

void Fabric::fail(Peer& peer, Status why) {
  const std::lock_guard lock(mutex_);
  if (peer.failure.ok()) peer.failure = std::move(why);
}

// ---- sleep --------------------------------------------------------------------------------------

// Providers wake nobody, or at a price for every message. So who is going to sleep says so through
// the fabric, once for each frame that it awaits, and who sends next rings over the control
// connection. Where a bell is early, or is rung by a credit that crossed the frame, the sleeper is
// not announced again before that frame has come: the timer wakes it.
void Fabric::announce_sleep(Peer& peer) {
  if (!peer.rings || peer.announced) return;
  peer.announced = inject(peer, Kind::Hello, peer.sleep_word(), peer.works[0]);
}

void Fabric::ring(Peer& peer) {
  if (std::exchange(peer.asleep, false)) say(peer, {Note::Ring});
}

// The timer is the shorter, the less time has passed since something came.
bool Fabric::sleep(Peer& peer) {
  const std::lock_guard lock(mutex_);
  const auto something = [&] {
    return in_order(peer) || !peer.failure.ok() || peer.over || peer.heard_bye;
  };
  progress();
  settle(peer);
  if (something()) return false;
  announce_sleep(peer);
  if (something()) return false;  // a provider that was full has been looked at meanwhile
  if (std::exchange(asleep_, true)) return true;  // another link has set the timer
  nap_us_ = std::clamp(2 * nap_us_, kShortestNapUs, kLongestNapUs);
  itimerspec at{};
  at.it_value.tv_nsec = nap_us_ * 1000;
  timerfd_settime(timer_.get(), 0, &at, nullptr);
  return true;
}

void Fabric::wake() {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(asleep_, false)) return;
  eventfd_t rings = 0;
  eventfd_read(bell_.get(), &rings);
  std::uint64_t ticks = 0;
  [[maybe_unused]] const auto got = read(timer_.get(), &ticks, sizeof ticks);
}

}  // namespace hccomm::transport::ofi
