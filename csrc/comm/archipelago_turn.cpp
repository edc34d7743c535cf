// SPDX-License-Identifier: Apache-2.0
//
// What one block of a call over islands does: it leaves the device, crosses, and enters again.
#include <cstring>
#include <utility>

#include "comm/archipelago.hpp"
#include "dtype/reduce.hpp"
#include "engine/proof.hpp"

namespace hccomm::comm {

using dtype::RedOp;
using plan::Collective;

static std::byte* address(device::Place place) {
  return static_cast<std::byte*>(place.handle) + place.offset;
}

void Archipelago::begin_turn(Work& work, Turn& turn, const Block& block, std::size_t number) {
  turn.block = block;
  turn.slot = &slots_[number % kSlots];
  turn.begins =
      native::part_begins(block.count, (*block.shares)[static_cast<std::size_t>(chart_.island)]);
  if (where_.runtime == nullptr) {
    turn.slot->memory.resize(std::max(turn.slot->memory.size(), block.count * work.element));
    turn.slot->host = turn.slot->memory.data();
  }
}

Status Archipelago::copy_out(Slot& slot, device::Place from, std::uint64_t bytes) {
  if (where_.runtime == nullptr) {
    std::memcpy(slot.host, address(from), bytes);
    return {};
  }
  Status status = where_.runtime->copy_out(stream_, slot.host, from, bytes);
  if (!status.ok() || slot.again == nullptr) return status;
  slot.bytes = bytes;
  return where_.runtime->copy_out(stream_, slot.again, from, bytes);
}

Status Archipelago::copy_in(device::Place to, Slot& slot, std::uint64_t bytes) {
  if (where_.runtime == nullptr) {
    std::memcpy(address(to), slot.host, bytes);
    return {};
  }
  Status status = where_.runtime->copy_in(stream_, to, slot.host, bytes);
  if (!status.ok() || slot.again == nullptr) return status;
  slot.bytes = bytes;
  return where_.runtime->copy_out(stream_, slot.again, to, bytes);
}

// Waits for the slot's copies, and has them proved.
Status Archipelago::await(Work& work, Slot& slot, bool to_host) {
  Status status = work.watch.await(*where_.runtime, to_host ? slot.out : slot.in, group_.get());
  return status.ok() ? prove(slot, to_host) : status;
}

Status Archipelago::prove(Slot& slot, bool to_host) {
  const std::uint64_t bytes = std::exchange(slot.bytes, 0);
  if (bytes == 0) return {};
  return engine::proved({text(where_.name, ":", where_.index), to_host, slot.offset}, slot.host,
                        slot.again, bytes);
}

// Calls `call` with place, begin and count of each rank's part that is not empty, together.
template <typename Call>
static Status by_part(native::Group& group, const std::vector<std::uint64_t>& begins, Call&& call) {
  return native::together(group, [&] {
    Status status;
    for (std::size_t each = 0; each + 1 < begins.size() && status.ok(); ++each) {
      const std::uint64_t count = begins[each + 1] - begins[each];
      if (count > 0) status = call(static_cast<int>(each), begins[each], count);
    }
    return status;
  });
}

static bool equal(const std::vector<std::uint64_t>& begins) {
  for (std::size_t each = 1; each + 1 < begins.size(); ++each) {
    if (begins[each + 1] - begins[each] != begins[1] - begins[0]) return false;
  }
  return true;
}

// The island's reduction: each rank's part of it to that rank's scratch.
Status Archipelago::reduce_parts(Work& work, Turn& turn, device::Place from) {
  const std::vector<std::uint64_t>& begins = turn.begins;
  std::byte* const scratch = address(turn.slot->scratch);
  if (equal(begins)) {
    return group_->reduce_scatter(address(from), scratch, begins[1], work.how, stream_.native);
  }
  return by_part(*group_, begins, [&](int root, std::uint64_t begin, std::uint64_t count) {
    return group_->reduce(address(from) + begin * work.element, scratch, count, work.how, root,
                          stream_.native);
  });
}

// Enqueues: the block's data of this island, divided among its ranks, to the host.
Status Archipelago::leave(Work& work, Turn& turn) {
  const Block& block = turn.block;
  const auto place = static_cast<std::size_t>(chart_.place);
  const std::uint64_t begin = turn.begins[place], count = turn.begins[place + 1] - begin;
  const bool home = block.root >= 0 && island_of(block.root) == chart_.island;
  device::Place from = at(work.in, block.in * work.element);
  if (!work.up && !home) return {};
  Status status;
  if (work.up && group_ != nullptr) {
    status = reduce_parts(work, turn, from);
    from = turn.slot->scratch;
  } else {
    if (!work.up && parent_.rank() != block.root) from = at(work.out, block.out * work.element);
    if (!work.up && group_ != nullptr) {
      const auto& ranks = chart_.islands[static_cast<std::size_t>(chart_.island)];
      const auto root = static_cast<int>(std::ranges::find(ranks, block.root) - ranks.begin());
      status = group_->broadcast(address(from), address(from), block.count * work.element, root,
                                 stream_.native);
    }
    from = at(from, begin * work.element);
  }
  turn.slot->offset = (block.in + begin) * work.element;
  if (status.ok() && count > 0) status = copy_out(*turn.slot, from, count * work.element);
  if (!status.ok() || where_.runtime == nullptr) return status;
  return where_.runtime->event_record(turn.slot->out, stream_);
}

// Starts what this rank's part does over the rails.
Status Archipelago::cross(Work& work, Turn& turn) {
  const Block& block = turn.block;
  const auto mine = static_cast<std::size_t>(chart_.island);
  const std::uint64_t begin = turn.begins[static_cast<std::size_t>(chart_.place)];
  const std::uint64_t count = turn.begins[static_cast<std::size_t>(chart_.place) + 1] - begin;
  const bool sends = work.up || (block.root >= 0 && island_of(block.root) == chart_.island);
  if (sends && where_.runtime != nullptr) {
    Status status = await(work, *turn.slot, true);
    if (!status.ok()) return status;
  }
  if (work.up && work.how.op == RedOp::PremulSum && group_ == nullptr && count > 0) {
    dtype::multiply(work.how.type)(turn.slot->host, turn.slot->host, count, work.how.factor);
  }
  for (const native::Rail& each : native::rails_of(block.count, *block.shares)) {
    if (each.owners[mine] != chart_.place) continue;
    std::vector<int> ranks;
    for (std::size_t island = 0; island < each.owners.size(); ++island) {
      ranks.push_back(chart_.islands[island][static_cast<std::size_t>(each.owners[island])]);
    }
    Request request;
    request.call.collective = !work.up         ? Collective::Broadcast
                              : block.root < 0 ? Collective::AllReduce
                                               : Collective::Reduce;
    request.call.type = work.how.type;
    if (work.up) request.call.op = work.how.op == RedOp::PremulSum ? RedOp::Sum : work.how.op;
    if (block.root >= 0) request.call.root = island_of(block.root);
    request.call.count = each.end - each.begin;
    std::byte* const data = turn.slot->host + (each.begin - begin) * work.element;
    request.input = request.output = {data, request.call.count, {}};
    request.timeout = work.watch.left();
    request.follow = engine::Follow::Background;  // it crosses while this thread awaits the device
    Communicator& comm = rail(ranks);
    turn.crossing.emplace_back(&comm, comm.start(request));
  }
  return {};
}

// Enqueues: every rank's part of the block to all ranks of the island.
Status Archipelago::gather_parts(Work& work, const Turn& turn) {
  std::byte* const whole = address(at(work.out, turn.block.out * work.element));
  const std::vector<std::uint64_t>& begins = turn.begins;
  const auto place = static_cast<std::size_t>(chart_.place);
  if (equal(begins)) {
    return group_->all_gather(whole + begins[place] * work.element, whole, begins[1] * work.element,
                              stream_.native);
  }
  return by_part(*group_, begins, [&](int root, std::uint64_t begin, std::uint64_t count) {
    std::byte* const part = whole + begin * work.element;
    return group_->broadcast(part, part, count * work.element, root, stream_.native);
  });
}

// Waits for the rails; enqueues what came to those of this island who want it.
Status Archipelago::enter(Work& work, Turn& turn) {
  const Block& block = turn.block;
  const auto place = static_cast<std::size_t>(chart_.place);
  const std::uint64_t begin = turn.begins[place], count = turn.begins[place + 1] - begin;
  const bool crossed = !turn.crossing.empty();
  Seconds took{0};  // not until now: this thread was busy with other blocks
  Status status = work.watch.settle(turn.crossing, &took);
  if (!status.ok()) return status;
  if (crossed) {
    crossed_ += count * work.element;
    busy_ += took.count();
  }
  const bool root = block.root == parent_.rank();
  const bool home = block.root >= 0 && island_of(block.root) == chart_.island;
  const bool average = work.request.call.op == RedOp::Avg && work.up && (block.root < 0 || root);
  if (average && count > 0) {
    dtype::divide(work.how.type)(turn.slot->host, turn.slot->host, count, parent_.size());
  }
  const bool apart =
      address(work.in) + block.in * work.element != address(work.out) + block.out * work.element;
  const bool lands = work.up ? (block.root < 0 || root) : (!home || (root && apart));
  if (lands && count > 0) {
    turn.slot->offset = (block.out + begin) * work.element;
    status =
        copy_in(at(work.out, (block.out + begin) * work.element), *turn.slot, count * work.element);
  }
  const bool shares = group_ != nullptr && (work.up ? block.root < 0 : !home);
  if (status.ok() && shares) status = gather_parts(work, turn);
  if (!status.ok() || where_.runtime == nullptr) return status;
  return where_.runtime->event_record(turn.slot->in, stream_);
}

}  // namespace hccomm::comm
