// SPDX-License-Identifier: Apache-2.0
//
// Waiting inside a call over islands: for operations of child communicators and for events of a
// device, looking meanwhile whether the call is still wanted.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "native/ccl.hpp"

namespace hccomm::comm {

using Started = std::pair<Communicator*, engine::Operation*>;

// Owns:   the operation that compares what the ranks called; while it lives, a rank that falls
//         silent is lost to the parent.
// Thread: one.
// Fails:  with what ended the call: its communicator's failure, the alarm's, Timeout.
class Watch {
 public:
  // `alarm` fails when a rank gives the call up: the parent itself, or a child of it.
  Watch(Communicator& parent, Communicator& alarm, Seconds timeout)
      : parent_(parent), alarm_(alarm), deadline_(Deadline::after(timeout)) {
    parent_.watch();
  }
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Tells all ranks of `talk` which call this is. settle_check() has what differs.
  void check(Communicator& talk, std::uint64_t fingerprint);
  Status settle_check();
  Status peek();  // as settle_check(), where that is known already
  // Why two ranks that made these calls cannot go on.
  static Status differ(int rank, std::uint64_t theirs, int own, std::uint64_t mine);

  Status trouble();  // why nobody should wait any more
  // `took`: the longest that one of them was under way.
  Status settle(std::vector<Started>& started, Seconds* took = nullptr);
  // nullptr for a group: the event is of copies alone.
  Status await(device::Runtime& runtime, device::Event event, native::Group* group);
  Deadline deadline() const { return deadline_; }
  Seconds left() const { return std::max(deadline_.left(), Seconds(0.001)); }

 private:
  Status differences();

  Communicator& parent_;
  Communicator& alarm_;
  const Deadline deadline_;
  Communicator* talk_ = nullptr;
  engine::Operation* checking_ = nullptr;
  std::uint64_t mine_ = 0;
  std::vector<std::uint64_t> theirs_;
};

// Gathers a record of every rank.
template <typename Record>
Result<std::vector<Record>> gather(Communicator& comm, const Record& mine, Watch& watch) {
  std::vector<Record> all(static_cast<std::size_t>(comm.size()));
  Record own = mine;
  Request request;
  request.call.collective = plan::Collective::AllGather;
  request.call.type = dtype::DType::U8;
  request.call.count = sizeof(Record);
  request.input = {reinterpret_cast<std::byte*>(&own), sizeof(Record), {}};
  request.output = {reinterpret_cast<std::byte*>(all.data()), sizeof(Record) * all.size(), {}};
  request.timeout = watch.left();
  std::vector<Started> started{{&comm, comm.start(request)}};
  const Status status = watch.settle(started);
  if (!status.ok()) return status;
  return all;
}

}  // namespace hccomm::comm
