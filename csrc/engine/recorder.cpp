// SPDX-License-Identifier: Apache-2.0
#include "engine/recorder.hpp"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstring>

namespace hccomm::engine {

static std::int64_t wall_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::uint64_t ticks_now() noexcept {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  std::uint64_t value = 0;
  asm volatile("mrs %0, cntvct_el0" : "=r"(value));
  return value;
#else
  return static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
#endif
}

// When this was loaded, by both clocks: the rate follows from here and now.
static const std::uint64_t kFirstTicks = ticks_now();
static const std::int64_t kFirstNs = wall_ns();

std::int64_t recorded_ns(std::uint64_t ticks) noexcept {
  const auto passed = static_cast<double>(ticks_now() - kFirstTicks);
  const double rate = passed > 0 ? static_cast<double>(wall_ns() - kFirstNs) / passed : 1.0;
  return kFirstNs + static_cast<std::int64_t>(static_cast<double>(ticks - kFirstTicks) * rate);
}

static std::atomic<bool> dumps_wanted{false};

void request_dumps() noexcept { dumps_wanted.store(true, std::memory_order_release); }

bool take_dump_request() noexcept {
  return dumps_wanted.load(std::memory_order_relaxed) &&
         dumps_wanted.exchange(false, std::memory_order_acquire);
}

void dump_on_sigusr1() {
  struct sigaction action = {};
  action.sa_handler = [](int) { request_dumps(); };
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
}

// All of it is to be set but waits_for. The one that comes next has left the nearest cache: it is
// asked for now.
Record& Recorder::next_record() noexcept {
  Record& record = ring_[at_];
  ++next_;
  if (++at_ == kRecords) at_ = 0;
  for (std::size_t line = 0; line < sizeof(Record); line += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(&ring_[at_]) + line, 1);
  }
  record.fingerprint = 0;
  record.peer = -1;
  record.ended = 0;
  record.code = Code::Ok;
  record.steps = record.done = 0;
  record.waits = 0;
  return record;
}

void Recorder::sent(int peer, std::uint64_t tag, std::uint64_t bytes,
                    std::uint64_t began) noexcept {
  Record& record = next_record();
  record.kind = OperationKind::Send;
  record.sequence = tag;
  record.peer = peer;
  record.bytes = bytes;
  record.began = began;
  record.ended = ticks_now();
}

void Recorder::begin(Operation& op) noexcept {
  op.record = next_;
  Record& record = next_record();
  record.kind = op.kind;
  record.began = ticks_now();
  if (op.kind == OperationKind::Collective) {
    record.sequence = op.sequence;
    record.fingerprint = op.recipe->fingerprint;
    record.bytes = op.recipe->sent_count * op.recipe->element_bytes;
  } else {
    record.sequence = op.tag;
    record.peer = op.peer;
    record.bytes = op.bytes;
  }
}

void Recorder::end(const Operation& op) noexcept {
  Record* record = find(op.record);
  if (record == nullptr) return;
  record->ended = ticks_now();
  record->code = op.status.code();
  if (op.kind == OperationKind::Collective) {
    record->steps = static_cast<std::uint32_t>(op.steps.size());
    record->done = record->steps - op.left;
  } else {
    record->peer = op.peer;
  }
}

Record* Recorder::find(std::uint64_t number) noexcept {
  return number >= first() && number < next_ ? &ring_[number % kRecords] : nullptr;
}

}  // namespace hccomm::engine
