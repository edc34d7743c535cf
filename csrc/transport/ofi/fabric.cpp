// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/fabric.hpp"

#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <set>

#include "base/log.hpp"

namespace hccomm::transport::ofi {

static constexpr std::uint32_t kLayout = 1;
static constexpr std::size_t kQueueEntries = 4096;
static constexpr std::size_t kScratchBytes = 4096;
static constexpr unsigned kSenders = 64;  // operations under way at once
static constexpr unsigned kCopiers = 16;  // and of large parts, where all must be copied
static constexpr std::size_t kInjectMost = 4096;
static constexpr Seconds kFarewell{1.0};  // for what was sent last to arrive

Status Fabric::check(int err, const char* what) const {
  if (err == 0) return {};
  return choice_.library->failure(
      Code::Unavailable, text(what, " of ", choice_.provider, " on ", choice_.domain), -err);
}

// The fabrics that are open. A communicator may still be when the process ends: its threads must
// leave libfabric alone before that takes itself down, which it does after our handler.
struct Open {
  std::mutex mutex;
  std::set<Fabric*> fabrics;
};
static Open& all_open() {
  static auto* const open = new Open;
  return *open;
}

void Fabric::end_all() noexcept {
  const std::lock_guard lock(all_open().mutex);
  for (Fabric* each : all_open().fabrics) {
    const std::lock_guard own(each->mutex_);
    each->ended_ = each->stopping_ = true;
  }
}

Result<std::shared_ptr<Fabric>> Fabric::open(Choice choice) {
  std::shared_ptr<Fabric> fabric(new Fabric(std::move(choice)));
  {
    const std::lock_guard lock(all_open().mutex);
    static const int registered = std::atexit([] { end_all(); });
    if (registered != 0) return Status(Code::System, "ofi: atexit failed");
    all_open().fabrics.insert(fabric.get());
  }
  if (Status status = fabric->open_all(); !status.ok()) return status;
  return fabric;
}

Status Fabric::open_all() {
  const KeptSignals kept;
  fi_info& info = *choice_.info;
  Status status = check(choice_.library->fabric(info.fabric_attr, &fabric_, nullptr), "fi_fabric");
  if (status.ok()) status = check(fi_domain(fabric_, &info, &domain_, nullptr), "fi_domain");
  if (status.ok()) status = open_queue();
  fi_av_attr table{};
  table.type = info.domain_attr->av_type == FI_AV_MAP ? FI_AV_MAP : FI_AV_TABLE;
  if (status.ok()) status = check(fi_av_open(domain_, &table, &addresses_, nullptr), "fi_av_open");
  if (status.ok()) status = open_endpoint();
  if (!status.ok()) return status;
  pool_.set(choice_.library, domain_, endpoint_, info.domain_attr->mr_mode);
  auto scratch = pool_.take(kScratchBytes);
  if (!scratch) return scratch.status();
  scratch_ = scratch.value();
  copies_ = (info.domain_attr->mr_mode & FI_MR_LOCAL) != 0 || info.tx_attr->iov_limit < 2 ||
            std::getenv("HCCOMM_TEST_OFI_COPY") != nullptr;
  status = make_senders(kSenders, kEagerBytes, senders_);
  if (status.ok() && copies_) status = make_senders(kCopiers, kRingSlotBytes, copiers_);
  if (!status.ok()) return status;
  by_id_.resize(kMaxPeers);
  keeper_ = std::thread([this] { keep(); });
  HCCOMM_LOG(Info, "ofi: provider ", choice_.provider, " on ", choice_.domain, ", ",
             choice_.library->readable());
  return {};
}

Status Fabric::make_senders(unsigned count, std::size_t bytes, std::vector<Op*>& into) {
  for (unsigned i = 0; i < count; ++i) {
    auto block = pool_.take(bytes);
    if (!block) return block.status();
    Op& op = ops_.emplace_back();
    op.block = block.value();
    op.home = &into;
    into.push_back(&op);
  }
  return {};
}

// A queue that can be slept on writes to a descriptor for every entry, which cost 0.6 us a message
// in the software providers; so ours cannot, and sleepers are woken by a timer.
// The shm provider names its memory by the process's number and a counter, and what was killed
// leaves its memory behind: who gets such a number again finds the name taken, and the next is
// free.
Status Fabric::open_endpoint() {
  static constexpr int kNames = 16;
  for (int attempt = 1;; ++attempt) {
    Status status =
        check(fi_endpoint(domain_, choice_.info.get(), &endpoint_, nullptr), "fi_endpoint");
    if (status.ok()) {
      status = check(fi_ep_bind(endpoint_, &queue_->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    }
    if (status.ok()) status = check(fi_ep_bind(endpoint_, &addresses_->fid, 0), "fi_ep_bind");
    if (!status.ok()) return status;
    const int code = fi_enable(endpoint_);
    if (code != -FI_EBUSY || attempt == kNames) return check(code, "fi_enable");
    fi_close(&endpoint_->fid);
    endpoint_ = nullptr;
  }
}

Status Fabric::open_queue() {
  fi_cq_attr attributes{};
  attributes.size = kQueueEntries;
  attributes.format = FI_CQ_FORMAT_DATA;
  attributes.wait_obj = FI_WAIT_NONE;
  Status status = check(fi_cq_open(domain_, &attributes, &queue_, nullptr), "fi_cq_open");
  if (!status.ok()) return status;
  poller_.reset(epoll_create1(EPOLL_CLOEXEC));
  bell_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  timer_.reset(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  for (const int fd : {bell_.get(), timer_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (epoll_ctl(poller_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return Status::from_errno(errno, "ofi: epoll");
    }
  }
  return {};
}

Fabric::~Fabric() {
  {
    const std::lock_guard lock(all_open().mutex);
    all_open().fabrics.erase(this);
  }
  const Deadline deadline = Deadline::after(kFarewell);
  {
    std::unique_lock lock(mutex_);
    while (!peers_.empty() && !deadline.passed()) {
      stir_.wait_for(lock, std::chrono::milliseconds(1));
    }
    stopping_ = true;
  }
  stir_.notify_all();
  if (keeper_.joinable()) keeper_.join();
  if (!ended_) close_all();
}

void Fabric::close_all() noexcept {
  const auto shut = [](auto*& each) {
    if (each != nullptr) fi_close(&each->fid);
    each = nullptr;
  };
  peers_.clear();
  // Some registrations belong to the endpoint and go first; but none while it still works.
  if (choice_.info != nullptr && (choice_.info->domain_attr->mr_mode & FI_MR_ENDPOINT) != 0) {
    pool_.clear();
  }
  shut(endpoint_);
  pool_.clear();
  shut(queue_);
  shut(addresses_);
  shut(domain_);
  shut(fabric_);
}

// ---- meeting ----------------------------------------------------------------------------------

Result<Peer*> Fabric::admit(Offer& mine) {
  const std::lock_guard lock(mutex_);
  std::uint32_t id = next_id_;
  for (std::uint32_t tries = 0; tries < kMaxPeers && by_id_[id] != nullptr; ++tries) {
    id = (id + 1) % kMaxPeers;
  }
  if (by_id_[id] != nullptr) return Status(Code::Unavailable, "ofi: no number is free for a peer");
  next_id_ = (id + 1) % kMaxPeers;  // numbers come back late: what is late finds nobody
  auto inbox = pool_.take(kInboxBytes);
  if (!inbox) return inbox.status();
  mine = {};
  std::size_t name_bytes = sizeof mine.name;
  if (Status status = check(fi_getname(&endpoint_->fid, mine.name, &name_bytes), "fi_getname");
      !status.ok()) {
    pool_.give_back(inbox.value());
    return status;
  }
  auto peer = std::make_unique<Peer>();
  peer->id = id;
  peer->inbox = inbox.value();
  mine.layout = kLayout;
  mine.id = id;
  mine.eager_bytes = kEagerBytes;
  mine.eager_slots = kEagerSlots;
  mine.slot_bytes = kRingSlotBytes;
  mine.ring_slots = kRingSlots;
  mine.inbox_address = peer->inbox.remote_address;
  mine.eager_offset = kNothingBytes;
  mine.ring_offset = kRingAt;
  mine.key = peer->inbox.key;
  mine.name_bytes = static_cast<std::uint32_t>(name_bytes);
  by_id_[id] = peer.get();
  stir_.notify_all();
  return (peers_[id] = std::move(peer)).get();
}

Status Fabric::introduce(Peer& peer, const Offer& theirs) {
  if (theirs.layout != kLayout) {
    return {Code::Unavailable,
            text("ofi: the peer's frames have layout ", theirs.layout, ", this build's ", kLayout)};
  }
  const bool sane = theirs.id < kMaxPeers && theirs.name_bytes <= sizeof theirs.name &&
                    theirs.eager_bytes >= 1024 && theirs.eager_bytes % 16 == 0 &&
                    theirs.eager_slots >= 1 && theirs.eager_slots < 16384 &&
                    theirs.slot_bytes >= theirs.eager_bytes && theirs.slot_bytes % 16 == 0 &&
                    theirs.ring_slots >= 1 && theirs.ring_slots < 16384 &&
                    theirs.eager_bytes <= kEagerBytes;
  if (!sane) return {Code::Integrity, "ofi: the peer's offer is damaged"};
  const std::lock_guard lock(mutex_);
  peer.their_id = theirs.id;
  peer.eager.limit = theirs.eager_slots;
  peer.ring.limit = theirs.ring_slots;
  peer.eager_bytes = theirs.eager_bytes;
  peer.slot_bytes = theirs.slot_bytes;
  peer.nothing_at = theirs.inbox_address;
  peer.eager_at = theirs.inbox_address + theirs.eager_offset;
  peer.ring_at = theirs.inbox_address + theirs.ring_offset;
  peer.key = theirs.key;
  if (fi_av_insert(addresses_, theirs.name, 1, &peer.address, 0, nullptr) != 1) {
    return {Code::Unavailable,
            text("ofi: provider ", choice_.provider, " cannot make use of the peer's address")};
  }
  return {};
}

void Fabric::greet(Peer& peer) {
  const std::lock_guard lock(mutex_);
  progress();
  inject(peer, Kind::Hello, 0);
}

bool Fabric::met(Peer& peer) {
  const std::lock_guard lock(mutex_);
  progress();
  return peer.met;
}

void Fabric::forget(Peer& peer) {
  const std::lock_guard lock(mutex_);
  drop(peer);
}

void Fabric::adopt(Peer& peer, UniqueFd control, std::string name) {
  const std::lock_guard lock(mutex_);
  peer.control = std::move(control);
  peer.name = std::move(name);
}

// ---- sending ------------------------------------------------------------------------------------

// An idle operation, nullptr when all are under way.
Op* Fabric::sender(std::vector<Op*>& idle) {
  if (idle.empty()) progress();
  if (idle.empty()) return nullptr;
  Op* const op = idle.back();
  idle.pop_back();
  op->borrows = false;
  return op;
}

void Fabric::finished(Op& op) {
  if (op.peer != nullptr) {
    --op.peer->in_flight;
    if (op.borrows) --op.peer->borrowed;
  }
  op.peer = nullptr;
  op.home->push_back(&op);
}

// What there is to say is in the 32 bits. Not every provider writes nothing at all.
bool Fabric::inject(Peer& peer, Kind kind, std::uint16_t value) {
  if (shut(peer)) return false;
  const Immediate what{peer.their_id, kind, value};
  const ssize_t outcome = fi_inject_writedata(endpoint_, scratch_.data, 8, what.pack(),
                                              peer.address, peer.nothing_at, peer.key);
  if (outcome == -FI_EAGAIN) progress();
  return outcome == 0;
}

// What a post has said; counts it where it was taken. `op` may be nullptr (injected).
Progress Fabric::posted(Peer& peer, Op* op, ssize_t outcome, const char* what) {
  if (outcome == 0) {
    ++peer.next;
    if (op == nullptr) return Progress::Done;
    op->peer = &peer;
    ++peer.in_flight;
    if (op->borrows) ++peer.borrowed;
    return Progress::Done;
  }
  if (op != nullptr) op->home->push_back(op);
  if (outcome == -FI_EAGAIN) {
    progress();
    return Progress::Again;
  }
  if (peer.failure.ok()) {
    peer.failure = choice_.library->failure(Code::PeerLost, text(peer.name, ": ", what),
                                            static_cast<int>(-outcome));
  }
  return Progress::Broken;
}

Progress Fabric::send_eager(Peer& peer, const wire::Header& header, const std::byte* payload) {
  const std::size_t bytes = sizeof header + header.length;
  const std::lock_guard lock(mutex_);
  if (shut(peer)) return Progress::Broken;
  if (!peer.eager.open()) progress();
  if (!peer.eager.open()) return Progress::Again;
  const std::uint64_t number = Immediate{peer.their_id, Kind::Eager, peer.next}.pack();
  const std::uint64_t at = peer.eager_at + peer.eager.sent % peer.eager.limit * peer.eager_bytes;
  // A credit rides along, but not where a sealed frame has its seal.
  const bool room = (header.flags & wire::kSealed) == 0;
  const auto copy = [&](std::byte* to) {
    wire::Header marked = header;
    if (room) marked.source = static_cast<std::uint16_t>(peer.eager_in.count);
    std::memcpy(to, &marked, sizeof marked);
    if (header.length != 0) std::memcpy(to + sizeof header, payload, header.length);
  };
  Progress outcome;
  if (bytes <= std::min(choice_.info->tx_attr->inject_size, kInjectMost)) {
    alignas(16) std::byte whole[kInjectMost];
    copy(whole);
    const ssize_t said =
        fi_inject_writedata(endpoint_, whole, bytes, number, peer.address, at, peer.key);
    outcome = posted(peer, nullptr, said, "fi_inject_writedata");
  } else {
    Op* const op = sender(senders_);
    if (op == nullptr) return Progress::Again;
    copy(op->block.data);
    const ssize_t said = fi_writedata(endpoint_, op->block.data, bytes, op->block.descriptor,
                                      number, peer.address, at, peer.key, op);
    outcome = posted(peer, op, said, "fi_writedata");
  }
  if (outcome != Progress::Done) return outcome;
  ++peer.eager.sent;
  if (room) peer.eager_in.told = peer.eager_in.count;
  return outcome;
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
  Op* const op = peer.ring.open() ? sender(copies_ ? copiers_ : senders_) : nullptr;
  if (op == nullptr) return Progress::Again;
  iovec pieces[2];
  const int pieces_count = gather(*op, parts, count, copies_, pieces);
  void* descriptors[2] = {op->block.descriptor, nullptr};
  const std::uint64_t at = peer.ring_at + peer.ring.sent % peer.ring.limit * peer.slot_bytes;
  const fi_rma_iov target{at, bytes, peer.key};
  fi_msg_rma message{};
  message.msg_iov = pieces;
  message.desc = descriptors;
  message.iov_count = static_cast<std::size_t>(pieces_count);
  message.addr = peer.address;
  message.rma_iov = &target;
  message.rma_iov_count = 1;
  message.context = op;
  message.data = Immediate{peer.their_id, Kind::Ring, peer.next}.pack();
  const Progress outcome = posted(
      peer, op, fi_writemsg(endpoint_, &message, FI_REMOTE_CQ_DATA | FI_COMPLETION), "fi_writemsg");
  if (outcome == Progress::Done) ++peer.ring.sent;
  return outcome;
}

unsigned Fabric::borrowed(Peer& peer) {
  const std::lock_guard lock(mutex_);
  if (peer.borrowed != 0) progress();
  return peer.borrowed;
}

}  // namespace hccomm::transport::ofi
