// SPDX-License-Identifier: Apache-2.0
#include "comm/archipelago.hpp"

#include <algorithm>
#include <numeric>

#include "base/log.hpp"
#include "collective/collective.hpp"
#include "plan/shape.hpp"

namespace hccomm::comm {

using plan::Collective;

static constexpr std::uint64_t kBlockBytes = 2 << 20;
static constexpr std::uint64_t kSmall = 64 << 10;  // bytes; below, one staged hop is quicker

Archipelago::Archipelago(Communicator& parent, Chart chart, engine::Where where,
                         std::unique_ptr<native::Group> group)
    : parent_(parent), chart_(std::move(chart)), where_(where), group_(std::move(group)) {
  for (const auto& island : chart_.islands) shares_.emplace_back(island.size(), 64u);
  reshare({});
}

Status Archipelago::open() {
  if (where_.runtime == nullptr) return {};
  device::Runtime& runtime = *where_.runtime;
  ferry_.emplace(where_);
  try {
    stream_ = runtime.stream_create(where_.index).take();
    done_ = runtime.event_create(where_.index).take();
    for (Slot& slot : slots_) {
      if (chart_.islands.size() == 1) break;
      slot.host = static_cast<std::byte*>(runtime.host_allocate(where_.index, kBlockBytes).take());
      if (Ferry::checks()) {
        slot.again =
            static_cast<std::byte*>(runtime.host_allocate(where_.index, kBlockBytes).take());
      }
      slot.out = runtime.event_create(where_.index).take();
      slot.in = runtime.event_create(where_.index).take();
      if (group_ != nullptr) slot.scratch = runtime.allocate(where_.index, kBlockBytes).take();
    }
  } catch (const Error& failure) {
    return failure.status();
  }
  return {};
}

bool Archipelago::drain() {
  return done_.native == nullptr || Ferry::drain(*where_.runtime, done_, stream_);
}

Archipelago::~Archipelago() {
  if (where_.runtime == nullptr) return;
  const bool quiet = drain();
  if (!quiet) {  // the library, or a copy, goes on using all of it
    HCCOMM_LOG(Warn, "islands: work on ", where_.name, ":", where_.index,
               " does not end; its memory stays where it is");
    abort();
    return;
  }
  group_.reset();
  device::Runtime& runtime = *where_.runtime;
  for (Slot& slot : slots_) {
    if (slot.out.native != nullptr) runtime.event_destroy(slot.out);
    if (slot.in.native != nullptr) runtime.event_destroy(slot.in);
    if (slot.scratch.handle != nullptr) runtime.release(where_.index, slot.scratch);
    for (std::byte* const each : {slot.host, slot.again}) {
      if (each != nullptr) runtime.host_free(where_.index, each);
    }
  }
  if (done_.native != nullptr) runtime.event_destroy(done_);
  if (stream_.native != nullptr) runtime.stream_destroy(stream_);
}

void Archipelago::abort() {
  if (group_ != nullptr) group_->abort();
}

int Archipelago::island_of(int rank) const {
  for (std::size_t each = 0; each < chart_.islands.size(); ++each) {
    if (std::ranges::count(chart_.islands[each], rank) > 0) return static_cast<int>(each);
  }
  return 0;
}

static int place_of(const std::vector<int>& island, int rank) {
  return static_cast<int>(std::ranges::find(island, rank) - island.begin());
}

// Also makes the lanes: who of each island serves what goes to, or comes from, one rank alone.
void Archipelago::reshare(const std::vector<double>& rates) {
  std::vector<std::vector<double>> ends(rates.empty() ? 0 : shares_.size());
  for (std::size_t island = 0; island < ends.size(); ++island) {
    for (const int rank : chart_.islands[island]) {
      ends[island].push_back(rates[static_cast<std::size_t>(rank)]);
    }
  }
  native::settle_ends(ends);
  for (std::size_t island = 0; island < ends.size(); ++island) {
    shares_[island] = native::reshare(shares_[island], ends[island]);
  }
  lanes_.assign(static_cast<std::size_t>(parent_.size()), {});
  for (int rank = 0; rank < parent_.size(); ++rank) {
    for (std::size_t island = 0; island < shares_.size(); ++island) {
      const std::vector<int>& ranks = chart_.islands[island];
      const int owner =
          static_cast<int>(island) == island_of(rank)
              ? place_of(ranks, rank)
              : native::owner_of_piece(static_cast<std::size_t>(rank), shares_[island]);
      lanes_[static_cast<std::size_t>(rank)].push_back(native::only(ranks.size(), owner));
    }
  }
  crossed_ = 0;
  busy_ = 0;
}

static bool reduces(Collective collective) {
  return collective == Collective::AllReduce || collective == Collective::Reduce ||
         collective == Collective::ReduceScatter;
}

const char* way(const Chart& chart) {
  return chart.islands.size() == 1 ? "by the island's library"
                                   : "the libraries inside islands, rails between them";
}

std::string Archipelago::refuses(const plan::Call& call) const {
  return comm::refuses(chart_, call, parent_.size());
}

std::string refuses(const Chart& chart, const plan::Call& call, int size) {
  const auto type = static_cast<std::size_t>(call.type);
  if (call.collective == Collective::Barrier) return "no data: a hop between hosts is quicker";
  if (reduces(call.collective) && (chart.reduces[type] >> static_cast<int>(call.op) & 1) == 0) {
    return text("a library of an island has no ", dtype::name(call.op), " of ",
                dtype::name(call.type));
  }
  const bool in_parts =
      call.collective == Collective::AllGather || call.collective == Collective::ReduceScatter;
  std::uint64_t count = call.count;
  for (const std::uint64_t each : call.counts) count = std::max(count, each);
  if (chart.islands.size() == 1) {
    const bool moves = call.collective == Collective::Gather ||
                       call.collective == Collective::Scatter ||
                       call.collective == Collective::AllToAll ||
                       (call.collective == Collective::AllGather && !call.counts.empty());
    if (moves && !chart.messages) return "the island's library has no messages";
    const bool agreed = call.counts.empty() || in_parts;
    return agreed && count == 0 ? "nothing to move" : "";
  }
  if (!reduces(call.collective) && call.collective != Collective::AllGather &&
      call.collective != Collective::Broadcast) {
    return "every byte has one receiver: islands save nothing";
  }
  const std::uint64_t all = in_parts ? count * static_cast<std::uint64_t>(size) : count;
  if (all * dtype::size_of(call.type) < kSmall) return "below 64 KiB one staged hop is quicker";
  return "";
}

// Pieces that each go to, or come from, one rank alone, in turns so that all rails are in use.
void Archipelago::pieces(const Work& work, bool by_root, std::vector<Block>& blocks) {
  const plan::Call& call = work.request.call;
  const std::uint64_t step = std::max<std::uint64_t>(kBlockBytes / work.element, 1);
  std::uint64_t longest = 0;
  for (int rank = 0; rank < parent_.size(); ++rank) {
    longest = std::max(longest, plan::part_count(call, rank));
  }
  for (std::uint64_t from = 0; from < longest; from += step) {
    for (int rank = 0; rank < parent_.size(); ++rank) {
      const std::uint64_t count = plan::part_count(call, rank);
      if (from >= count) continue;
      const std::uint64_t offset = plan::part(call, rank).offset + from;
      Block block{from, from, std::min(step, count - from), rank,
                  &lanes_[static_cast<std::size_t>(rank)]};
      (by_root ? block.in : block.out) = offset;
      blocks.push_back(block);
    }
  }
}

// Whole multiples of every island's ranks, where that is possible, keep the parts equal.
static std::uint64_t unit_of(const Chart& chart) {
  std::uint64_t unit = 1;
  for (const auto& island : chart.islands) unit = std::lcm(unit, island.size());
  return unit;
}

std::uint64_t block_elements(const Chart& chart, std::size_t element_bytes) {
  const std::uint64_t unit = unit_of(chart);
  const std::uint64_t most = std::max<std::uint64_t>(kBlockBytes / element_bytes, 1);
  return unit <= most ? most / unit * unit : most;
}

std::vector<Archipelago::Block> Archipelago::blocks_of(const Work& work) {
  const plan::Call& call = work.request.call;
  std::vector<Block> blocks;
  if (call.collective == Collective::ReduceScatter) return pieces(work, true, blocks), blocks;
  if (call.collective == Collective::AllGather) return pieces(work, false, blocks), blocks;
  const int root = call.collective == Collective::AllReduce ? -1 : call.root;
  const std::vector<native::Shares>* shares = &shares_;
  if (call.collective == Collective::Reduce) {  // the root's island hands all to the root
    rooted_ = shares_;
    const auto home = static_cast<std::size_t>(island_of(root));
    const std::vector<int>& ranks = chart_.islands[home];
    rooted_[home] = native::only(ranks.size(), place_of(ranks, root));
    shares = &rooted_;
  }
  const std::uint64_t unit = unit_of(chart_), step = block_elements(chart_, work.element);
  for (std::uint64_t from = 0; from < call.count; from += step) {
    blocks.push_back({from, from, std::min(step, call.count - from), root, shares});
  }
  if (!blocks.empty() && blocks.back().count % unit != 0 && blocks.back().count > unit) {
    Block rest = blocks.back();  // the last elements apart
    const std::uint64_t main = rest.count / unit * unit;
    blocks.back().count = main;
    rest.in += main, rest.out += main, rest.count -= main;
    blocks.push_back(rest);
  }
  return blocks;
}

device::Place Archipelago::at(device::Place place, std::uint64_t bytes) const {
  return {place.handle, place.offset + bytes};
}

// The communicator of one owner per island; a group is known by its ranks, so no message is needed.
Communicator& Archipelago::rail(const std::vector<int>& ranks) {
  std::unique_ptr<Communicator>& own = rails_[ranks];
  if (own == nullptr) own = parent_.group(ranks, "islands.rail", Seconds(0), false);
  return *own;
}

// One block leaves the device while one crosses and one enters.
Status Archipelago::cross_all(Work& work) {
  const std::vector<Block> blocks = blocks_of(work);
  Turn turns[kSlots];
  for (Slot& slot : slots_) slot.bytes = 0;  // of a call that failed
  const std::size_t count = blocks.size();
  Status status;
  for (std::size_t now = 0; now < count + 2 && status.ok(); ++now) {
    if (now < count) {
      Turn& turn = turns[now % kSlots];
      begin_turn(work, turn, blocks[now], now);
      if (where_.runtime != nullptr && now >= kSlots) {
        status = await(work, *turn.slot, false);
      }
      if (status.ok()) status = leave(work, turn);
    }
    if (status.ok() && now >= 1 && now - 1 < count) status = cross(work, turns[(now - 1) % kSlots]);
    if (status.ok() && now >= 2) status = enter(work, turns[(now - 2) % kSlots]);
  }
  for (Turn& turn : turns) {
    if (turn.crossing.empty()) continue;
    const Status echo(Code::Aborted, text("islands: another rank has given up: ", status.text()));
    for (auto& [comm, operation] : turn.crossing) comm->fail(echo);
    (void)work.watch.settle(turn.crossing);
  }
  return status;
}

Status Archipelago::run(const Request& request, const Gate (&gates)[2], Watch& watch) {
  Work work{request, watch, {}, {}, reduces(request.call.collective), {}, 1};
  work.element = dtype::size_of(request.call.type);
  work.how = {request.call.type, request.call.op, request.factor};
  if (!direct() && work.how.op == dtype::RedOp::Avg) work.how.op = dtype::RedOp::Sum;
  Status status;
  for (const Gate& gate : gates) {
    if (gate.runtime == nullptr || !status.ok()) continue;
    status = gate.runtime == where_.runtime ? gate.runtime->stream_wait(stream_, gate.event)
                                            : watch.await(*gate.runtime, gate.event, nullptr);
  }
  std::vector<Guest> guests;
  if (status.ok()) status = receive_guests(work, guests);
  if (status.ok()) status = direct() ? direct(work) : cross_all(work);
  if (status.ok() && where_.runtime != nullptr) {
    status = where_.runtime->event_record(done_, stream_);
    if (status.ok()) status = watch.await(*where_.runtime, done_, group_.get());
    for (Slot& slot : slots_) {
      if (status.ok()) status = prove(slot, false);
    }
  }
  bool quiet = true;
  if (!status.ok() && !guests.empty()) {  // the library may be at work on them
    abort();
    quiet = drain();
  }
  for (Guest& guest : guests) {
    if (status.ok() && guest.back) status = pass(guest, false, watch);
    if (quiet && guest.memory.empty() && guest.place.handle != nullptr) {
      where_.runtime->release(where_.index, guest.place);
    }
  }
  return status;
}

Json Archipelago::describe() const {
  Json all = Json::array();
  for (std::size_t island = 0; island < chart_.islands.size(); ++island) {
    Json ranks = Json::array(), shares = Json::array();
    for (const int each : chart_.islands[island]) ranks.push(each);
    for (const std::uint32_t each : shares_[island]) shares.push(static_cast<int>(each));
    all.push(Json::object()
                 .add("kind", chart_.kinds[island])
                 .add("ranks", ranks)
                 .add("library", chart_.libraries[island])
                 .add("shares", shares));
  }
  return all;
}

}  // namespace hccomm::comm
