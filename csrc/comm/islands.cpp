// SPDX-License-Identifier: Apache-2.0
#include "comm/islands.hpp"

#include <algorithm>
#include <bit>

#include "base/config.hpp"
#include "collective/collective.hpp"
#include "device/registry.hpp"
#include "native/islands.hpp"

namespace hccomm::comm {

using plan::Collective;

static constexpr std::uint64_t kMostCalls = 1 << 16;  // after so many nothing new is expected
static constexpr const char* kCard = "islands";       // beside the transports' addresses

std::optional<std::string> Islands::hint_of(const transport::Card& card) {
  for (const auto& [name, address] : card.addresses) {
    if (name == kCard) return address;
  }
  return std::nullopt;
}

std::string Islands::hint(int rank) {
  const std::string label = native::label_of(config::raw("HCCOMM_ISLAND"), rank);
  std::string kinds;
  if (label != "none") {
    for (const device::Kind each : native::likely_kinds()) {
      kinds += text(kinds.empty() ? "" : ",", device::Registry::global().name(each));
    }
  }
  return text(kinds, ";", label);
}

// The kinds in a hint, with what keeps ranks of one kind together.
static std::vector<std::string> homes(const transport::Card& card, const std::string& hint) {
  const std::string label = hint.substr(hint.find(';') + 1);
  std::vector<std::string> all;
  std::string kind;
  for (const char each : hint.substr(0, hint.find(';')) + ",") {
    if (each != ',') {
      kind += each;
    } else if (!kind.empty()) {
      all.push_back(label.empty() ? text(kind, "@", card.host) : text(kind, "#", label));
      kind.clear();
    }
  }
  return all;
}

bool Islands::possible(const std::vector<transport::Card>& cards) {
  std::vector<std::string> seen;
  bool twice = false;
  for (const transport::Card& card : cards) {
    const std::optional<std::string> hint = hint_of(card);
    if (!hint.has_value()) return false;
    for (std::string& home : homes(card, *hint)) {
      twice = twice || std::ranges::count(seen, home) > 0;
      seen.push_back(std::move(home));
    }
  }
  return twice;
}

Islands::Islands(Communicator& parent)
    : parent_(parent), failure_(config::raw("HCCOMM_ISLAND_FAILURE")) {}

Islands::~Islands() {
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    // A library that blocks its caller waits for a rank that does not come.
    changed_.wait_for(lock, Seconds(5), [&] { return idle(); });
    if (busy_ && archipelago_ != nullptr) archipelago_->abort();
  }
  if (worker_.joinable()) worker_.join();
  // A library may want all ranks to leave together, and some may be gone.
  if (archipelago_ != nullptr && !parent_.trouble().ok()) archipelago_->abort();
}

Islands::Way Islands::judge(const plan::Call& call) {
  switch (state_) {
    case State::Off: return Way::Own;
    case State::On: return archipelago_->refuses(call).empty() ? Way::Over : Way::Own;
    case State::Unsettled: break;
  }
  const bool counts = call.collective != Collective::Barrier && seen_ < kMostCalls;
  return counts && std::has_single_bit(++seen_) ? Way::Agree : Way::Own;
}

void Islands::note_place(const Request& request) {
  for (const Memory* each : {&request.input, &request.output}) {
    if (each->device.kind != 0 && each->count > 0) place_ = each->device;
  }
}

// Notes where the caller's streams stand. A runtime that is not here fails the call in its turn.
void Islands::gate(Job& job) {
  const Memory* const both[] = {&job.request.input, &job.request.output};
  for (int each = 0; each < 2; ++each) {
    const DeviceBuffer& buffer = both[each]->device;
    if (buffer.kind == 0 || both[each]->count == 0) continue;
    auto where = locate(plan::name(job.request.call.collective), buffer);
    if (!where.ok()) {
      if (where.status().code() == Code::InvalidArgument) throw Error(where.status());
      continue;
    }
    device::Runtime& runtime = *where.value().runtime;
    Gate& own = job.gates[each];
    auto event = runtime.event_create(buffer.index);
    if (!event.ok()) {
      job.trouble = event.status();
      continue;
    }
    own = {&runtime, event.value()};
    const Status status = runtime.event_record(own.event, {buffer.index, 0, buffer.stream});
    if (!status.ok()) job.trouble = status;
  }
}

void Islands::drop_gates(Job& job) {
  for (Gate& each : job.gates) {
    if (each.runtime != nullptr) each.runtime->event_destroy(each.event);
    each.runtime = nullptr;
  }
}

// `seen`: what seen_ was before. A call that is refused counts nowhere, and may come again, right.
Islands::Job Islands::make_job(const Request& request, std::uint64_t seen) {
  Job job;
  job.request = request;
  job.request.timeout = parent_.timeout_of(request.timeout);
  job.deadline = Deadline::after(job.request.timeout);
  try {
    gate(job);
  } catch (...) {
    drop_gates(job);
    seen_ = seen;
    throw;
  }
  return job;
}

Message Islands::to_self(const Job& job) const {
  Message message;
  message.peer = parent_.rank();
  message.tag = job.tag;
  message.timeout = job.request.timeout;
  message.follow = job.request.follow;
  return message;
}

// The handle is a message to ourselves on the parent: when the call is over the worker sends it;
// when the parent is poisoned or the deadline passes, it fails as everything there does.
engine::Operation* Islands::start(const Request& request) {
  std::list<Job>::iterator job;  // serve() does not take it before it has a handle
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t seen = seen_;
    note_place(request);
    std::optional<Way> way;
    if (idle()) way = judge(request.call);
    if (way == Way::Own) return nullptr;
    // First: without a thread nothing may be in the queue.
    if (!worker_.joinable()) worker_ = std::thread([this] { serve(); });
    job = jobs_.insert(jobs_.end(), make_job(request, seen));
    job->way = way;
    job->tag = next_tag_++;
  }
  // Without the lock: starting may call those back whose calls have ended.
  engine::Operation* handle = nullptr;
  try {
    handle = parent_.recv(to_self(*job));
  } catch (...) {  // closed meanwhile: later ones shall not wait behind it
    const std::lock_guard lock(mutex_);
    drop_gates(*job);
    jobs_.erase(job);
    changed_.notify_all();
    throw;
  }
  parent_.engine().hold(*handle);  // however it fails, its buffers are in use until finish()
  const std::lock_guard lock(mutex_);
  job->handle = handle;
  changed_.notify_all();
  return handle;
}

// A caller who waits does the work itself, where nothing is before it.
std::optional<Status> Islands::run(const Request& request) {
  Job job;
  std::unique_lock lock(mutex_);
  if (idle()) {
    const std::uint64_t seen = seen_;
    note_place(request);
    const Way way = judge(request.call);
    if (way == Way::Own) return std::nullopt;
    job = make_job(request, seen);
    job.way = way;
    busy_ = true;
    lock.unlock();
    const Status status = execute(job);
    finish(job, status);
    return status;
  }
  lock.unlock();
  engine::Operation* const handle = start(request);
  if (handle == nullptr) return std::nullopt;
  const Status status = parent_.engine().wait(*handle, Deadline::never());
  parent_.engine().release(*handle);
  return status;
}

void Islands::serve() {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] {
        return !busy_ && (jobs_.empty() ? stopping_ : jobs_.front().handle != nullptr);
      });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      if (!job.way.has_value()) job.way = judge(job.request.call);
      busy_ = true;
    }
    finish(job, execute(job));
  }
}

Status Islands::execute(Job& job) {
  try {
    Communicator& other = keeps_ ? alarm() : parent_;
    Watch watch(parent_, other, std::max(job.deadline.left(), Seconds(0.001)));
    Status status = attempt(job, watch);
    // Before the watch ends what it has begun, so that nobody hears of that first.
    if (!status.ok()) parent_.fail(status);
    return status;
  } catch (const Error& failure) {
    return failure.status();
  }
}

Status Islands::attempt(Job& job, Watch& watch) try {
  Status status = parent_.trouble();  // an alarm is looked at inside the call
  if (status.ok()) status = job.trouble;
  if (status.ok() && job.way == Way::Agree) {
    status = agree(&job, watch);
    const std::lock_guard lock(mutex_);
    job.way = state_ == State::On && archipelago_->refuses(job.request.call).empty() ? Way::Over
                                                                                     : Way::Own;
  }
  if (!status.ok()) return status;
  return job.way == Way::Over ? over(job, watch) : own_way(job, watch);
} catch (const Error& failure) {
  return failure.status();
}

void Islands::finish(Job& job, const Status& status) {
  if (!status.ok()) {
    parent_.fail(status);  // first: aborting the library makes its other ranks fail as well
    if (archipelago_ != nullptr) {
      archipelago_->abort();
      (void)archipelago_->drain();  // the caller may free its arrays then
    }
  }
  drop_gates(job);
  if (status.ok() && job.handle != nullptr) {
    try {
      parent_.engine().release(*parent_.send(to_self(job)));
    } catch (const Error& failure) {  // closed meanwhile: the handle has failed with it
      parent_.fail(failure.status());
    }
  }
  if (job.handle != nullptr) parent_.engine().let_go(*job.handle);
  const std::lock_guard lock(mutex_);
  busy_ = false;
  changed_.notify_all();
}

void Islands::use(const DeviceBuffer& mine) {
  Job job;
  {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, parent_.timeout_of(Seconds(0)), [&] { return idle(); })) {
      throw Error(Code::Timeout, "use_islands: earlier calls have not ended; wait for them first");
    }
    if (state_ == State::On) {
      throw Error(Code::InvalidArgument, "use_islands: this communicator has islands already");
    }
    place_ = mine;
    busy_ = true;
  }
  Watch watch(parent_, parent_, parent_.timeout_of(Seconds(0)));
  Status status;
  try {
    status = agree(nullptr, watch);
  } catch (const Error& failure) {
    status = failure.status();
  }
  std::string why;
  {
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (state_ != State::On) why = why_;
    changed_.notify_all();
  }
  if (!status.ok()) throw Error(status);
  if (!why.empty()) throw Error(Code::Unavailable, text("use_islands: ", why));
}

Json Islands::describe() {
  const std::lock_guard lock(mutex_);
  const bool on = state_ == State::On;
  const std::string& why = why_;
  Json calls = Json::object();
  for (const auto& each : collective::collectives()) {
    plan::Call call;
    call.collective = each.id;
    call.type = dtype::DType::F32;
    call.count = 1 << 20;
    std::string how = "hccomm's own way: " + (on ? archipelago_->refuses(call) : why);
    if (on && archipelago_->refuses(call).empty()) {
      how = way(archipelago_->chart());
    }
    calls.add(each.name, how);
  }
  return Json::object()
      .add("state", on                     ? "on"
                    : state_ == State::Off ? "off"
                                           : "not settled")
      .add("reason", on ? std::string() : why_)
      .add("islands", on ? archipelago_->describe() : Json::array())
      .add("mine", on ? archipelago_->chart().island : -1)
      .add("on_failure", keeps_ ? "repeats the call its own way" : "fails")
      .add("calls", calls);
}

Json Islands::describe_pair(int rank, const std::string& here, const std::string& transport) {
  const std::lock_guard lock(mutex_);
  if (members_told_.empty()) {
    return Json::object().add("how", here + transport).add("why_not_better", why_);
  }
  const native::Member& mine = members_told_[static_cast<std::size_t>(parent_.rank())];
  const native::Member& other = members_told_[static_cast<std::size_t>(rank)];
  const std::string apart = native::why_apart(mine, other);
  if (state_ == State::On && apart.empty()) {
    return Json::object().add("how", "native, by " + mine.compatible).add("why_not_better", "");
  }
  const auto side = [](const native::Member& member) {
    return member.kind == "host" ? std::string("host memory") : "staged by " + member.kind;
  };
  return Json::object()
      .add("how", text(side(mine), " here, ", side(other), " there, over ", transport))
      .add("why_not_better", state_ == State::On ? "not native: " + apart : why_);
}

}  // namespace hccomm::comm
