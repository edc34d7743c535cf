// SPDX-License-Identifier: Apache-2.0
//
// The life of a backend, and the one door through which all operations leave.
#include "backend.hpp"

#include <ATen/record_function.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/ParamCommsUtils.hpp>
#include <tuple>
#include <utility>

#include "errands.hpp"
#include "errors.hpp"
#include "flight_recorder.hpp"

namespace hccomm::glue {

HccommBackend::HccommBackend(std::shared_ptr<Group> group,
                             const c10::intrusive_ptr<Options>& options)
    : Backend(group->rank(), group->size()),
      group_(std::move(group)),
      health_(group_->health()),
      options_(options),
      last_child_(c10::intrusive_ptr<c10d::Backend>()) {
  init();
}

hccomm_comm* HccommBackend::open(const char* operation) const {
  if (!group_) invalid(operation, "this process group has been destroyed");
  return group_->handle();
}

void HccommBackend::setTimeout(std::chrono::milliseconds timeout) {
  options_->timeout = timeout;
  hccomm_error error{};
  const double seconds = static_cast<double>(timeout.count()) / 1e3;
  if (hccomm_set_timeout(open("set_timeout"), seconds, &error) != HCCOMM_OK) raise(error, 0);
}

c10::intrusive_ptr<c10d::Backend> HccommBackend::split(
    const c10::intrusive_ptr<c10d::Store>& /*store*/, const std::vector<int>& ranks,
    const c10::intrusive_ptr<Options>& options) {
  open("split");
  if (std::find(ranks.begin(), ranks.end(), rank_) == ranks.end()) return nullptr;
  if (!options->group_name.empty() && options->group_name == last_split_) {
    if (auto child = last_child_.lock()) return child;
  }
  // The options may be the parent's own object, and the store's prefix differs between ranks.
  auto own = c10::make_intrusive<Options>(*options);
  const double seconds = static_cast<double>(own->timeout.count()) / 1e3;
  auto subgroup = group_->subgroup(std::vector<int32_t>(ranks.begin(), ranks.end()), seconds);
  subgroup->set(group_->settings(), group_->islands());  // a part of a group is set up as it is
  c10::intrusive_ptr<c10d::Backend> child =
      c10::make_intrusive<HccommBackend>(std::move(subgroup), own);
  last_split_ = own->group_name;
  last_child_ = c10::weak_intrusive_ptr<c10d::Backend>(child);
  return child;
}

c10d::ErrorType HccommBackend::getError() {
  switch (health_->load(std::memory_order_relaxed)) {
    case HCCOMM_OK: return c10d::ErrorType::SUCCESS;
    case HCCOMM_TIMEOUT: return c10d::ErrorType::TIMEOUT;
    case HCCOMM_PEER_LOST: return c10d::ErrorType::REMOTE_ERROR;
    default: return c10d::ErrorType::COMM_ERROR;
  }
}

void HccommBackend::abort() {
  const std::shared_ptr<Group> group = group_;
  if (!group) return;
  hccomm_error error{};
  hccomm_abort(group->handle(), "abort() of the process group", &error);
  note_failure(health_, HCCOMM_ABORTED);
}

void HccommBackend::shutdown() {
  batch_.reset();
  group_.reset();
  // Callbacks of futures may need Python, which may end soon.
  errands::flush(std::chrono::seconds(1));
}

std::string HccommBackend::describe() const {
  hccomm_comm* const comm = open("describe");
  std::string text(4096, '\0');
  for (;;) {
    const int64_t size = hccomm_describe(comm, text.data(), text.size());
    TORCH_CHECK(size >= 0, "hccomm ", code_name(static_cast<int>(-size)), ": describe failed");
    const bool fits = static_cast<std::size_t>(size) < text.size();
    text.resize(static_cast<std::size_t>(size) + (fits ? 0 : 1));
    if (fits) return text;
  }
}

// ---- issuing -----------------------------------------------------------------------------------

Ticket HccommBackend::ticket(const Operation& operation, const char* title) const {
  const double seconds = operation.call.timeout > 0
                             ? operation.call.timeout
                             : static_cast<double>(options_->timeout.count()) / 1e3;
  return {rank_,     operation.type, title,  &operation.shown,
          sequence_, seconds,        timed_, operation.noted};
}

uint64_t HccommBackend::note(const Operation& operation) {
  FlightRecorder& recorder = FlightRecorder::get();
  if (!recorder.enabled()) return 0;
  if (!recorded_as_) {
    FlightRecorder::Group group;
    group.name = pg_uid_.empty() ? options_->group_name : pg_uid_;
    group.description = pg_desc_;
    group.prefix = options_->backend == "nccl" ? "nccl:" : "gloo:";
    group.rank = rank_;
    for (const uint64_t rank : options_->global_ranks_in_group) {
      group.ranks.push_back(static_cast<int64_t>(rank));
    }
    for (int rank = 0; group.ranks.size() < static_cast<std::size_t>(size_); ++rank) {
      group.ranks.push_back(rank);
    }
    recorded_as_ = recorder.add(std::move(group));
  }
  const auto limit = operation.call.timeout > 0 ? static_cast<int64_t>(operation.call.timeout * 1e3)
                                                : static_cast<int64_t>(options_->timeout.count());
  return recorder.begin(*recorded_as_, operation, limit);
}

void HccommBackend::run(Operation& operation) {
  hccomm_comm* const comm = open(operation.name);
  operation.point();
  hccomm_error error{};
  if (hccomm_run(comm, &operation.call, &error) == HCCOMM_OK) return;
  if (error.code != HCCOMM_INVALID_ARGUMENT) note_failure(health_, error.code);
  raise(error, ticket(operation, nullptr).timeout);
}

WorkPtr HccommBackend::launch(Operation& operation, const char* title) {
  ++sequence_;
  operation.noted = note(operation);
  if (!operation.async && !batch_) {
    if (title) {  // the profiler's event begins with the work
      auto work = c10::make_intrusive<OperationWork>(ticket(operation, title),
                                                     std::move(operation.keep), health_, nullptr);
      run(operation);
      work->settle(HCCOMM_OK, {});
      return work;
    }
    run(operation);
    operation.keep.residents.clear();
    return c10::make_intrusive<OperationWork>(ticket(operation, title), std::move(operation.keep));
  }
  hccomm_comm* const comm = open(operation.name);
  operation.point();
  if (operation.async) operation.call.flags |= HCCOMM_BACKGROUND;
  hccomm_work* handle = nullptr;
  hccomm_error error{};
  if (hccomm_start(comm, &operation.call, &handle, &error) != HCCOMM_OK) {
    raise(error, ticket(operation, nullptr).timeout);
  }
  if (operation.input.defined()) operation.keep.held.push_back(operation.input);
  if (operation.output.defined()) operation.keep.held.push_back(operation.output);
  return c10::make_intrusive<OperationWork>(ticket(operation, title), std::move(operation.keep),
                                            health_, handle);
}

// A profiler listens: tell it what record_param_comms carries for every backend.
WorkPtr HccommBackend::issue_recorded(Operation& operation) {
  const auto splits = [](const std::vector<uint64_t>& counts) {
    return std::vector<int64_t>(counts.begin(), counts.end());
  };
  const bool between_two = c10d::isP2POp(operation.type);
  const int64_t in_count = operation.input.defined() ? operation.input.numel() : 0;
  const int64_t out_count = operation.output.defined() ? operation.output.numel() : 0;
  const at::Tensor& model = operation.model();
  operation.note_shown();
  const Tensors outputs = operation.output.defined() ? Tensors{operation.output} : Tensors{};
  RECORD_PARAM_COMMS_DATA(std::make_tuple(static_cast<int64_t>(sequence_ + 1), between_two),
                          std::make_tuple(pg_uid_, pg_desc_), operation.shown, outputs, rank_,
                          operation.name, in_count, out_count,
                          model.defined() ? model.scalar_type() : at::kByte,
                          splits(operation.counts), splits(operation.recv_counts), -1, -1, size_);
  const std::string title = options_->backend + ':' + operation.name;
  return launch(operation, title.c_str());
}

WorkPtr HccommBackend::issue(Operation& operation) {
  const bool recorded = at::hasCallbacks() && !part_of_one_;
  WorkPtr work = recorded ? issue_recorded(operation) : launch(operation, nullptr);
  if (batch_) batch_->push_back(work);
  return work;
}

void HccommBackend::startCoalescing() {
  batch_.emplace();  // a batch that an exception left open is dropped
}

WorkPtr HccommBackend::endCoalescing() {
  TORCH_CHECK(batch_, "hccomm InvalidArgument: _end_coalescing: no batch is open");
  std::vector<WorkPtr> works = std::move(*batch_);
  batch_.reset();
  const Ticket ticket{rank_, c10d::OpType::COALESCED, nullptr, nullptr, sequence_, 0, false};
  return c10::make_intrusive<BatchWork>(ticket, std::move(works));
}

}  // namespace hccomm::glue
