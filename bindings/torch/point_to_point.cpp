// SPDX-License-Identifier: Apache-2.0
//
// Messages between two ranks, and the barrier that says who is missing, which is made of them.
#include <algorithm>
#include <chrono>

#include "backend.hpp"
#include "errors.hpp"

namespace hccomm::glue {

// Users' tags are non-negative ints; what we send for ourselves has a higher bit.
static constexpr uint64_t kArrived = uint64_t{1} << 40;
static constexpr uint64_t kReleased = kArrived + 1;

static void check_message(const Operation& operation, const Tensors& tensors, int peer, int tag,
                          int size) {
  check_single(operation.name, tensors);
  if (tag < 0) invalid(operation.name, c10::str("Tag must be nonnegative, got ", tag));
  if (peer != HCCOMM_ANY_SOURCE && (peer < 0 || peer >= size)) {
    invalid(operation.name,
            c10::str("invalid rank: ", peer, " (the group has ranks 0..", size - 1, ")"));
  }
}

static void fill_message(Operation& operation, const at::Tensor& tensor, int peer, int tag) {
  operation.elements(tensor, /*reduces=*/false);
  operation.call.root = peer;
  operation.call.tag = static_cast<uint64_t>(tag);
  operation.count(tensor.numel());
  operation.keep.results.push_back(tensor);
}

WorkPtr HccommBackend::send(Tensors& tensors, int to, int tag) {
  Operation operation(HCCOMM_SEND, c10d::OpType::SEND, "send");
  check_message(operation, tensors, to, tag, size_);
  fill_message(operation, tensors[0], to, tag);
  operation.input = input_of(tensors[0]);
  return issue(operation);
}

WorkPtr HccommBackend::recv(Tensors& tensors, int from, int tag) {
  Operation operation(HCCOMM_RECV, c10d::OpType::RECV, "recv");
  check_message(operation, tensors, from, tag, size_);
  fill_message(operation, tensors[0], from, tag);
  operation.output = output_of(tensors[0], operation.keep);
  return issue(operation);
}

WorkPtr HccommBackend::recvAnysource(Tensors& tensors, int tag) {
  Operation operation(HCCOMM_RECV, c10d::OpType::RECVANYSOURCE, "recvAnySource");
  check_message(operation, tensors, HCCOMM_ANY_SOURCE, tag, size_);
  fill_message(operation, tensors[0], HCCOMM_ANY_SOURCE, tag);
  operation.output = output_of(tensors[0], operation.keep);
  return issue(operation);
}

// ---- monitored barrier -------------------------------------------------------------------------

namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// One byte to or from a rank, in flight.
WorkPtr signal(hccomm_comm* comm, const Ticket& ticket, const Health& health, bool sends, int peer,
               uint64_t tag) {
  Operation operation(sends ? HCCOMM_SEND : HCCOMM_RECV, c10d::OpType::BARRIER,
                      "monitored_barrier");
  const at::Tensor byte = at::zeros({1}, at::kByte);
  fill_message(operation, byte, peer, 0);
  operation.call.tag = tag;
  operation.call.timeout = ticket.timeout;
  (sends ? operation.input : operation.output) = byte;
  operation.point();
  operation.keep.held.push_back(byte);
  hccomm_work* handle = nullptr;
  hccomm_error error{};
  if (hccomm_start(comm, &operation.call, &handle, &error) != HCCOMM_OK) raise(error, 0);
  return c10::make_intrusive<OperationWork>(ticket, std::move(operation.keep), health, handle);
}

std::string failed_ranks(const std::vector<int>& ranks, Milliseconds limit) {
  std::string names = std::to_string(ranks[0]);
  for (std::size_t i = 1; i < ranks.size(); ++i) names += ", " + std::to_string(ranks[i]);
  return c10::str(ranks.size() > 1 ? "Ranks " : "Rank ", names,
                  " failed to pass monitoredBarrier in ", limit.count(), " ms");
}

}  // namespace

// Rank 0 hears from everyone and then lets everyone go, so it knows who did not come.
void HccommBackend::monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) {
  hccomm_comm* const comm = open("monitored_barrier");
  // Unlike elsewhere, no time at all is a limit: Gloo lets rank 0 look who has come already.
  const Milliseconds limit =
      options.timeout.count() < 0 ? options_->timeout : Milliseconds(options.timeout);
  const auto end = Clock::now() + limit;
  // Messages live a little longer than the barrier, so that a failure is reported by its end.
  const double patience = static_cast<double>(limit.count()) / 1e3 + 5.0;
  const Ticket ticket{rank_, c10d::OpType::BARRIER, nullptr, nullptr, ++sequence_, patience, false};
  const auto left = [&] {
    return std::max(std::chrono::duration_cast<Milliseconds>(end - Clock::now()), Milliseconds(1));
  };
  if (rank_ != 0) {
    try {
      const WorkPtr arrived = signal(comm, ticket, health_, true, 0, kArrived);
      const WorkPtr released = signal(comm, ticket, health_, false, 0, kReleased);
      arrived->wait(left());
      released->wait(left());
    } catch (const c10::Error& failure) {
      TORCH_CHECK(false, "Rank ", rank_,
                  " successfully reached monitoredBarrier, but received errors while waiting for "
                  "send/recv from rank 0. Please check rank 0 logs for faulty rank.\n Original "
                  "exception: \n",
                  failure.what_without_backtrace());
    }
    return;
  }
  std::vector<WorkPtr> arrivals;
  for (int rank = 1; rank < size_; ++rank) {
    arrivals.push_back(signal(comm, ticket, health_, false, rank, kArrived));
  }
  std::vector<int> passed, failed;
  std::string reason;
  for (int rank = 1; rank < size_; ++rank) {
    TORCH_CHECK(wait_all_ranks || Clock::now() < end,
                "hccomm Timeout: Rank 0 timed out in monitoredBarrier after ", limit.count(),
                " ms. Successfully processed ranks: [", c10::Join(", ", passed),
                "]; still to come: rank ", rank, " and later ones");
    try {
      arrivals[rank - 1]->wait(left());
      passed.push_back(rank);
    } catch (const c10::Error& failure) {
      failed.push_back(rank);
      reason = failure.what_without_backtrace();
      if (!wait_all_ranks) break;
    }
  }
  if (!failed.empty()) {
    TORCH_CHECK(false, "hccomm Timeout: ", failed_ranks(failed, limit), "\n Original exception: \n",
                reason);
  }
  std::vector<WorkPtr> releases;
  for (int rank = 1; rank < size_; ++rank) {
    releases.push_back(signal(comm, ticket, health_, true, rank, kReleased));
  }
  for (const WorkPtr& release : releases) release->wait(left());
}

}  // namespace hccomm::glue
