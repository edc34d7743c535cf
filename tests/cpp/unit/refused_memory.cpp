// SPDX-License-Identifier: Apache-2.0
//
// One allocation of a job is refused, each in its turn: in operator new, from init to close. A call
// is right or fails with an error; no rank ends, waits for ever, or goes on with a caller's buffer.
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "capi/hccomm.h"
#include "support/each_transport.hpp"
#include "support/own_new.hpp"

static std::atomic<long> until_refusal{-1};  // allocations; below 0: none is refused

// Counts down while a job runs; whoever reaches 0 is refused.
bool hccomm::test::allowed() noexcept {
  return until_refusal.load(std::memory_order_relaxed) < 0 || until_refusal.fetch_sub(1) != 0;
}

namespace {

constexpr int kRanks = 2;
constexpr std::uint64_t kLarge = 100'000;  // floats: announced, and copied in pieces
constexpr std::uint64_t kSmall = 3;

// What one rank saw. All its memory is taken before anything is refused.
struct Rank {
  int number = 0;
  std::string url;
  std::vector<float> in = std::vector<float>(kLarge), out = std::vector<float>(kLarge);
  hccomm_comm* comm = nullptr;
  hccomm_error error{};
  int code = HCCOMM_OK;  // of the first call that failed
  bool wrong = false;    // a call that succeeded gave a wrong result

  hccomm_call call(int collective, std::uint64_t count) {
    hccomm_call made{};
    made.struct_size = sizeof made;
    made.collective = collective;
    made.dtype = HCCOMM_F32;
    made.op = HCCOMM_SUM;
    made.count = count;
    made.root = 1 - number;
    made.timeout = 5;
    made.input = {in.data(), in.size(), 0, HCCOMM_DEVICE_HOST, 0, nullptr};
    made.output = {out.data(), out.size(), 0, HCCOMM_DEVICE_HOST, 0, nullptr};
    return made;
  }
  // Whether the call succeeded with `expected` everywhere.
  bool good(int what, std::uint64_t count, float expected) {
    code = what;
    if (code != HCCOMM_OK) return false;
    wrong = std::any_of(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(count),
                        [&](float each) { return each != expected; });
    return !wrong;
  }
  bool sums(std::uint64_t count) {
    std::fill(in.begin(), in.end(), 1.0f + static_cast<float>(number));
    const hccomm_call made = call(HCCOMM_ALL_REDUCE, count);
    return good(hccomm_run(comm, &made, &error), count, 3.0f);
  }
  bool swaps(std::uint64_t count) {
    hccomm_call out_of = call(HCCOMM_SEND, count), into = call(HCCOMM_RECV, count);
    out_of.output = {};
    into.input = {};
    return good(hccomm_sendrecv(comm, &out_of, &into, nullptr, &error), count,
                2.0f - static_cast<float>(number));
  }
  bool meets() {
    hccomm_config config{};
    config.struct_size = sizeof config;
    config.rank = number;
    config.size = kRanks;
    config.rendezvous = url.c_str();
    config.timeout = 1;
    config.flags = HCCOMM_THREAD_RANK;
    code = hccomm_init(&config, &comm, &error);
    return code == HCCOMM_OK;
  }
  void works() {
    const bool fine = sums(kSmall) && sums(kLarge) && swaps(kSmall) && swaps(kLarge);
    // After a failure nothing of this rank's may be written any more, whoever goes on.
    if (!fine) std::fill(out.begin(), out.end(), -7.0f);
    hccomm_error late{};
    hccomm_close(comm, 2, &late);
    if (!fine) wrong = wrong || std::ranges::any_of(out, [](float each) { return each != -7.0f; });
  }
};

class Refused : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ::setenv("HCCOMM_TRANSPORTS", GetParam(), 1);
    ::setenv("HCCOMM_LOG", "error", 1);
    std::string folder = ::testing::TempDir() + "hccomm-refused-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  void TearDown() override {
    ::unsetenv("HCCOMM_TRANSPORTS");
    ::unsetenv("HCCOMM_LOG");
    std::filesystem::remove_all(folder_);
  }

  // Runs a job whose n-th allocation is refused, counted from init or from the first call on. False
  // when it has fewer.
  bool job(long n, bool from_init) {
    std::array<Rank, kRanks> ranks;
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int number = 0; number < kRanks; ++number) {
      ranks[number].number = number;
      ranks[number].url = "file://" + folder_ + "/" + std::to_string(n);
      threads.emplace_back([&, number] {
        if (from_init) {
          ++ready;
          while (!go) std::this_thread::yield();
        }
        bool here = ranks[number].meets();
        if (!from_init) {
          here = here && ranks[number].sums(kSmall + 1);  // so that they are connected
          ++ready;
          while (!go) std::this_thread::yield();
        }
        if (here) ranks[number].works();
      });
    }
    while (ready < kRanks) std::this_thread::yield();
    until_refusal = n;
    go = true;
    for (std::thread& each : threads) each.join();
    if (std::getenv("HCCOMM_TEST_TALK") != nullptr) {
      std::fprintf(stderr, "%ld: %d %s / %d %s\n", n, ranks[0].code, ranks[0].error.text,
                   ranks[1].code, ranks[1].error.text);
    }
    const bool reached = until_refusal.exchange(-1) < 0;
    for (const Rank& rank : ranks) {
      EXPECT_FALSE(rank.wrong) << "allocation " << n << ", rank " << rank.number;
      const bool told = rank.code == HCCOMM_OK || rank.error.text[0] != '\0';
      EXPECT_TRUE(told) << "allocation " << n << ": code " << rank.code << " without words";
      failed_ += rank.code != HCCOMM_OK ? 1 : 0;
      named_ += rank.code == HCCOMM_SYSTEM ? 1 : 0;
    }
    return reached;
  }

  // One job for every `stride`-th allocation, or as HCCOMM_TEST_STRIDE says: 1 takes minutes.
  void jobs(bool from_init, long stride) {
    const char* const asked = std::getenv("HCCOMM_TEST_STRIDE");
    if (asked != nullptr) stride = std::max(std::atol(asked), 1L);
    job(1'000'000, from_init);  // takes what a process takes once
    ASSERT_EQ(failed_, 0);
    long n = 0;
    while (job(n, from_init)) n += stride;

    EXPECT_GT(n, 20) << "the jobs allocated hardly anything";
    EXPECT_GT(named_, 0) << "of " << failed_ << " errors none said what was lacking";
    RecordProperty("allocations", static_cast<int>(n));
    RecordProperty("errors", failed_);
  }

 private:
  int failed_ = 0, named_ = 0;
  std::string folder_;
};

TEST_P(Refused, InCallsAndCloseNoRankEndsOrGoesOnUnseen) { jobs(false, 2); }
// Who is left in init waits for the other until its deadline.
TEST_P(Refused, InInitNoRankEnds) { jobs(true, 97); }

// A link ends when its peer goes, whatever it cannot say for want of memory: links may not throw.
class RefusedLink : public hccomm::transport::EachTransport {
 protected:
  // Refuses the n-th allocation of `body`. False when it had fewer.
  template <typename Body>
  static bool refuse(long n, Body&& body) {
    until_refusal = n;
    body();
    return until_refusal.exchange(-1) < 0;
  }
  bool all_is_over(hccomm::test::Collector& inbox) {
    return !hccomm::test::poll_until(*dialed_, inbox, [] { return false; });
  }
};

TEST_P(RefusedLink, TheEndOfThePeerIsNoticed) {
  bool reached = true;
  for (long n = 0; reached; ++n) {
    connect();
    hccomm::test::Collector inbox;
    taken_.reset();

    bool noticed = false;
    reached = refuse(n, [&] { noticed = all_is_over(inbox); });

    EXPECT_TRUE(noticed) << "allocation " << n;
    EXPECT_EQ(dialed_->status().code(), hccomm::Code::PeerLost) << dialed_->status().text();
  }
}

TEST_P(RefusedLink, WhatIsSentToNobodyIsRefused) {
  const std::vector<std::byte> payload(100'000);
  bool reached = true;
  for (long n = 0; reached; ++n) {
    connect();
    hccomm::test::Collector inbox;
    taken_.reset();

    bool sent = true;
    reached = refuse(n, [&] {
      for (int each = 0; sent && each < 1000; ++each) {
        sent = hccomm::test::send_all(*dialed_, inbox, hccomm::test::header_of(1, payload.size()),
                                      payload.data());
      }
    });

    EXPECT_FALSE(sent) << "allocation " << n;
  }
}

static std::vector<hccomm::transport::Way> ways() {
  std::vector<hccomm::transport::Way> all;
  for (const hccomm::transport::Builtin& each : hccomm::transport::transports()) {
    all.push_back({&each, false});
    if (each.keeps_secret && each.preference < 100) all.push_back({&each, true});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(builtins, RefusedLink, ::testing::ValuesIn(ways()), [](const auto& each) {
  return std::string(each.param.builtin->name) + (each.param.encrypts ? "_encrypted" : "");
});

INSTANTIATE_TEST_SUITE_P(transports, Refused, ::testing::Values("shm", "tcp"),
                         [](const auto& each) { return std::string(each.param); });

}  // namespace
