// SPDX-License-Identifier: Apache-2.0
//
// Arrays that do not lie where their rank has told: they get a copy there for the call, so that no
// other rank need know.
#include <cstring>

#include "collective/collective.hpp"
#include "comm/archipelago.hpp"

namespace hccomm::comm {

bool Archipelago::at_home(const Memory& memory) const {
  if (memory.device.kind == 0 || where_.runtime == nullptr) {
    return memory.device.kind == 0 && where_.runtime == nullptr;
  }
  Result<engine::Where> there = locate("islands", memory.device);
  return there.ok() && there.value().runtime == where_.runtime &&
         there.value().index == where_.index;
}

// Makes room for the array where this rank is at home.
Status Archipelago::host_guest(Guest& guest, const Memory& memory, Watch& watch) {
  guest.of = &memory;
  if (where_.runtime == nullptr) {
    guest.memory.resize(std::max<std::uint64_t>(guest.bytes, 1));
    guest.place = {guest.memory.data(), 0};
  } else {
    auto made = where_.runtime->allocate(where_.index, std::max<std::uint64_t>(guest.bytes, 1));
    if (!made.ok()) return made.status();
    guest.place = made.value();
  }
  return pass(guest, true, watch);
}

// Copies the array to its guest, or back.
Status Archipelago::pass(Guest& guest, bool in, Watch& watch) {
  if (guest.bytes == 0) return {};
  std::vector<std::byte> between;
  std::byte* host = guest.memory.data();
  const bool from_host = guest.of->device.kind == 0;
  if (where_.runtime != nullptr) {
    between.resize(from_host ? 0 : guest.bytes);
    host = from_host ? guest.of->data : between.data();
  }
  Status status;
  if (!in && where_.runtime != nullptr) {
    status = ferry_->out(host, guest.place, guest.bytes, watch);
  }
  if (status.ok() && !from_host) {
    Result<engine::Where> there = locate("islands", guest.of->device);
    if (!there.ok()) return there.status();
    Ferry ferry(there.value());
    status = in ? ferry.out(host, there.value().place, guest.bytes, watch)
                : ferry.in(there.value().place, host, guest.bytes, watch);
  }
  if (status.ok() && in && where_.runtime != nullptr) {
    status = ferry_->in(guest.place, host, guest.bytes, watch);
  }
  return status;
}

// Finds where the call works: in the caller's arrays, or in copies of them.
Status Archipelago::receive_guests(Work& work, std::vector<Guest>& guests) {
  const Request& request = work.request;
  const plan::Group group{parent_.rank(), parent_.size(), {}, 1};
  const std::uint64_t bytes[2] = {collective::input_count(request.call, group) * work.element,
                                  collective::output_count(request.call, group) * work.element};
  const Memory* const memory[2] = {&request.input, &request.output};
  device::Place* const places[2] = {&work.in, &work.out};
  guests.reserve(2);
  for (const int each : {1, 0}) {  // the output first: the input may lie in it
    const Memory& own = *memory[each];
    if (bytes[each] == 0 || at_home(own)) {
      *places[each] = own.device.kind == 0 ? device::Place{own.data, 0}
                                           : device::Place{own.device.handle, own.device.offset};
      continue;
    }
    const Memory& out = request.output;
    if (each == 0 && !guests.empty() && own.data >= out.data && own.data < out.data + bytes[1]) {
      *places[0] = at(guests[0].place, static_cast<std::uint64_t>(own.data - out.data));
      continue;
    }
    const bool holds = each == 1 && request.input.data <= own.data && bytes[0] > 0 &&
                       own.data < request.input.data + bytes[0] && bytes[0] > bytes[1];
    Guest& guest = guests.emplace_back();
    guest.bytes = bytes[holds ? 0 : each];
    guest.back = each == 1;
    if (Status status = host_guest(guest, *memory[holds ? 0 : each], work.watch); !status.ok()) {
      return status;
    }
    *places[each] = guest.place;
    if (holds) {  // the output is a part of the input
      *places[0] = guest.place;
      *places[1] = at(guest.place, static_cast<std::uint64_t>(own.data - request.input.data));
      break;
    }
  }
  return {};
}

}  // namespace hccomm::comm
