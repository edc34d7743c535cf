// SPDX-License-Identifier: Apache-2.0
//
// How the ranks of a communicator agree on islands: each tells what it is, all compute the same,
// then islands are joined and rails made. What goes wrong on one rank is thrown on all.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/json.hpp"
#include "comm/two_level.hpp"
#include "device/registry.hpp"
#include "native/islands.hpp"

namespace hccomm::comm {

static constexpr std::uint64_t kMaxUnits = 1024;
static constexpr std::size_t kMaxId = 8192;
static constexpr std::uint64_t kBlockBytes = 4 << 20;

// What a rank tells; fixed in size, so that all can gather it.
struct Told {
  char kind[24], device[32], compatible[64], host[64], problem[256];
  std::uint32_t reduces[dtype::kDTypes];
};

template <std::size_t N>
static void put(char (&field)[N], const std::string& value) {
  std::memset(field, 0, N);
  std::memcpy(field, value.data(), std::min(value.size(), N - 1));
}

// Gathers a record of every rank. Throws what the communicator has failed with.
template <typename Record>
static std::vector<Record> gather(Communicator& comm, const Record& mine) {
  std::vector<Record> all(static_cast<std::size_t>(comm.size()));
  Request request;
  request.call.collective = plan::Collective::AllGather;
  request.call.type = dtype::DType::U8;
  request.call.count = sizeof(Record);
  Record own = mine;
  request.input = {reinterpret_cast<std::byte*>(&own), sizeof(Record), {}};
  request.output = {reinterpret_cast<std::byte*>(all.data()), sizeof(Record) * all.size(), {}};
  if (const Status status = comm.run(request); !status.ok()) throw Error(status);
  return all;
}

// Throws, on all ranks, the first problem that any of them has.
static void share(Communicator& comm, const Status& mine) {
  struct Problem {
    std::int32_t code;
    char text[300];
  } own{};
  own.code = static_cast<std::int32_t>(mine.code());
  put(own.text, mine.text());
  const auto all = gather(comm, own);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].code == 0) continue;
    throw Error(static_cast<Code>(all[rank].code),
                text("use_islands: rank ", rank, ": ", all[rank].text), static_cast<int>(rank));
  }
}

TwoLevel::TwoLevel(Communicator& parent, const DeviceBuffer& mine) : parent_(parent), mine_(mine) {}

std::unique_ptr<TwoLevel> TwoLevel::make(Communicator& parent, const DeviceBuffer& mine) {
  std::unique_ptr<TwoLevel> made(new TwoLevel(parent, mine));
  made->agree();
  made->make_rails();
  Status status;
  try {
    made->open_device();
  } catch (const Error& failure) {
    status = failure.status();
  }
  share(parent, status);
  made->worker_ = std::thread([self = made.get()] { self->work(); });
  return made;
}

void TwoLevel::agree() {
  Told told{};
  put(told.kind, "host");
  put(told.host, parent_.card_of(parent_.rank()).host);
  std::ranges::fill(told.reduces, ~0u);
  Status status;
  if (mine_.kind != 0) {
    Result<engine::Where> where = locate("use_islands", mine_);
    if (where.ok()) {
      where_ = where.value();
      put(told.kind, std::string(where_.name));
      put(told.device, text(where_.name, ":", where_.index));
      auto library = native::library(static_cast<device::Kind>(mine_.kind));
      if (library.ok()) {
        library_ = library.value()->compatible();
        put(told.compatible, library_);
        for (int type = 0; type < dtype::kDTypes; ++type) {
          for (int op = 0; op < dtype::kRedOps; ++op) {
            const auto real =
                op == static_cast<int>(dtype::RedOp::Avg) ? dtype::RedOp::Sum : dtype::RedOp(op);
            if (!library.value()->refuses(dtype::DType(type), real).empty()) {
              told.reduces[type] &= ~(1u << op);
            }
          }
        }
      }
    } else {
      status = where.status();
    }
  }
  share(parent_, status);
  const std::vector<Told> all = gather(parent_, told);
  std::vector<native::Member> members;
  for (const Told& each : all) {
    members.push_back({each.kind, each.device, each.compatible, each.host, "", ""});
  }
  islands_ = native::find_islands(members);
  for (std::size_t island = 0; island < islands_.size(); ++island) {
    const std::vector<int>& ranks = islands_[island];
    const Told& first = all[static_cast<std::size_t>(ranks[0])];
    kinds_.push_back(first.kind);
    units_ = std::lcm(units_, static_cast<std::uint64_t>(ranks.size()));
    const auto at = std::ranges::find(ranks, parent_.rank());
    if (at == ranks.end()) continue;
    island_ = static_cast<int>(island);
    place_ = static_cast<int>(at - ranks.begin());
  }
  std::ranges::fill(reduces_, ~(1u << static_cast<int>(dtype::RedOp::PremulSum)));
  for (const std::vector<int>& ranks : islands_) {
    if (ranks.size() < 2) continue;
    for (int type = 0; type < dtype::kDTypes; ++type) {
      reduces_[type] &= all[static_cast<std::size_t>(ranks[0])].reduces[type];
    }
  }
  if (units_ > kMaxUnits) {
    throw Error(Code::Unavailable,
                text("use_islands: islands of these sizes share their data in ", units_,
                     " parts, at most ", kMaxUnits, " are worth it; leave ranks out"));
  }
  try {
    join_island(islands_[static_cast<std::size_t>(island_)]);
  } catch (const Error& failure) {
    status = failure.status();
  }
  share(parent_, status);
}

// Joins the vendor's group; its id goes from the island's first rank to the others.
void TwoLevel::join_island(const std::vector<int>& ranks) {
  if (ranks.size() < 2) return;
  native::Library* library = native::library(static_cast<device::Kind>(mine_.kind)).take();
  members_ = parent_.group(ranks, "island", Seconds(0));
  std::vector<std::byte> parcel(sizeof(std::uint64_t) + kMaxId);
  std::uint64_t bytes = 0;
  Status made;
  if (place_ == 0) {
    auto id = library->make_id();
    if (id.ok() && id.value().size() <= kMaxId) {
      bytes = id.value().size();
      std::memcpy(parcel.data() + sizeof bytes, id.value().data(), bytes);
    } else {
      made = id.ok() ? Status(Code::Internal, "the island's id is too long") : id.status();
    }
    std::memcpy(parcel.data(), &bytes, sizeof bytes);
  }
  Request request;
  request.call.collective = plan::Collective::Broadcast;
  request.call.type = dtype::DType::U8;
  request.call.count = parcel.size();
  request.input = request.output = {parcel.data(), parcel.size(), {}};
  if (const Status status = members_->run(request); !status.ok()) throw Error(status);
  if (!made.ok()) throw Error(made);
  std::memcpy(&bytes, parcel.data(), sizeof bytes);
  if (bytes == 0) throw Error(Code::Unavailable, "the island's first rank made no id");
  const std::string id(reinterpret_cast<const char*>(parcel.data()) + sizeof bytes, bytes);
  group_ = library->join(id, place_, static_cast<int>(ranks.size()), *where_.runtime, where_.index)
               .take();
}

// A rail joins, across islands, those ranks that own the same units. Every rank makes its own; a
// group is known by its ranks and name, so no message is needed.
void TwoLevel::make_rails() {
  std::vector<int> all(static_cast<std::size_t>(parent_.size()));
  std::iota(all.begin(), all.end(), 0);
  all_ = parent_.group(all, "tail", Seconds(0));
  const auto owners = [&](std::uint64_t unit) {
    std::vector<int> ranks;
    for (const std::vector<int>& island : islands_) {
      ranks.push_back(island[unit * island.size() / units_]);
    }
    return ranks;
  };
  for (std::uint64_t begin = 0; begin < units_;) {
    const std::vector<int> ranks = owners(begin);
    std::uint64_t end = begin + 1;
    while (end < units_ && owners(end) == ranks) ++end;
    if (ranks.size() > 1 && std::ranges::count(ranks, parent_.rank()) > 0) {
      rails_.push_back({begin, end, parent_.group(ranks, text("rail.", begin), Seconds(0))});
    }
    begin = end;
  }
}

void TwoLevel::open_device() {
  if (where_.runtime == nullptr) return;
  device::Runtime& runtime = *where_.runtime;
  const std::uint64_t part = kBlockBytes / islands_[static_cast<std::size_t>(island_)].size();
  stream_ = runtime.stream_create(where_.index).take();
  done_ = runtime.event_create(where_.index).take();
  for (Slot& slot : slots_) {
    slot.host = static_cast<std::byte*>(runtime.host_allocate(where_.index, part + 4096).take());
    slot.out = runtime.event_create(where_.index).take();
  }
}

TwoLevel::~TwoLevel() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  if (worker_.joinable()) worker_.join();
  if (where_.runtime == nullptr) return;
  device::Runtime& runtime = *where_.runtime;
  group_.reset();
  for (Slot& slot : slots_) {
    if (slot.out.native != nullptr) runtime.event_destroy(slot.out);
    if (slot.host != nullptr) runtime.host_free(where_.index, slot.host);
  }
  for (const device::Event& each : spare_) runtime.event_destroy(each);
  if (done_.native != nullptr) runtime.event_destroy(done_);
  if (stream_.native != nullptr) runtime.stream_destroy(stream_);
}

Json TwoLevel::describe() const {
  Json all = Json::array();
  for (std::size_t island = 0; island < islands_.size(); ++island) {
    Json ranks = Json::array();
    for (const int each : islands_[island]) ranks.push(each);
    all.push(Json::object().add("kind", kinds_[island]).add("ranks", ranks));
  }
  return Json::object()
      .add("islands", all)
      .add("mine", island_)
      .add("library", group_ != nullptr ? library_ : std::string("none: alone in its island"))
      .add("rails", rails_.size());
}

}  // namespace hccomm::comm
