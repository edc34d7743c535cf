// SPDX-License-Identifier: Apache-2.0
//
// One call in its turn: over islands, or hccomm's own way; and what follows when a library fails.
#include <bit>
#include <cstring>

#include "base/log.hpp"
#include "collective/collective.hpp"
#include "comm/islands.hpp"

namespace hccomm::comm {

// Where a call fails on one rank, the others may see no more than that: they wait for its reason.
static constexpr Seconds kHearsay{5};

Status Islands::own_way(Job& job, Watch& watch) {
  for (const Gate& each : job.gates) {
    if (each.runtime == nullptr) continue;
    if (Status status = watch.await(*each.runtime, each.event, nullptr); !status.ok()) {
      return status;
    }
  }
  Request request = job.request;
  request.timeout = watch.left();
  std::vector<Started> started{{&parent_, parent_.start_own(request)}};
  return watch.settle(started);
}

// Keeps the input of a call that overwrites it, or puts it back.
Status Islands::save(const Request& request, std::vector<std::byte>& saved, bool back,
                     Watch& watch) {
  const plan::Group group{parent_.rank(), parent_.size(), {}, 1};
  const std::size_t element = dtype::size_of(request.call.type);
  const std::uint64_t bytes = collective::input_count(request.call, group) * element;
  const std::uint64_t other = collective::output_count(request.call, group) * element;
  const std::byte* const in = request.input.data;
  const std::byte* const out = request.output.data;
  if (bytes == 0 || other == 0 || in >= out + other || out >= in + bytes) return {};
  if (!back) saved.resize(bytes);
  if (request.input.device.kind == 0) {
    back ? std::memcpy(request.input.data, saved.data(), bytes)
         : std::memcpy(saved.data(), request.input.data, bytes);
    return {};
  }
  Result<engine::Where> where = locate("islands", request.input.device);
  if (!where.ok()) return where.status();
  Ferry ferry(where.value());
  return back ? ferry.in(where.value().place, saved.data(), bytes, watch)
              : ferry.out(saved.data(), where.value().place, bytes, watch);
}

// Tells how the call went here; `failed` says whether it did so on any rank, the Status why.
Status Islands::vote(const Status& mine, std::uint64_t fingerprint, bool& failed, Watch& watch) {
  struct Ballot {
    std::uint64_t fingerprint;
    std::int32_t code;
    char text[300];
  } own{};
  own.fingerprint = fingerprint;
  own.code = static_cast<std::int32_t>(mine.code());
  std::strncpy(own.text, mine.text().c_str(), sizeof own.text - 1);
  auto all = gather(talk(), own, watch);
  if (!all.ok()) return all.status();
  Status why;  // of the first rank that failed; an echo of another's only if there is none
  for (std::size_t rank = 0; rank < all.value().size(); ++rank) {
    const Ballot& each = all.value()[rank];
    if (each.fingerprint != fingerprint) {
      return Watch::differ(static_cast<int>(rank), each.fingerprint, parent_.rank(), fingerprint);
    }
    const auto code = static_cast<Code>(each.code);
    if (code != Code::Ok && (why.ok() || (why.code() == Code::Aborted && code != Code::Aborted))) {
      why = {code, text("rank ", rank, ": ", each.text)};
    }
  }
  failed = !why.ok();
  if (failed) turn_off(why.text());
  return {};
}

// Doubling calls after the first: the rails' shares follow what each rank has measured.
Status Islands::share_rates(Watch& watch) {
  if (archipelago_->direct() || !std::has_single_bit(++overs_) || overs_ < 4) return {};
  auto rates = gather(talk(), archipelago_->rate(), watch);
  if (!rates.ok()) return rates.status();
  const std::lock_guard lock(mutex_);
  archipelago_->reshare(rates.value());
  return {};
}

// Why the call failed that has failed with `mine` here. Code::Aborted is an echo: of what another
// rank tells, or of calls that differ.
Status Islands::cause(const Status& mine, Watch& watch) {
  const bool echo = mine.code() == Code::Aborted;
  const Deadline deadline = Deadline::after(std::min(kHearsay, watch.left()));
  for (;;) {
    if (Status status = parent_.trouble(); !status.ok()) return status;
    if (Status status = watch.peek(); status.code() == Code::Mismatch) return status;
    if (!echo || deadline.passed()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (mine.rank() >= 0 || (!echo && mine.code() != Code::System)) return mine;
  return {Code::System, text("rank ", parent_.rank(), ": ", mine.text()), parent_.rank()};
}

Status Islands::over(Job& job, Watch& watch) {
  const std::uint64_t fingerprint = collective::fingerprint(job.request.call);
  if (!keeps_) {
    watch.check(talk(), fingerprint);
    Status status = archipelago_->run(job.request, job.gates, watch);
    if (status.ok()) status = watch.settle_check();
    if (status.ok()) status = share_rates(watch);
    return status.ok() ? status : cause(status, watch);
  }
  Watch before(parent_, parent_, watch.left());
  std::vector<std::byte> saved;
  for (const Gate& each : job.gates) {
    if (each.runtime == nullptr) continue;
    Status status = before.await(*each.runtime, each.event, nullptr);
    if (!status.ok()) return status;
  }
  Status status = save(job.request, saved, false, before);
  if (!status.ok()) return status;
  status = archipelago_->run(job.request, job.gates, watch);
  if (!status.ok() && !parent_.trouble().ok()) return parent_.trouble();
  if (!status.ok()) {
    // Who waits for this rank inside the call, waits no longer.
    alarm().fail(Status(Code::Aborted, text("islands: on another rank ", status.text())));
    archipelago_->abort();
  }
  Watch after(parent_, parent_, watch.left());
  bool failed = false;
  Status voted = vote(status, fingerprint, failed, after);
  if (!voted.ok()) return voted;
  if (!failed) return share_rates(after);
  archipelago_->abort();
  archipelago_->drain();
  if (!saved.empty()) voted = save(job.request, saved, true, after);
  {
    const std::lock_guard lock(mutex_);
    broken_ = std::move(archipelago_);
    keeps_ = false;
  }
  return voted.ok() ? own_way(job, after) : voted;
}

void Islands::turn_off(const std::string& why) {
  const std::lock_guard lock(mutex_);
  state_ = State::Off;
  why_ = text("a collective library failed, ", why);
  log::write(log::Level::Warn, text("islands: ", parent_.name(), " goes on without them: ", why_));
}

}  // namespace hccomm::comm
