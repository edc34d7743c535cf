// SPDX-License-Identifier: Apache-2.0
//
// Large messages without a copy. A receiver that knows where a message shall lie tells the sender
// ahead (an advert); the sender writes it there, over all rails, in pieces whose arrival the
// receiver counts. An advert that comes late is no harm: the message, or its beginning, goes
// through the inbox. A receiver whose operation has failed takes the memory back first: it asks the
// sender over the control connection, and waits for the writes that were made; where no answer
// comes, it takes the memory away from the cards.
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include "base/log.hpp"
#include "base/worded.hpp"
#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

static constexpr std::uint64_t kMostPiece = 4 << 20, kLeastPiece = 128 * 1024;
static constexpr std::uint64_t kSocketPiece = 512 * 1024;
static constexpr Seconds kRevoke{1.0};      // for the sender's answer
static constexpr Seconds kDrain{0.02};      // for what a dead peer had sent
static constexpr unsigned kFrameSlots = 4;  // that adverts leave to frames

// ---- the receiver -------------------------------------------------------------------------------

// A provider over sockets ends one write before its receiver begins to take it up: only several
// that follow each other keep both ends at work. Smaller ones cost more than that gains.
bool Fabric::over_sockets() const { return provider().starts_with("tcp") || provider() == "net"; }

// Pieces such that each rail has one. A power of two, so that frames are made of whole ones.
static std::uint64_t piece_of(std::uint64_t bytes, std::size_t rails, std::uint64_t most) {
  std::uint64_t piece = most;
  while (rails > 1 && piece > kLeastPiece && piece * rails > bytes) piece /= 2;
  return piece;
}

void Fabric::expect(Peer& peer, const wire::Header& which, std::byte* data, std::size_t bytes,
                    bool on_device) {
  const std::lock_guard lock(mutex_);
  if (shut(peer) || peer.amid_pieces) return;  // the numbers of a frame follow each other
  if (peer.eager.sent - peer.eager.acked + kFrameSlots >= peer.eager.limit) return;
  const auto free = [](const Grant& each) { return each.state == Grant::State::Free; };
  const auto found = std::ranges::find_if(peer.grants, free);
  if (found == peer.grants.end()) return;
  Entry* const entry =
      on_device ? cache_.use_on_device(data, bytes) : cache_.use(data, bytes, Access::Write);
  if (entry == nullptr) return;
  Grant& grant = *found;
  grant = {};
  Advert& advert = grant.advert;
  advert.type = which.type;
  advert.lanes = static_cast<std::uint8_t>(peer.lanes);
  advert.slot = static_cast<std::uint16_t>(found - peer.grants.begin());
  advert.index = which.index;
  advert.context = which.context;
  advert.sequence = which.sequence;
  advert.fingerprint = which.fingerprint;
  advert.bytes = bytes;
  const std::uint64_t most = over_sockets() ? kSocketPiece : kMostPiece;
  advert.piece_bytes = piece_of(bytes, peer.working, most);
  for (unsigned lane = 0; lane < peer.lanes; ++lane) {
    const unsigned own = peer.rail_of[lane];
    advert.at[lane] = {entry->memory.address(own, data), entry->memory.key[own]};
  }
  grant.data = data;
  grant.number = peer.next;
  const iovec whole{&advert, advert.used_bytes()};
  if (write_small(peer, Kind::Advert, &whole, 1) != Progress::Done) {
    cache_.done(*entry);
    return;
  }
  grant.memory = entry;
  grant.on_device = on_device;
  grant.state = Grant::State::Given;
  ++peer.given;
}

void Fabric::free_grant(Peer& peer, Grant& grant) {
  if (grant.memory != nullptr) cache_.done(*std::exchange(grant.memory, nullptr));
  grant.state = Grant::State::Free;
  --peer.given;
}

Landed Fabric::landed(Peer& peer, const Arrived& arrived) {
  const std::lock_guard lock(mutex_);
  Landed out;
  if (arrived.slot >= kGrants) return out;
  Grant& grant = peer.grants[arrived.slot];
  const Advert& advert = grant.advert;
  if (grant.state == Grant::State::Free || grant.offset >= advert.bytes) return out;
  out.how = grant.state == Grant::State::Given ? Landed::Here : Landed::Withdrawn;
  out.header.type = advert.type;
  out.header.index = advert.index;
  out.header.context = advert.context;
  out.header.sequence = advert.sequence;
  out.header.fingerprint = advert.fingerprint;
  out.header.address = grant.offset;
  out.header.length =
      static_cast<std::uint32_t>(std::min(advert.piece_bytes, advert.bytes - grant.offset));
  out.data = grant.data + grant.offset;
  out.on_device = grant.on_device;
  if (out.how == Landed::Here) {
    grant.offset += out.header.length;
    if (grant.offset == advert.bytes) free_grant(peer, grant);
  }
  return out;
}

void Fabric::came(Peer& peer, const wire::Header& header) {
  const std::lock_guard lock(mutex_);
  if (peer.given == 0) return;
  for (Grant& each : peer.grants) {
    if (each.state != Grant::State::Given || !each.advert.is_of(header)) continue;
    each.offset = header.address + header.length;
    if (each.offset >= each.advert.bytes) free_grant(peer, each);
    return;
  }
}

static bool belongs(const Advert& advert, const wire::Header* of) {
  if (of == nullptr) return true;
  return advert.type == of->type && advert.context == of->context &&
         advert.sequence == of->sequence &&
         (of->type == wire::Type::Data || advert.index == of->index);
}

// A reclaimed slot is used again when all that was written into it has been taken out of the order
// of frames.
void Fabric::reuse(Peer& peer) {
  for (Grant& each : peer.grants) {
    if (each.state != Grant::State::Withdrawn || !each.answered || each.memory != nullptr) continue;
    if (static_cast<std::int32_t>(peer.direct_in.count - each.writes) >= 0) free_grant(peer, each);
  }
}

void Fabric::ask_back(Peer& peer, Grant& grant) {
  if (grant.state != Grant::State::Given) return;
  grant.state = Grant::State::Withdrawn;
  grant.answer_by = Deadline::after(kRevoke);
  say(peer, {Note::Revoke, grant.number, grant.advert.slot});
}

void Fabric::release(Peer& peer, const wire::Header* of) {
  const std::lock_guard lock(mutex_);
  if (peer.given == 0) return;
  for (Grant& each : peer.grants) {
    if (each.state == Grant::State::Given && belongs(each.advert, of)) ask_back(peer, each);
  }
}

void Fabric::reclaim(Peer& peer, const wire::Header* of) {
  release(peer, of);
  std::unique_lock lock(mutex_);
  if (peer.given == 0) return;
  std::array<Grant*, kGrants> all{};
  std::size_t count = 0;
  for (Grant& each : peer.grants) {
    const bool open = each.state == Grant::State::Withdrawn && each.memory != nullptr;
    if (open && belongs(each.advert, of)) all[count++] = &each;
  }
  const std::span<Grant* const> asked(all.data(), count);
  if (asked.empty()) return;
  // All has been written that ever will be: then the memory is the user's again.
  const auto settled = [&](const Grant* each) {
    return each->answered && static_cast<std::int32_t>(peer.direct_arrived - each->writes) >= 0;
  };
  const Deadline deadline = asked.back()->answer_by;
  while (!std::ranges::all_of(asked, settled) && !deadline.passed() && !peer.over &&
         peer.failure.ok()) {
    progress();
    for (auto& [id, each] : peers_) listen_to(*each);
    lock.unlock();
    sched_yield();
    lock.lock();
  }
  if (!std::ranges::all_of(asked, settled)) take_away(peer, asked, lock);
  for (Grant* each : asked) {
    cache_.done(*std::exchange(each->memory, nullptr));
  }
  reuse(peer);
}

// The peer does not answer. What it had sent is let in; then the cards forget the memory.
void Fabric::take_away(Peer& peer, std::span<Grant* const> grants,
                       std::unique_lock<ShortLock>& lock) {
  const Deadline drained = Deadline::after(kDrain);
  while (!drained.passed()) {
    progress();
    lock.unlock();
    sched_yield();
    lock.lock();
  }
  for (Grant* each : grants) {
    cache_.revoke(*each->memory);
  }
  if (peer.failure.ok() && !peer.over) {
    peer.failure = worded(Code::PeerLost, [&]() -> Status {
      return {Code::PeerLost, peer.name +
                                  ": the peer does not say that it has stopped writing to memory "
                                  "it was given"};
    });
  }
}

void Fabric::noted_revoked(Peer& peer, const Note& note) {
  if (note.slot >= kGrants) return;
  Grant& grant = peer.grants[note.slot];
  if (grant.state != Grant::State::Withdrawn || grant.answered) return;  // nobody has asked
  grant.answered = true;
  grant.writes = note.value;
  reuse(peer);
}

// ---- the sender ---------------------------------------------------------------------------------

void Fabric::advertised(Peer& peer, const Arrived& arrived) {
  const std::lock_guard lock(mutex_);
  Advert advert;
  std::memcpy(static_cast<void*>(&advert), arrived.data, sizeof advert);
  const bool sane = advert.slot < kGrants && advert.lanes == peer.lanes &&
                    advert.piece_bytes >= kLeastPiece && advert.piece_bytes <= kMostPiece;
  if (!sane) {
    if (!peer.failure.ok()) return;
    peer.failure = worded(Code::Integrity, [&]() -> Status {
      return {Code::Integrity, peer.name + ": a damaged advert"};
    });
    return;
  }
  peer.claims[advert.slot].take(advert, arrived.number);
}

bool Fabric::awaited(Peer& peer, const wire::Header& which, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(peer.claims, [&](const Claim& each) {
    return each.allows(which) && each.advert.bytes == bytes;
  });
}

// Registered memory to send from; nullptr where there is none. Only the host's is registered here.
Entry* Fabric::source(const Outgoing& frame, std::size_t from, std::size_t bytes) {
  const std::byte* const data = frame.payload + from;
  return frame.on_device ? cache_.use_on_device(data, bytes)
                         : cache_.use(data, bytes, Access::Read);
}

int Fabric::claim(Peer& peer, const Outgoing& frame) {
  const std::lock_guard lock(mutex_);
  const wire::Header& header = frame.header;
  const std::uint64_t end = header.address + header.length;
  for (const Claim& each : peer.claims) {
    const Advert& advert = each.advert;
    if (!each.allows(header)) continue;
    const bool whole = end == advert.bytes || (end < advert.bytes && header.length != 0 &&
                                               header.length % advert.piece_bytes == 0);
    if (!whole || !(gathers_ || frame.on_device)) return -1;
    if (local_ && !frame.on_device) {  // what cards may not know is copied into slots
      Entry* const entry = source(frame, 0, header.length);
      if (entry == nullptr) return -1;
      cache_.done(*entry);
    }
    return advert.slot;
  }
  return -1;
}

Progress Fabric::send_direct(Peer& peer, unsigned slot, const Outgoing& frame, std::size_t& sent) {
  const std::lock_guard lock(mutex_);
  const wire::Header& header = frame.header;
  if (shut(peer)) return Progress::Broken;
  Claim& claim = peer.claims[slot];
  if (!claim.allows(header)) {  // reclaimed: nobody wants the rest
    sent = header.length;
    return Progress::Done;
  }
  if (!peer.direct.open()) progress();
  if (!peer.direct.open()) return Progress::Again;
  const Advert& advert = claim.advert;
  const std::uint64_t offset = header.address + sent;
  const std::uint64_t bytes =
      std::min<std::uint64_t>({advert.piece_bytes, advert.bytes - offset, header.length - sent});
  const unsigned lane = peer.lane_for(peer.direct.sent), own = peer.rail_of[lane];
  const bool registers = local_ || frame.on_device;
  Entry* const entry = registers ? source(frame, sent, bytes) : nullptr;
  if (registers && entry == nullptr) {
    peer.failure = worded(Code::System, [&]() -> Status {
      return {Code::System, text(peer.name, ": ", bytes,
                                 " bytes that are being sent cannot be registered; the warning "
                                 "before says why")};
    });
    return Progress::Broken;
  }
  Op* const op = sender(senders_);
  if (op == nullptr) {
    if (entry != nullptr) cache_.done(*entry);
    return Progress::Again;
  }
  op->entry = entry;
  op->borrows = true;
  void* const descriptor = entry != nullptr ? entry->memory.descriptor[own] : nullptr;
  op->lane = lane;
  op->immediate = Immediate{peer.their_id, Kind::Direct, Immediate::direct(slot, peer.next)}.pack();
  op->untold = rails_[own]->tells_apart;
  const ssize_t said =
      rails_[own]->write(*op, frame.payload + sent, bytes, descriptor, peer.address[lane],
                         advert.at[lane].address + offset, advert.at[lane].key);
  const Progress outcome = posted(peer, op, said, "fi_writedata");
  if (outcome != Progress::Done) return outcome;
  ++peer.direct.sent;
  ++peer.direct_written;
  peer.sent_bytes[lane] += bytes;
  sent += bytes;
  if (offset + bytes == advert.bytes) claim.used_up();
  return outcome;
}

void Fabric::answer_revoke(Peer& peer, const Note& note) {
  if (note.slot >= kGrants) return;
  peer.claims[note.slot].revoke(static_cast<std::uint16_t>(note.value));
  say(peer, {Note::Revoked, peer.direct_written, note.slot});
}

}  // namespace hccomm::transport::ofi
