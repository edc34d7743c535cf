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

#include "base/config.hpp"
#include "base/log.hpp"
#include "transport/ofi/card.hpp"

namespace hccomm::transport::ofi {

static constexpr std::uint32_t kLayout = 5;
static constexpr std::size_t kScratchBytes = 4096;
static constexpr unsigned kSenders = 64;  // operations under way at once
static constexpr unsigned kCopiers = 16;  // and of large parts, where all must be copied
static constexpr Seconds kFarewell{1.0};  // for what was sent last to arrive

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
    for (const auto& rail : each->rails_) rail->sweep();
  }
}

Result<std::shared_ptr<Fabric>> Fabric::open(std::vector<Choice> choices) {
  std::shared_ptr<Fabric> fabric(new Fabric);
  {
    const std::lock_guard lock(all_open().mutex);
    static const int registered = std::atexit([] { end_all(); });
    if (registered != 0) return Status(Code::System, "ofi: atexit failed");
    all_open().fabrics.insert(fabric.get());
  }
  if (Status status = fabric->open_all(std::move(choices)); !status.ok()) return status;
  return fabric;
}

// A rail that does not open is left out, but for the first.
Status Fabric::open_all(std::vector<Choice> choices) {
  for (Choice& choice : choices) {
    auto rail = std::make_unique<Rail>(std::move(choice));
    Status status = rail->open();
    if (status.ok()) {
      rails_.push_back(std::move(rail));
    } else if (rails_.empty()) {
      return status;
    } else {
      HCCOMM_LOG(Info, "ofi: one rail less: ", status.text());
    }
  }
  if (Status status = open_bell(); !status.ok()) return status;
  cache_.set(config::bytes("HCCOMM_OFI_CACHE"));
  auto scratch = pool_.take(kScratchBytes);
  if (!scratch) return scratch.status();
  scratch_ = scratch.value();
  const bool test = std::getenv("HCCOMM_TEST_OFI_COPY") != nullptr;
  for (const auto& rail : rails_) {
    local_ = local_ || rail->has(FI_MR_LOCAL) || test;
    reaches_devices_ = reaches_devices_ && rail->reaches_devices;
    gathers_ = gathers_ && rail->choice.info->tx_attr->iov_limit >= 2 && !test;
  }
  Status status = make_senders(kSenders, kEagerBytes, senders_);
  if (status.ok() && (local_ || !gathers_)) {
    status = make_senders(kCopiers, kRingSlotBytes, copiers_);
  }
  if (!status.ok()) return status;
  by_id_.resize(kMaxPeers);
  keeper_ = std::thread([this] { tend(); });
  HCCOMM_LOG(Info, "ofi: provider ", provider(), " on ", domains(), ", ", library().readable());
  return {};
}

std::string Fabric::domains() const {
  std::string out;
  for (const auto& rail : rails_) out += (out.empty() ? "" : ", ") + rail->choice.domain;
  return out;
}

std::string Fabric::rails_used(Peer& peer) {
  const std::lock_guard lock(mutex_);
  std::string out;
  for (unsigned k = 0; k < peer.working && rails_.size() > 1; ++k) {
    const unsigned lane = peer.works[k];
    const Rail& rail = *rails_[peer.rail_of[lane]];
    out += text(", ", peer.sent_bytes[lane], " bytes over ", rail.choice.domain);
  }
  return out;
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
  untold_.reserve(ops_.size());
  return {};
}

Status Fabric::open_bell() {
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
  if (!ended_) {
    close_all();
  } else {
    for (const auto& rail : rails_) rail->abandon();
  }
}

void Fabric::close_all() noexcept {
  peers_.clear();
  const auto clear = [this] {
    cache_.clear();
    pool_.clear();
  };
  // Some registrations belong to the endpoint and go first; but none while it still works.
  const auto owned = [](const auto& rail) { return rail->has(FI_MR_ENDPOINT); };
  if (std::ranges::any_of(rails_, owned)) clear();
  for (const auto& rail : rails_) rail->close_endpoint();
  clear();
  rails_.clear();
}

// ---- memory that the program registers ----------------------------------------------------------

Status Fabric::keep(std::byte* data, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (ended_) return {Code::Aborted, "register: the process ends"};
  auto entry = cache_.keep(data, bytes);
  if (!entry) return entry.status();
  kept_.emplace(std::pair(data, bytes), entry.value());
  return {};
}

void Fabric::keep_no_more(const std::byte* data, std::size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = kept_.find({data, bytes});
  if (found == kept_.end()) return;
  if (!ended_) cache_.done(*found->second);
  kept_.erase(found);
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
  if (Status status = describe(inbox.value(), mine); !status.ok()) {
    pool_.give_back(inbox.value());
    return status;
  }
  mine.id = id;
  auto peer = std::make_unique<Peer>();
  peer->id = id;
  peer->inbox = inbox.value();
  by_id_[id] = peer.get();
  stir_.notify_all();
  return (peers_[id] = std::move(peer)).get();
}

Status Fabric::describe(const Block& inbox, Offer& mine) {
  mine = {};
  mine.layout = kLayout;
  mine.eager_bytes = kEagerBytes;
  mine.eager_slots = kEagerSlots;
  mine.slot_bytes = kRingSlotBytes;
  mine.ring_slots = kRingSlots;
  mine.eager_offset = kNothingBytes;
  mine.ring_offset = kRingAt;
  mine.rails = static_cast<std::uint32_t>(rails_.size());
  mine.abilities = kRings | kTakesPieces;
  for (unsigned index = 0; index < rails_.size(); ++index) {
    auto& at = mine.rail[index];
    const Choice& choice = rails_[index]->choice;
    choice.domain.copy(at.domain, sizeof at.domain - 1);
    network_of(*choice.info).copy(at.network, sizeof at.network - 1);
    at.inbox_address = inbox.memory->address(index, inbox.data);
    at.key = inbox.memory->key[index];
    std::size_t bytes = sizeof at.name;
    const int err = fi_getname(&rails_[index]->endpoint->fid, at.name, &bytes);
    if (err != 0) return rails_[index]->check(err, "fi_getname");
    at.name_bytes = static_cast<std::uint32_t>(bytes);
  }
  return {};
}

std::string cards_of(const Offer& offer) {
  std::string out;
  for (unsigned index = 0; index < offer.rails; ++index) {
    const auto& at = offer.rail[index];
    out += text(index == 0 ? "" : ", ", at.domain, " (", at.network, ")");
  }
  return out;
}

std::vector<std::pair<unsigned, unsigned>> lanes_of(const Offer& one, const Offer& other) {
  std::vector<std::pair<unsigned, unsigned>> out;
  // Whoever's endpoint has the lesser name goes through its rails in order.
  const bool swapped =
      std::memcmp(one.rail[0].name, other.rail[0].name, sizeof one.rail[0].name) > 0;
  const Offer& first = swapped ? other : one;
  const Offer& second = swapped ? one : other;
  std::array<bool, kMaxRails> taken{};
  for (unsigned i = 0; i < first.rails; ++i) {
    for (unsigned j = 0; j < second.rails; ++j) {
      if (taken[j] || std::strcmp(first.rail[i].network, second.rail[j].network) != 0) continue;
      taken[j] = true;
      out.emplace_back(i, j);
      break;
    }
  }
  const unsigned common = out.empty() ? std::min(first.rails, second.rails) : 0;
  for (unsigned i = 0; i < common; ++i) out.emplace_back(i, i);
  for (auto& [mine, theirs] : out) {
    if (swapped) std::swap(mine, theirs);
  }
  return out;
}

static bool sane(const Offer& theirs) {
  bool out = theirs.id < kMaxPeers && theirs.eager_bytes >= 1024 && theirs.eager_bytes % 16 == 0 &&
             theirs.eager_slots >= 1 && theirs.eager_slots <= kEagerSlots &&
             theirs.slot_bytes >= theirs.eager_bytes && theirs.slot_bytes <= kRingSlotBytes &&
             theirs.slot_bytes % 16 == 0 && theirs.ring_slots >= 1 &&
             theirs.ring_slots <= kRingSlots && theirs.eager_bytes <= kEagerBytes &&
             theirs.rails >= 1 && theirs.rails <= kMaxRails;
  for (const auto& rail : theirs.rail) {
    out = out && rail.name_bytes <= sizeof rail.name && rail.domain[sizeof rail.domain - 1] == 0 &&
          rail.network[sizeof rail.network - 1] == 0;
  }
  return out;
}

Status Fabric::introduce(Peer& peer, const Offer& mine, const Offer& theirs) {
  if (theirs.layout != kLayout) {
    return {Code::Unavailable,
            text("ofi: the peer's frames have layout ", theirs.layout, ", this build's ", kLayout)};
  }
  if (!sane(theirs)) return {Code::Integrity, "ofi: the peer's offer is damaged"};
  const std::lock_guard lock(mutex_);
  peer.their_id = theirs.id;
  peer.eager.limit = theirs.eager_slots;
  peer.ring.limit = theirs.ring_slots;
  peer.direct.limit = kDirectWrites;
  peer.eager_bytes = theirs.eager_bytes;
  peer.slot_bytes = theirs.slot_bytes;
  peer.eager_offset = theirs.eager_offset;
  peer.ring_offset = theirs.ring_offset;
  peer.rings = (theirs.abilities & kRings) != 0;
  const auto lanes = lanes_of(mine, theirs);
  peer.lanes = static_cast<unsigned>(lanes.size());
  for (unsigned lane = 0; lane < peer.lanes; ++lane) {
    const auto& at = theirs.rail[lanes[lane].second];
    peer.inbox_at[lane] = at.inbox_address;
    peer.key[lane] = at.key;
    peer.rail_of[lane] = static_cast<std::uint8_t>(lanes[lane].first);
    Rail& rail = *rails_[lanes[lane].first];
    peer.in_pieces = (theirs.abilities & kTakesPieces) != 0 && rail.inject_bytes >= kPieceBytes;
    if (fi_av_insert(rail.addresses, at.name, 1, &peer.address[lane], 0, nullptr) != 1) {
      return {Code::Unavailable, text("ofi: provider ", provider(), " on ", rail.choice.domain,
                                      " cannot make use of the peer's address")};
    }
  }
  return {};
}

bool Fabric::greet(Peer& peer) {
  const std::lock_guard lock(mutex_);
  progress();
  bool taken = true;
  for (unsigned lane = 0; lane < peer.lanes; ++lane) {
    const bool works = (peer.met >> lane & 1) != 0;
    const bool sent = inject(peer, Kind::Hello, static_cast<std::uint16_t>(lane), lane);
    taken = taken && (sent || !works);
  }
  return taken || shut(peer);
}

unsigned Fabric::met(Peer& peer, unsigned& lanes) {
  const std::lock_guard lock(mutex_);
  progress();
  lanes = peer.lanes;
  unsigned working = 0;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if ((peer.met >> lane & 1) != 0) peer.works[working++] = static_cast<std::uint8_t>(lane);
  }
  peer.working = std::max(working, 1u);
  return working;
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

}  // namespace hccomm::transport::ofi
