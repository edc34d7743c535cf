// SPDX-License-Identifier: Apache-2.0
//
// The sending half of a Fabric: frames into the slots of the peer's inbox, and pieces of large
// messages straight to where the peer has said that they shall lie.
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/worded.hpp"
#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

static constexpr std::size_t kInjectMost = 4096;
// From here on memory of the user is registered where cards must know what they read.
static constexpr std::size_t kRegisterFrom = 32 * 1024;

// An idle operation, nullptr when all are under way.
Op* Fabric::sender(std::vector<Op*>& idle) {
  if (idle.empty()) progress();
  if (idle.empty()) return nullptr;
  Op* const op = idle.back();
  idle.pop_back();
  op->borrows = op->reads_back = op->untold = op->confirmed = false;
  op->posts = 1;
  return op;
}

// A write without its 32 bits has completed when the socket has it: where its connection broke
// since, they would go over the next one though it is lost, and what lay there before pass for it.
// So it goes once more, until the peer's side confirms that it is there.
void Fabric::finished(Op& op) {
  if (op.untold) {
    const bool taken = op.confirmed ? tell(op) : write_again(op);
    if (!taken) untold_.push_back(&op);
    if (!taken || op.untold) return;
  }
  if (--op.posts != 0) return;
  if (op.peer != nullptr) {
    --op.peer->in_flight;
    if (op.borrows) --op.peer->borrowed;
    if (op.reads_back) --op.peer->reading_back;
  }
  op.peer = nullptr;
  park(op);
}

static void refused(const Library& library, Peer& peer, ssize_t said, const char* what) {
  if (!peer.failure.ok()) return;
  peer.failure = worded(Code::PeerLost, [&] {
    return library.failure(Code::PeerLost, text(peer.name, ": ", what), static_cast<int>(-said));
  });
}

// The 32 bits of a write that went without. Right behind it they take its connection: nothing lets
// a provider make another one meanwhile. False: not taken now.
bool Fabric::tell(Op& op) {
  Peer& peer = *op.peer;
  const Rail& rail = *rails_[peer.rail_of[op.lane]];
  ssize_t said = 0;
  if (!ended_ && !peer.lost()) {
    void* const descriptor = scratch_.memory->descriptor[peer.rail_of[op.lane]];
    said = fi_writedata(rail.endpoint, scratch_.data, 0, descriptor, op.immediate,
                        peer.address[op.lane], peer.inbox_at[op.lane], peer.key[op.lane], &op);
    if (said == 0) ++op.posts;
  }
  op.untold = said == -FI_EAGAIN;
  if (said < 0 && !op.untold) refused(library(), peer, said, "fi_writedata");
  return !op.untold;
}

// False: not taken now. Untold remains what is under way.
bool Fabric::write_again(Op& op) {
  Peer& peer = *op.peer;
  const Rail& rail = *rails_[peer.rail_of[op.lane]];
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < op.count; ++i) bytes += op.parts[i].iov_len;
  const fi_rma_iov target{op.at, bytes, op.key};
  fi_msg_rma message{};
  message.msg_iov = op.parts.data();
  message.desc = op.descriptors.data();
  message.iov_count = op.count;
  message.addr = peer.address[op.lane];
  message.rma_iov = &target;
  message.rma_iov_count = 1;
  message.context = &op;
  op.untold = !ended_ && !peer.lost();
  if (!op.untold) return true;
  const ssize_t said = fi_writemsg(rail.endpoint, &message, FI_COMPLETION | FI_DELIVERY_COMPLETE);
  op.confirmed = said == 0;
  if (said == -FI_EAGAIN) return false;
  if (said < 0) {
    op.untold = false;
    refused(library(), peer, said, "fi_writemsg");
  }
  return true;
}

void Fabric::park(Op& op) {
  if (op.entry != nullptr) cache_.done(*std::exchange(op.entry, nullptr));
  op.home->push_back(&op);
}

// What there is to say is in the 32 bits. Not every provider writes nothing at all.
bool Fabric::inject(Peer& peer, Kind kind, std::uint16_t value, unsigned lane) {
  if (shut(peer)) return false;
  constexpr std::size_t kBytes = 8;
  const unsigned own = peer.rail_of[lane];
  Rail& rail = *rails_[own];
  const std::uint64_t data = Immediate{peer.their_id, kind, value}.pack();
  ssize_t outcome = -FI_EAGAIN;
  if (rail.inject_bytes >= kBytes) {
    outcome = fi_inject_writedata(rail.endpoint, scratch_.data, kBytes, data, peer.address[lane],
                                  peer.inbox_at[lane], peer.key[lane]);
    if (outcome == -FI_EOPNOTSUPP || outcome == -FI_ENOSYS) rail.inject_bytes = 0;
  }
  if (rail.inject_bytes < kBytes) {
    Op* const op = sender(senders_);
    if (op == nullptr) return false;
    outcome = fi_writedata(rail.endpoint, scratch_.data, rail.tells_apart ? 0 : kBytes,
                           scratch_.memory->descriptor[own], data, peer.address[lane],
                           peer.inbox_at[lane], peer.key[lane], op);
    outcome == 0 ? under_way(peer, *op) : park(*op);
  }
  if (outcome == -FI_EAGAIN) progress();
  if (outcome == 0 && kind != Kind::Hello) ring(peer);
  return outcome == 0;
}

void Fabric::under_way(Peer& peer, Op& op) {
  op.peer = &peer;
  ++peer.in_flight;
  if (op.borrows) ++peer.borrowed;
}

// What a post has said; counts it where it was taken. `op` may be nullptr (injected).
Progress Fabric::posted(Peer& peer, Op* op, ssize_t outcome, const char* what) {
  if (outcome == 0) {
    ++peer.next;
    if (op != nullptr) {
      under_way(peer, *op);
      if (op->untold) tell(*op);
    }
    ring(peer);
    return Progress::Done;
  }
  if (op != nullptr) park(*op);
  if (outcome == -FI_EAGAIN) {
    progress();
    return Progress::Again;
  }
  refused(library(), peer, outcome, what);
  return Progress::Broken;
}

static void copy_parts(std::byte* to, const iovec* parts, int count) {
  for (int i = 0; i < count; ++i) {
    if (parts[i].iov_len != 0) std::memcpy(to, parts[i].iov_base, parts[i].iov_len);
    to += parts[i].iov_len;
  }
}

ssize_t Rail::write(Op& op, const void* data, std::size_t bytes, void* descriptor, std::uint64_t to,
                    std::uint64_t at, std::uint64_t key) const {
  if (op.untold) {
    op.parts[0] = {const_cast<void*>(data), bytes};
    op.descriptors[0] = descriptor;
    op.count = 1;
    op.at = at;
    op.key = key;
    return fi_write(endpoint, data, bytes, descriptor, to, at, key, &op);
  }
  return fi_writedata(endpoint, data, bytes, descriptor, op.immediate, to, at, key, &op);
}

// All that it was sent has been taken.
static bool is_quiet(const Peer& peer) {
  const auto none = [](const Window& each) { return each.sent == each.acked; };
  return none(peer.eager) && none(peer.ring) && none(peer.direct);
}

// Into an eager slot, from a copy.
Progress Fabric::write_small(Peer& peer, Kind kind, const iovec* parts, int count) {
  if (!peer.eager.open()) progress();
  if (!peer.eager.open()) return Progress::Again;
  std::size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += parts[i].iov_len;
  const unsigned lane = peer.works[0], own = peer.rail_of[lane];
  Rail& rail = *rails_[own];
  const std::uint64_t data = Immediate{peer.their_id, kind, peer.next}.pack();
  const std::uint64_t at = peer.inbox_at[lane] + peer.eager_offset +
                           peer.eager.sent % peer.eager.limit * peer.eager_bytes;
  if (bytes <= std::min(rail.inject_bytes, kInjectMost)) {
    alignas(16) std::byte whole[kInjectMost];
    copy_parts(whole, parts, count);
    const ssize_t said = fi_inject_writedata(rail.endpoint, whole, bytes, data, peer.address[lane],
                                             at, peer.key[lane]);
    if (said != -FI_EOPNOTSUPP && said != -FI_ENOSYS) {
      const Progress outcome = posted(peer, nullptr, said, "fi_inject_writedata");
      if (outcome == Progress::Done) ++peer.eager.sent;
      return outcome;
    }
    rail.inject_bytes = 0;  // it does so with messages alone
  }
  Op* const op = sender(senders_);
  if (op == nullptr) return Progress::Again;
  copy_parts(op->block.data, parts, count);
  // Into an empty connection it goes whole, and arrives so.
  op->untold = rail.tells_apart && !is_quiet(peer);
  op->lane = lane;
  op->immediate = data;
  const ssize_t said = rail.write(*op, op->block.data, bytes, op->block.memory->descriptor[own],
                                  peer.address[lane], at, peer.key[lane]);
  const Progress outcome = posted(peer, op, said, "fi_writedata");
  if (outcome == Progress::Done) ++peer.eager.sent;
  return outcome;
}

// A credit rides along, but not where a sealed frame has its seal.
static bool has_room(const wire::Header& header) { return (header.flags & wire::kSealed) == 0; }

Progress Fabric::send_eager(Peer& peer, const wire::Header& header, const std::byte* payload) {
  const std::lock_guard lock(mutex_);
  if (shut(peer)) return Progress::Broken;
  wire::Header marked = header;
  const bool room = has_room(header);
  if (room) marked.source = peer.credit();
  const iovec parts[2] = {{&marked, sizeof marked},
                          {const_cast<std::byte*>(payload), header.length}};
  const Progress outcome = write_small(peer, Kind::Eager, parts, 2);
  if (outcome == Progress::Done && room) peer.told();
  return outcome;
}

// Memory of the user as cards know it that must; nullptr where it is too small to be worth it, or
// not to be had.
Entry* Fabric::readable(const std::byte* payload, std::size_t bytes) {
  return bytes < kRegisterFrom ? nullptr : cache_.use(payload, bytes, Access::Read);
}

// Gathers the parts in registered memory, or leaves the payload where it lies and copies only the
// header, where there is one.
static int gather(Op& op, const iovec* parts, int count, bool all, iovec* pieces) {
  op.borrows = !all;
  std::size_t filled = 0;
  for (int i = 0; i < count; ++i) {
    pieces[i] = parts[i];
    if (!all && i == count - 1) continue;
    std::memcpy(op.block.data + filled, parts[i].iov_base, parts[i].iov_len);
    pieces[i].iov_base = op.block.data + filled;
    filled += parts[i].iov_len;
  }
  if (!all) return count;
  pieces[0].iov_len = filled;
  return 1;
}

Progress Fabric::send_part(Peer& peer, const iovec* parts, int count, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (shut(peer)) return Progress::Broken;
  if (!peer.ring.open()) progress();
  if (!peer.ring.open()) return Progress::Again;
  const iovec& last = parts[count - 1];
  Entry* const entry = local_ && (gathers_ || count == 1)
                           ? readable(static_cast<std::byte*>(last.iov_base), last.iov_len)
                           : nullptr;
  const bool copies = (local_ && entry == nullptr) || (!gathers_ && count > 1);
  Op* const op = sender(copies ? copiers_ : senders_);
  if (op == nullptr) {
    if (entry != nullptr) cache_.done(*entry);
    return Progress::Again;
  }
  op->entry = entry;
  iovec* const pieces = op->parts.data();
  const int pieces_count = gather(*op, parts, count, copies, pieces);
  const bool begins = count == 2 && has_room(*static_cast<wire::Header*>(parts[0].iov_base));
  if (begins) reinterpret_cast<wire::Header*>(op->block.data)->source = peer.credit();
  const unsigned lane = peer.lane_for(peer.next), own = peer.rail_of[lane];
  op->descriptors = {op->block.memory->descriptor[own], nullptr};
  if (entry != nullptr) op->descriptors[pieces_count - 1] = entry->memory.descriptor[own];
  const fi_rma_iov target{
      peer.inbox_at[lane] + peer.ring_offset + peer.ring.sent % peer.ring.limit * peer.slot_bytes,
      bytes, peer.key[lane]};
  fi_msg_rma message{};
  message.msg_iov = pieces;
  message.desc = op->descriptors.data();
  message.iov_count = op->count = static_cast<std::size_t>(pieces_count);
  message.addr = peer.address[lane];
  message.rma_iov = &target;
  message.rma_iov_count = 1;
  message.context = op;
  message.data = Immediate{peer.their_id, Kind::Ring, peer.next}.pack();
  op->lane = lane;
  op->immediate = message.data;
  op->at = target.addr;
  op->key = target.key;
  const Rail& rail = *rails_[own];
  op->untold = rail.tells_apart;
  const std::uint64_t flags = (op->untold ? 0 : FI_REMOTE_CQ_DATA) | FI_COMPLETION;
  const Progress outcome =
      posted(peer, op, fi_writemsg(rail.endpoint, &message, flags), "fi_writemsg");
  if (outcome != Progress::Done) return outcome;
  ++peer.ring.sent;
  if (begins) peer.told();
  peer.sent_bytes[lane] += bytes;
  return outcome;
}

unsigned Fabric::borrowed(Peer& peer) {
  const std::lock_guard lock(mutex_);
  if (peer.borrowed != 0) progress();
  return peer.borrowed;
}

}  // namespace hccomm::transport::ofi
