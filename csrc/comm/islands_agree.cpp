// SPDX-License-Identifier: Apache-2.0
//
// How the ranks of a communicator agree on islands: each tells what it uses, all compute the same,
// then the vendors' libraries join. What goes wrong on one rank is known to all.
#include <atomic>
#include <cstring>
#include <numeric>

#include "base/config.hpp"
#include "base/log.hpp"
#include "comm/islands.hpp"
#include "device/registry.hpp"
#include "native/islands.hpp"

namespace hccomm::comm {

static constexpr std::uint64_t kMaxId = 1 << 20;  // bytes
static constexpr std::uint64_t kPatient = 4;      // calls by which a rank has shown its device

// What a rank tells; fixed in size, so that all can gather it.
struct Told {
  char kind[24], device[96], compatible[64];
  std::uint32_t reduces[dtype::kDTypes];
  std::uint8_t messages, settled, keeps, fails;
};

template <std::size_t N>
static void put(char (&field)[N], const std::string& value) {
  std::memset(field, 0, N);
  std::memcpy(field, value.data(), std::min(value.size(), N - 1));
}

// A communicator of all ranks of the parent, made at its first use.
Communicator& Islands::everyone(std::unique_ptr<Communicator>& which, const char* name) {
  if (which == nullptr) {
    std::vector<int> all(static_cast<std::size_t>(parent_.size()));
    std::iota(all.begin(), all.end(), 0);
    which = parent_.group(all, name, Seconds(0), false);
  }
  return *which;
}

// The first problem that any rank has, on all of them; an echo of another's only if there is none.
Status Islands::share(const Status& mine, Watch& watch) {
  struct Problem {
    std::int32_t code;
    char text[300];
  } own{};
  own.code = static_cast<std::int32_t>(mine.code());
  put(own.text, mine.text());
  auto all = gather(talk(), own, watch);
  if (!all.ok()) return all.status();
  Status first;
  for (std::size_t rank = 0; rank < all.value().size(); ++rank) {
    const Problem& each = all.value()[rank];
    const auto code = static_cast<Code>(each.code);
    if (code != Code::Ok &&
        (first.ok() || (first.code() == Code::Aborted && code != first.code()))) {
      first = {code, text("rank ", rank, ": ", each.text), static_cast<int>(rank)};
    }
  }
  return first;
}

static void tell_library(native::Library& library, Told& told) {
  put(told.compatible, library.compatible());
  told.messages = library.lacks_messages().empty() ? 1 : 0;
  for (int type = 0; type < dtype::kDTypes; ++type) {
    for (int op = 0; op < dtype::kRedOps; ++op) {
      if (!library.refuses(dtype::DType(type), dtype::RedOp(op)).empty()) {
        told.reduces[type] &= ~(1u << op);
      }
    }
  }
}

// A device told by what its runtime calls it: ranks may each see only their own, as number 0.
static std::string device_name(const engine::Where& where) {
  return text(where.name, ": ", where.runtime->describe(where.index));
}

static Chart chart_of(const std::vector<Told>& all, std::vector<std::vector<int>> islands,
                      int rank) {
  Chart chart;
  chart.islands = std::move(islands);
  chart.messages = true;
  std::ranges::fill(chart.reduces, ~0u);
  constexpr auto bit = [](dtype::RedOp op) { return 1u << static_cast<int>(op); };
  for (std::size_t each = 0; each < chart.islands.size(); ++each) {
    const std::vector<int>& ranks = chart.islands[each];
    const Told& first = all[static_cast<std::size_t>(ranks[0])];
    chart.kinds.push_back(first.kind);
    chart.libraries.push_back(ranks.size() > 1 ? first.compatible : "none: one rank");
    if (std::ranges::count(ranks, rank) > 0) {
      chart.island = static_cast<int>(each);
      chart.place = static_cast<int>(std::ranges::find(ranks, rank) - ranks.begin());
    }
    if (ranks.size() < 2) continue;
    chart.messages = chart.messages && first.messages != 0;
    for (int type = 0; type < dtype::kDTypes; ++type) {
      std::uint32_t does = first.reduces[type];
      if (chart.islands.size() > 1) {  // the mean is of all: summed inside, divided between
        does &= ~bit(dtype::RedOp::Avg);
        if ((does & bit(dtype::RedOp::Sum)) != 0) does |= bit(dtype::RedOp::Avg);
      }
      chart.reduces[type] &= does;
    }
  }
  return chart;
}

// Joins the vendor's group. Where a rank cannot, the others of its island need not wait for it.
Status Islands::join(const Chart& chart, const engine::Where& where,
                     std::unique_ptr<native::Group>& group, Watch& watch) {
  if (chart.islands[static_cast<std::size_t>(chart.island)].size() < 2) return {};
  const auto& ranks = chart.islands[static_cast<std::size_t>(chart.island)];
  members_ = parent_.group(ranks, "islands.members", Seconds(0), false);
  const Status status = meet(chart, where, group, watch);
  if (!status.ok()) members_->fail(Status(Code::Aborted, "islands: another rank cannot join"));
  return status;
}

// Hands bytes of the island's first rank to the others.
static Status hand_out(Communicator& members, std::byte* data, std::uint64_t bytes, Watch& watch) {
  Request request;
  request.call.collective = plan::Collective::Broadcast;
  request.call.type = dtype::DType::U8;
  request.call.count = bytes;
  request.input = request.output = {data, bytes, {}};
  request.timeout = watch.left();
  std::vector<Started> started{{&members, members.start(request)}};
  return watch.settle(started);
}

// The library's id, which the island's first rank makes: its length first, then the id.
static Result<std::string> share_id(Communicator& members, native::Library& library, Watch& watch) {
  std::string id;
  Status made;
  if (members.rank() == 0) {
    auto own = library.make_id();
    if (!own.ok()) {
      made = own.status();
    } else if (own.value().size() > kMaxId) {
      made = {Code::Internal, text("an island's id of ", own.value().size(), " bytes is too long")};
    } else {
      id = std::move(own).value();
    }
  }
  std::uint64_t bytes = id.size();
  Status status = hand_out(members, reinterpret_cast<std::byte*>(&bytes), sizeof bytes, watch);
  if (!made.ok()) return made;
  if (!status.ok()) return status;
  if (bytes == 0 || bytes > kMaxId) {
    return Status(Code::Unavailable, "the island's first rank made no id");
  }
  id.resize(bytes);
  status = hand_out(members, reinterpret_cast<std::byte*>(id.data()), bytes, watch);
  if (!status.ok()) return status;
  return id;
}

// All ranks of the island join with the id.
Status Islands::meet(const Chart& chart, const engine::Where& where,
                     std::unique_ptr<native::Group>& group, Watch& watch) try {
  const device::Kind kind = device::Registry::global().kind(std::string(where.name)).take();
  native::Library* library = native::library(kind).take();
  auto id = share_id(*members_, *library, watch);
  if (!id.ok()) return id.status();
  // The library blocks until all have come, which nobody can end: on a thread of its own, that is
  // left behind where a rank does not come in time.
  struct Joining {
    std::atomic<bool> over{false};
    Status status;
    std::unique_ptr<native::Group> group;
  };
  auto joining = std::make_shared<Joining>();
  std::thread([joining, library, id = id.value(), where, place = chart.place,
               size = members_->size()] {
    auto joined = library->join(id, place, size, *where.runtime, where.index);
    if (joined.ok()) {
      joining->group = std::move(joined).value();
    } else {
      joining->status = joined.status();
    }
    joining->over.store(true, std::memory_order_release);
  }).detach();
  while (!joining->over.load(std::memory_order_acquire)) {
    if (Status status = watch.trouble(); !status.ok()) return status;
    if (Status status = members_->trouble(); !status.ok()) return status;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  group = std::move(joining->group);
  return joining->status;
} catch (const Error& failure) {
  return failure.status();
} catch (const std::system_error& refused) {
  return no_thread(refused);
}

Status Islands::agree(Job* job, Watch& watch) {
  Told told{};
  put(told.kind, "host");
  std::ranges::fill(told.reduces, ~0u);
  told.keeps = failure_ == "fallback" ? 1 : 0;
  told.fails = failure_ == "fail" ? 1 : 0;
  engine::Where where;
  Status status;
  const std::string hint = hint_of(parent_.card_of(parent_.rank())).value_or(";");
  DeviceBuffer place;  // later calls, which are being queued meanwhile, may lie elsewhere
  {
    const std::lock_guard lock(mutex_);
    place = place_;
  }
  told.settled = hint.starts_with(";") || job == nullptr ? 1 : 0;
  if (place.kind != 0) {
    Result<engine::Where> found = locate("islands", place);
    if (found.ok()) {
      where = found.value();
      told.settled = 1;
      put(told.kind, std::string(where.name));
      put(told.device, device_name(where));
      auto library = native::library(static_cast<device::Kind>(place.kind));
      if (library.ok()) tell_library(*library.value(), told);
    } else if (job == nullptr) {
      status = found.status();
    }
  }
  if (job == nullptr) {
    if (Status shared = share(status, watch); !shared.ok()) return shared;
  }
  auto gathered = gather(talk(), told, watch);
  if (!gathered.ok()) return gathered.status();
  const std::vector<Told>& all = gathered.value();
  std::vector<native::Member> members;
  bool settled = true, keeps = true;
  for (int rank = 0; rank < parent_.size(); ++rank) {
    const Told& each = all[static_cast<std::size_t>(rank)];
    const std::string theirs = hint_of(parent_.card_of(rank)).value_or(";");
    members.push_back({each.kind, each.device, each.compatible, parent_.card_of(rank).host, "",
                       theirs.substr(theirs.find(';') + 1)});
    settled = settled && each.settled != 0;
    keeps = keeps && each.keeps != 0;
    fails_ = fails_ || each.fails != 0;
  }
  auto islands = native::find_islands(members);
  if (!settled && seen_ < kPatient) return {};  // a later call may show more
  {
    const std::lock_guard lock(mutex_);
    members_told_ = members;
  }
  if (islands.size() == members.size()) {
    const std::lock_guard lock(mutex_);
    why_ = "no two ranks share a library: " + native::why_apart(members[0], members.back());
    return {};
  }
  Chart chart = chart_of(all, std::move(islands), parent_.rank());
  std::unique_ptr<native::Group> group;
  status = join(chart, where, group, watch);
  auto made = std::make_unique<Archipelago>(parent_, std::move(chart), where, std::move(group));
  if (status.ok()) status = made->open();
  const Status shared = share(status, watch);
  if (!shared.ok()) {
    made->abort();  // a library may want all its ranks to leave together, and some are not there
    if (!parent_.trouble().ok()) return parent_.trouble();
    if (fails_ || job == nullptr) return shared;
    turn_off(shared.text());
    return {};
  }
  const std::lock_guard lock(mutex_);
  archipelago_ = std::move(made);
  keeps_ = keeps;
  state_ = State::On;
  return {};
}

}  // namespace hccomm::comm
