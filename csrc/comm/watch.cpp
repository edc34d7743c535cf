// SPDX-License-Identifier: Apache-2.0
#include "comm/watch.hpp"

#include <algorithm>
#include <thread>

#include "collective/collective.hpp"

namespace hccomm::comm {

Watch::~Watch() {
  parent_.watch_no_more();
  if (checking_ == nullptr) return;
  if (!checking_->done()) {
    talk_->fail(Status(Code::Aborted, "islands: the call ended before its ranks compared it"));
  }
  (void)talk_->engine().wait(*checking_, Deadline::after(Seconds(5)));
  talk_->engine().release(*checking_);
}

void Watch::check(Communicator& talk, std::uint64_t fingerprint) {
  talk_ = &talk;
  mine_ = fingerprint;
  theirs_.assign(static_cast<std::size_t>(talk.size()), 0);
  Request request;
  request.call.collective = plan::Collective::AllGather;
  request.call.type = dtype::DType::U64;
  request.call.count = 1;
  request.input = {reinterpret_cast<std::byte*>(&mine_), 1, {}};
  request.output = {reinterpret_cast<std::byte*>(theirs_.data()), theirs_.size(), {}};
  request.timeout = left();
  checking_ = talk.start(request);
}

Status Watch::differences() {
  for (std::size_t rank = 0; rank < theirs_.size(); ++rank) {
    if (theirs_[rank] != mine_) {
      return differ(static_cast<int>(rank), theirs_[rank], parent_.rank(), mine_);
    }
  }
  return {};
}

Status Watch::differ(int rank, std::uint64_t theirs, int own, std::uint64_t mine) {
  return {Code::Mismatch,
          text("rank ", rank, " called ", collective::describe_fingerprint(theirs), " while rank ",
               own, " called ", collective::describe_fingerprint(mine),
               "; all ranks must make the same call"),
          rank};
}

Status Watch::settle_check() {
  if (checking_ == nullptr) return {};
  std::vector<Started> started{{talk_, std::exchange(checking_, nullptr)}};
  const Status status = settle(started);
  return status.ok() ? differences() : status;
}

Status Watch::peek() {
  if (checking_ == nullptr || !talk_->engine().test(*checking_)) return {};
  return settle_check();
}

Status Watch::trouble() {
  if (Status status = parent_.trouble(); !status.ok()) return status;
  if (Status status = alarm_.trouble(); !status.ok()) return status;
  if (!deadline_.passed()) return {};
  return {Code::Timeout,
          "islands: the call did not end in time; look for the rank that is missing"};
}

// Waits in slices, so that what ends the call ends this too.
Status Watch::settle(std::vector<Started>& started, Seconds* took) {
  Status first;
  for (auto& [comm, operation] : started) {
    Status status;
    do {
      status = comm->engine().wait(*operation, Deadline::after(Seconds(0.05)));
      if (operation->done()) break;
      const Status why = first.ok() ? trouble() : first;
      if (!why.ok()) comm->fail(why);
    } while (!operation->done());
    if (first.ok()) first = comm->engine().wait(*operation, Deadline::never());
    if (took != nullptr) *took = std::max(*took, comm->engine().took(*operation));
    comm->engine().release(*operation);
  }
  started.clear();
  return first;
}

Status Watch::await(device::Runtime& runtime, device::Event event, native::Group* group) {
  for (int look = 0;; ++look) {
    auto come = runtime.event_query(event);
    if (!come.ok()) return come.status();
    if (group != nullptr && (come.value() || look % 16 == 15)) {
      if (Status status = group->health(); !status.ok()) return status;
    }
    if (come.value()) return {};
    if (Status status = peek(); !status.ok()) return status;
    if (look % 16 == 15) {
      if (Status status = trouble(); !status.ok()) return status;
    }
    if (look < 200) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(30));
    }
  }
}

}  // namespace hccomm::comm
