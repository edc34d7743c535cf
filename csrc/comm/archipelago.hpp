// SPDX-License-Identifier: Apache-2.0
//
// A communicator's islands, joined and ready: collectives in which the vendors' libraries work
// inside islands, and hccomm between them over rails. One island of all ranks uses its library
// directly. comm/islands.hpp decides which calls come here.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/json.hpp"
#include "comm/ferry.hpp"
#include "comm/watch.hpp"
#include "native/ccl.hpp"
#include "native/shares.hpp"

namespace hccomm::comm {

// What all ranks have agreed upon; the same everywhere, but for `mine`.
struct Chart {
  std::vector<std::vector<int>> islands;
  std::vector<std::string> kinds, libraries;   // by island
  std::uint32_t reduces[dtype::kDTypes] = {};  // bits of operations that all libraries do
  bool messages = false;                       // all libraries have messages
  int island = 0, place = 0;                   // mine, and my number in it
  std::size_t size_of(int island_number) const {
    return islands[static_cast<std::size_t>(island_number)].size();
  }
};

// Why a call of `size` ranks goes hccomm's own way, or "": the same on all ranks.
std::string refuses(const Chart& chart, const plan::Call& call, int size);
// How it goes where that is "".
const char* way(const Chart& chart);
// How many elements of a call go as one piece; the last piece may be smaller.
std::uint64_t block_elements(const Chart& chart, std::size_t element_bytes);

// An event that tells when the caller's stream has reached the call.
struct Gate {
  device::Runtime* runtime = nullptr;  // nullptr: none
  device::Event event;
};

// Owns:   the island's group, the rails' communicators, a stream, pinned and device blocks.
// Thread: one at a time, but abort() from any.
// Fails:  run() with what went wrong; the group is of no use afterwards.
class Archipelago {
 public:
  // `where` has no runtime for host memory, and `group` is null for a rank alone in its island.
  Archipelago(Communicator& parent, Chart chart, engine::Where where,
              std::unique_ptr<native::Group> group);
  ~Archipelago();
  Status open();  // the device's part

  std::string refuses(const plan::Call& call) const;
  // Requires: !refuses(), and the request has been checked.
  Status run(const Request& request, const Gate (&gates)[2], Watch& watch);
  void abort();
  // Waits for what is enqueued, a while: false where it does not end.
  bool drain();
  bool direct() const { return chart_.islands.size() == 1; }
  // Shares the rails by how fast they were; every rank brings its own, in rank order.
  double rate() const { return busy_ > 0 ? static_cast<double>(crossed_) / busy_ : 0; }
  void reshare(const std::vector<double>& rates);
  Json describe() const;
  const Chart& chart() const { return chart_; }
  const engine::Where& where() const { return where_; }

 private:
  static constexpr int kSlots = 4;

  // A piece of a call that crosses as one; elements from the beginning of the buffers.
  struct Block {
    std::uint64_t in = 0, out = 0, count = 0;
    int root = -1;  // -1: all
    const std::vector<native::Shares>* shares = nullptr;
  };
  struct Slot {
    std::byte* host = nullptr;
    std::byte* again = nullptr;           // what is read again, where copies are checked
    std::vector<std::byte> memory;        // where host memory is an island of its own
    device::Place scratch;                // on the device: what the library has reduced
    device::Event out, in;                // its copies from and to the device
    std::uint64_t offset = 0, bytes = 0;  // of the last copy, until it is proved
  };
  struct Turn {
    Block block;
    Slot* slot = nullptr;
    std::vector<std::uint64_t> begins;  // of my island's parts, in elements
    std::vector<Started> crossing;
  };
  // One call.
  struct Work {
    const Request& request;
    Watch& watch;
    device::Place in, out;  // where it is done; host memory: its address as handle
    bool up = false;        // reduces to the parts; else spreads from a root
    native::Reduction how;
    std::size_t element = 1;
  };
  // An array that lies elsewhere than this rank has told: its copy, where it has.
  struct Guest {
    const Memory* of = nullptr;
    std::uint64_t bytes = 0;
    device::Place place;
    std::vector<std::byte> memory;
    bool back = false;  // to be copied back
  };

  // archipelago.cpp
  int island_of(int rank) const;
  std::vector<Block> blocks_of(const Work& work);
  void pieces(const Work& work, bool by_root, std::vector<Block>& blocks);
  Status cross_all(Work& work);
  device::Place at(device::Place place, std::uint64_t bytes) const;
  Communicator& rail(const std::vector<int>& ranks);
  // archipelago_turn.cpp
  void begin_turn(Work& work, Turn& turn, const Block& block, std::size_t number);
  Status leave(Work& work, Turn& turn);
  Status reduce_parts(Work& work, Turn& turn, device::Place from);
  Status cross(Work& work, Turn& turn);
  Status enter(Work& work, Turn& turn);
  Status gather_parts(Work& work, const Turn& turn);
  Status copy_out(Slot& slot, device::Place from, std::uint64_t bytes);
  Status copy_in(device::Place to, Slot& slot, std::uint64_t bytes);
  Status await(Work& work, Slot& slot, bool to_host);
  Status prove(Slot& slot, bool to_host);
  // archipelago_direct.cpp
  Status direct(Work& work);
  Status messages(Work& work);
  Status reduce_uneven(Work& work);
  // archipelago_guest.cpp
  Status host_guest(Guest& guest, const Memory& memory, Watch& watch);
  Status pass(Guest& guest, bool in, Watch& watch);
  Status receive_guests(Work& work, std::vector<Guest>& guests);
  bool at_home(const Memory& memory) const;

  Communicator& parent_;
  Chart chart_;
  engine::Where where_;
  std::unique_ptr<native::Group> group_;
  std::vector<native::Shares> shares_;              // by island
  std::vector<std::vector<native::Shares>> lanes_;  // by rank: what goes to it alone
  std::vector<native::Shares> rooted_;              // of the call in hand
  std::map<std::vector<int>, std::unique_ptr<Communicator>> rails_;
  device::Stream stream_;
  device::Event done_;
  Slot slots_[kSlots];
  std::optional<Ferry> ferry_;
  std::uint64_t crossed_ = 0;  // bytes of mine over rails, and seconds that took
  double busy_ = 0;
};

}  // namespace hccomm::comm
