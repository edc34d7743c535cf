// SPDX-License-Identifier: Apache-2.0
//
// all_reduce over islands: inside an island its vendor's library works on device memory, between
// islands hccomm carries what each rank holds of the island's result, over as many rails as there
// are ways to pair ranks. A communicator does so once its ranks have agreed (use_islands).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/json.hpp"
#include "comm/communicator.hpp"
#include "native/ccl.hpp"

namespace hccomm::comm {

// Owns:   the island's group, the rails' communicators, a stream, pinned blocks, a thread that
//         works off the calls in order.
// Thread: start() as Communicator::start(); the rest on the thread that makes and destroys it.
// Fails:  make() throws alike on all ranks; a call that fails fails the communicator.
class TwoLevel {
 public:
  // Collective over `parent`: this rank's arrays will be on that device (kind 0: the host).
  static std::unique_ptr<TwoLevel> make(Communicator& parent, const DeviceBuffer& mine);
  ~TwoLevel();  // Requires: quiet, or the parent is poisoned.

  // Whether this call goes here: the same answer on all ranks.
  bool takes(const plan::Call& call) const;
  // Requires: takes(), and the request has been checked.
  engine::Operation* start(const Request& request);
  Json describe() const;

 private:
  // Elements of every island's part that the same ranks own; all sums are in units of a block.
  struct Rail {
    std::uint64_t begin, end;  // units
    std::unique_ptr<Communicator> comm;
  };
  struct Job {
    Request request;
    // Messages to ourselves that come when the call is over: the caller's handle, and one of our
    // own that tells whether the parent has failed meanwhile.
    engine::Operation *handle, *watch;
    std::uint64_t tag;       // of the handle; the next one is of the watch
    device::Event gates[2];  // the caller's streams at the call
    bool gated[2] = {false, false};
  };
  struct Slot {
    std::byte* host = nullptr;
    device::Event out;  // its copy from the device
  };

  TwoLevel(Communicator& parent, const DeviceBuffer& mine);
  // two_level_make.cpp
  void agree();
  void join_island(const std::vector<int>& ranks);
  void make_rails();
  void open_device();
  // two_level.cpp
  void work();
  Status all_reduce(Job& job);
  Status tail(Job& job, std::uint64_t main);
  Status leave_device(Job& job, std::uint64_t at, std::uint64_t count, Slot& slot);
  Status enter_device(Job& job, std::uint64_t at, std::uint64_t count, Slot& slot);
  Status exchange(Job& job, std::byte* mine, std::uint64_t count);
  Status settle(Job& job, std::vector<std::pair<Communicator*, engine::Operation*>>& started);
  Status await(Job& job, device::Event event);
  device::Place place(const Memory& memory, std::uint64_t element_bytes) const;
  Message over(const Job& job, int which) const;
  void finish(Job& job, const Status& status);

  Communicator& parent_;
  DeviceBuffer mine_;
  engine::Where where_;  // of the device; no runtime: host memory
  std::vector<std::vector<int>> islands_;
  std::vector<std::string> kinds_;               // by island
  int island_ = 0, place_ = 0;                   // mine, and my number in it
  std::uint64_t units_ = 1;                      // a block has a multiple of these elements
  std::uint32_t reduces_[dtype::kDTypes] = {};   // bits of operations that all islands do
  std::string library_;                          // "nccl 2.21.5", or ""
  std::unique_ptr<Communicator> members_, all_;  // of the island; of all ranks
  std::unique_ptr<native::Group> group_;         // nullptr: alone
  std::vector<Rail> rails_;                      // with me in them
  device::Stream stream_;
  Slot slots_[2];
  device::Event done_;
  std::vector<device::Event> spare_;  // guarded by mutex_

  std::mutex mutex_;  // guards the members below
  std::condition_variable wanted_;
  std::deque<Job> jobs_;
  std::uint64_t next_tag_ = std::uint64_t{1} << 63;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace hccomm::comm
