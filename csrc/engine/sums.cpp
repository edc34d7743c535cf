// SPDX-License-Identifier: Apache-2.0
#include "engine/sums.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>

#include "base/clock.hpp"
#include "base/text.hpp"

namespace hccomm::engine {

static constexpr int kRounds = 4;  // the first is not counted
static constexpr auto kPatience = std::chrono::seconds(2);
static constexpr std::uint64_t kMost = SumTrial::kBytes[1];

namespace {

// The memory, stream and event of one trial. Pinned: the device's operand as the host knows it,
// what "came", and what was copied out.
//
// Owns:   all of it; what a device does not finish with is left to it.
// Thread: one.
// Fails:  `status` has the first failure; everything after it does nothing.
class Bench {
 public:
  Bench(device::Runtime& runtime, int index) : runtime_(runtime), index_(index) {
    auto pinned = runtime.host_allocate(index, 3 * kMost);
    if (pinned.ok()) mine = static_cast<std::byte*>(pinned.value());
    auto memory = take(pinned, [&] { return runtime.allocate(index, 2 * kMost); });
    if (memory.ok()) place_ = memory.value();
    auto stream = take(memory, [&] { return runtime.stream_create(index); });
    if (stream.ok()) stream_ = stream.value();
    auto event = take(stream, [&] { return runtime.event_create(index); });
    if (event.ok()) event_ = event.value();
    if (!event.ok()) status = event.status();
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench() {
    if (unfinished_) return;
    if (event_.native != nullptr) runtime_.event_destroy(event_);
    if (stream_.ours != 0) runtime_.stream_destroy(stream_);
    if (place_.handle != nullptr) runtime_.release(index_, place_);
    if (mine != nullptr) runtime_.host_free(index_, mine);
  }

  device::Place src() const { return place_; }
  device::Place dst() const { return {place_.handle, place_.offset + kMost}; }
  std::byte* came() const { return mine + kMost; }
  std::byte* out() const { return mine + 2 * kMost; }

  void copy_in(device::Place place, const std::byte* from, std::uint64_t bytes) {
    if (status.ok()) status = runtime_.copy_in(stream_, place, from, bytes);
  }
  void copy_out(device::Place place, std::uint64_t bytes) {
    if (status.ok()) status = runtime_.copy_out(stream_, out(), place, bytes);
  }
  void reduce_in(std::uint64_t count, const device::Reduction& how) {
    if (status.ok()) status = runtime_.reduce_in(stream_, dst(), src(), came(), count, how);
  }
  void finish() {
    const Status recorded = runtime_.event_record(event_, stream_);
    unfinished_ = true;
    const Deadline patience(Clock::now() + kPatience);
    while (recorded.ok() && !patience.passed()) {
      auto here = runtime_.event_query(event_);
      if (!here.ok() && status.ok()) status = here.status();
      unfinished_ = here.ok() && !here.value();
      if (!unfinished_) return;
      std::this_thread::yield();
    }
    if (status.ok()) status = recorded;
    if (status.ok()) status = Status(Code::Timeout, "it did not end within 2 s");
  }

  Status status;
  std::byte* mine = nullptr;

 private:
  template <typename Before, typename Make>
  static auto take(const Before& before, const Make& make) -> decltype(make()) {
    if (!before.ok()) return before.status();
    return make();
  }

  device::Runtime& runtime_;
  const int index_;
  device::Place place_;
  device::Stream stream_;
  device::Event event_;
  bool unfinished_ = false;
};

}  // namespace

// Bits without pattern, so that all kinds of numbers and of none meet; every other one beside
// its like, so that sums are as small as numbers get.
static void fill(std::byte* mine, std::byte* came, std::size_t element_bytes) {
  std::uint64_t state = 1;
  for (std::uint64_t at = 0; at < kMost; at += 8) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const std::uint64_t one = state ^ (state >> 31);
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::uint64_t other = state ^ (state >> 29);
    if (at / 8 % 2 != 0) {  // signs and lowest bits differ
      const int sign = static_cast<int>(8 * element_bytes) - 1;
      other = one ^ (std::uint64_t{1} << std::min(sign, 63)) ^ (other & 7);
    }
    std::memcpy(mine + at, &one, sizeof one);
    std::memcpy(came + at, &other, sizeof other);
  }
}

static double seconds_of(Bench& bench, const auto& work) {
  double best = HUGE_VAL;
  for (int round = 0; round < kRounds && bench.status.ok(); ++round) {
    const auto begin = Clock::now();
    work();
    const double took = Seconds(Clock::now() - begin).count();
    if (round > 0) best = std::min(best, took);
  }
  return best;
}

// Whether the device gives the host's bits, whichever operand is the left one.
static bool same_bits(Bench& bench, device::Reduction how, dtype::Reduce kernel,
                      std::size_t element_bytes) {
  constexpr std::uint64_t kBytes = SumTrial::kBytes[0];
  for (const bool host_first : {false, true}) {
    how.host_first = host_first;
    bench.copy_in(bench.src(), bench.mine, kBytes);
    bench.reduce_in(kBytes / element_bytes, how);
    bench.copy_out(bench.dst(), kBytes);
    bench.finish();
    if (!bench.status.ok()) return false;
    auto wanted = std::make_unique_for_overwrite<std::byte[]>(kBytes);
    kernel(wanted.get(), host_first ? bench.came() : bench.mine,
           host_first ? bench.mine : bench.came(), kBytes / element_bytes);
    if (std::memcmp(wanted.get(), bench.out(), kBytes) != 0) return false;
  }
  return true;
}

SumTrial try_sums(device::Runtime& runtime, int index, device::Reduction how, dtype::Reduce kernel,
                  std::size_t element_bytes) {
  SumTrial trial;
  Bench bench(runtime, index);
  if (bench.status.ok())
    trial.why_not = runtime.lacks_reduction(index, bench.dst(), bench.src(), how);
  if (!trial.why_not.empty()) return trial;
  if (bench.status.ok()) {
    fill(bench.mine, bench.came(), element_bytes);
    const bool same = same_bits(bench, how, kernel, element_bytes);
    if (!same) trial.why_not = "its sums differ in bits from the host's";
  }
  if (bench.status.ok() && trial.why_not.empty()) {
    bench.copy_in(bench.src(), bench.mine, kMost);
    bench.finish();
  }
  for (int k = 0; k < 2 && bench.status.ok() && trial.why_not.empty(); ++k) {
    const std::uint64_t bytes = SumTrial::kBytes[k], count = bytes / element_bytes;
    trial.host[k] = seconds_of(bench, [&] {
      bench.copy_out(bench.src(), bytes);
      bench.finish();
      kernel(bench.out(), bench.out(), bench.came(), count);
      bench.copy_in(bench.dst(), bench.out(), bytes);
      bench.finish();
    });
    trial.device[k] = seconds_of(bench, [&] {
      bench.reduce_in(count, how);
      bench.finish();
    });
  }
  if (!bench.status.ok()) trial.why_not = "a trial failed: " + bench.status.text();
  return trial;
}

bool SumTrial::quicker(std::uint64_t bytes) const {
  if (!why_not.empty()) return false;
  const double at = bytes <= kBytes[0] ? 0.0
                                       : static_cast<double>(bytes - kBytes[0]) /
                                             static_cast<double>(kBytes[1] - kBytes[0]);
  const auto seconds = [&](const double (&took)[2]) { return took[0] + at * (took[1] - took[0]); };
  return seconds(device) < seconds(host);
}

std::string SumTrial::text() const {
  const auto us = [](double seconds) { return std::llround(seconds * 1e6); };
  return hccomm::text("64 KiB on the device in ", us(device[0]), " us, over the host in ",
                      us(host[0]), "; 1 MiB in ", us(device[1]), " and ", us(host[1]));
}

}  // namespace hccomm::engine
