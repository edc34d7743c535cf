// SPDX-License-Identifier: Apache-2.0
//
// Collectives of a communicator that is one island: its vendor's library does them all.
#include "comm/archipelago.hpp"
#include "plan/shape.hpp"

namespace hccomm::comm {

using plan::Collective;

static std::byte* address(device::Place place) {
  return static_cast<std::byte*>(place.handle) + place.offset;
}

// Places of the library's group are ranks here: the island's ranks are all, in order.
Status Archipelago::direct(Work& work) {
  const plan::Call& call = work.request.call;
  void* const stream = stream_.native;
  std::byte* const in = address(work.in);
  std::byte* const out = address(work.out);
  const bool even = call.counts.empty() && call.offsets.empty();
  switch (call.collective) {
    case Collective::AllReduce: return group_->all_reduce(in, out, call.count, work.how, stream);
    case Collective::Reduce:
      return group_->reduce(in, out, call.count, work.how, call.root, stream);
    case Collective::Broadcast:
      return group_->broadcast(out, out, call.count * work.element, call.root, stream);
    case Collective::ReduceScatter:
      return even ? group_->reduce_scatter(in, out, call.count, work.how, stream)
                  : reduce_uneven(work);
    case Collective::AllGather:
      return even ? group_->all_gather(in, out, call.count * work.element, stream) : messages(work);
    default: return messages(work);
  }
}

Status Archipelago::reduce_uneven(Work& work) {
  const plan::Call& call = work.request.call;
  return native::together(*group_, [&] {
    Status status;
    for (int rank = 0; rank < parent_.size() && status.ok(); ++rank) {
      const plan::Slice part = plan::part(call, rank);
      if (part.count == 0) continue;
      status = group_->reduce(address(work.in) + part.offset * work.element, address(work.out),
                              part.count, work.how, rank, stream_.native);
    }
    return status;
  });
}

// Everything that only moves bytes from one rank to another.
Status Archipelago::messages(Work& work) {
  const plan::Call& call = work.request.call;
  const int me = parent_.rank();
  const auto piece = [&](device::Place place, std::uint64_t offset) {
    return address(place) + offset * work.element;
  };
  Status status = group_->begin();
  if (!status.ok()) return status;
  const auto send = [&](std::byte* from, std::uint64_t count, int peer) {
    if (status.ok() && count > 0) {
      status = group_->send(from, count * work.element, peer, stream_.native);
    }
  };
  const auto recv = [&](std::byte* to, std::uint64_t count, int peer) {
    if (status.ok() && count > 0) {
      status = group_->recv(to, count * work.element, peer, stream_.native);
    }
  };
  const std::uint64_t own = plan::part_count(call, me);
  for (int peer = 0; peer < parent_.size(); ++peer) {
    const plan::Slice part = plan::part(call, peer);
    // What lies in its place already needs no message to ourselves.
    const bool stays = peer == me && piece(work.in, 0) == piece(work.out, part.offset);
    const bool remains = peer == me && piece(work.out, 0) == piece(work.in, part.offset);
    switch (call.collective) {
      case Collective::AllGather:
        if (stays) break;
        send(piece(work.in, 0), own, peer);
        recv(piece(work.out, part.offset), part.count, peer);
        break;
      case Collective::Gather:
        if (stays && me == call.root) break;
        if (peer == call.root) send(piece(work.in, 0), own, peer);
        if (me == call.root) recv(piece(work.out, part.offset), part.count, peer);
        break;
      case Collective::Scatter:
        if (remains && me == call.root) break;
        if (me == call.root) send(piece(work.in, part.offset), part.count, peer);
        if (peer == call.root) recv(piece(work.out, 0), own, peer);
        break;
      default: {
        const plan::Slice received = plan::received_part(call, peer);
        send(piece(work.in, part.offset), part.count, peer);
        recv(piece(work.out, received.offset), received.count, peer);
      }
    }
  }
  const Status ended = group_->end();
  return status.ok() ? ended : status;
}

}  // namespace hccomm::comm
