// SPDX-License-Identifier: Apache-2.0
//
// Which cards the ofi transport takes, and what it asks of them, with a libfabric that has cards
// (tests/fakes/cards_fabric.c): they are as strict as cards are, and count what goes over them.
#include <gtest/gtest.h>

#include <dlfcn.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_rma.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "support/cards_seen.hpp"
#include "support/each_transport.hpp"
#include "transport/ofi/card.hpp"
#include "transport/ofi/provider.hpp"
#include "transport/ofi/rail.hpp"

namespace hccomm::transport {
namespace {

namespace fs = std::filesystem;
using test::Collector;
using test::header_of;
using test::payload_of;
using test::poll_until;
using test::seen;

constexpr const char* kNames[] = {"FAKE_CARDS",          "FAKE_CARDS_PROVIDER",
                                  "HCCOMM_OFI_RAILS",    "HCCOMM_OFI_PROVIDER",
                                  "HCCOMM_TEST_OFI_PCI", "HCCOMM_OFI_DEVICE"};
constexpr const char* kTwo = "mlx5_0 0000:81:00.0 up, mlx5_1 0000:01:00.0 up+hmem";
const tcp::Ip kElsewhere = tcp::Ip::parse("192.0.2.77").value();

bool has_libfabric() { return dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL) != nullptr; }

void clear_settings() {
  for (const char* name : kNames) unsetenv(name);
}

// Keeps the thread where it is: on another processor it could be on another memory node.
class Pinned {
 public:
  Pinned() {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
  }
  Pinned(const Pinned&) = delete;
  ~Pinned() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_;
};

// ---- which are taken ----------------------------------------------------------------------------

class Cards : public testing::Test {
 protected:
  void SetUp() override {
    seen();
    clear_settings();
    if (!has_libfabric()) GTEST_SKIP() << "no libfabric here";
    setenv("FAKE_CARDS", kTwo, 1);
    std::string name = fs::temp_directory_path() / "pci.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    devices_ = name;
    setenv("HCCOMM_TEST_OFI_PCI", name.c_str(), 1);
  }
  void TearDown() override {
    clear_settings();
    if (!devices_.empty()) fs::remove_all(devices_);
  }
  // As /sys/bus/pci/devices tells it.
  void plug(const std::string& bus, int node) {
    fs::create_directory(devices_ / bus);
    std::ofstream(devices_ / bus / "numa_node") << node << '\n';
  }
  // "mlx5_0 mlx5_1", in the order in which they are used; or why none is.
  static std::string taken(const tcp::Ip& near = kElsewhere) {
    auto choices = ofi::choose(near);
    if (!choices) return choices.status().text();
    std::string out;
    for (const auto& each : choices.value()) out += (out.empty() ? "" : " ") + each.domain;
    return out;
  }
  static Finding found(const std::string& card) {
    auto findings = ofi::survey();
    if (!findings) return {};
    for (const Finding& each : findings.value()) {
      if (each.what.starts_with(card)) return each;
    }
    return {};
  }

  const Pinned pinned_;
  fs::path devices_;
};

TEST_F(Cards, OfARealFabricAreTakenByThemselvesAndNothingElseEver) {
  auto choices = ofi::choose(kElsewhere);
  ASSERT_TRUE(choices.ok()) << choices.status().text();
  for (const auto& each : choices.value()) EXPECT_EQ(each.provider, "verbs;ofi_rxm");

  auto findings = ofi::survey();
  ASSERT_TRUE(findings.ok());
  int others = 0;
  for (const Finding& each : findings.value()) {
    const bool real = each.what.starts_with("verbs");
    others += !real;
    EXPECT_EQ(each.used, real) << each.what;
    EXPECT_FALSE(each.reason.empty()) << each.what;
  }
  EXPECT_GT(others, 0) << "there was nothing to choose from";
}

TEST_F(Cards, WhereThereAreNoneTheProvidersOverSocketsAreNotTaken) {
  unsetenv("FAKE_CARDS");

  EXPECT_NE(taken().find("no RDMA fabric here"), std::string::npos) << taken();
}

TEST_F(Cards, ThoseOfTheBetterFabricAreTaken) {
  setenv("FAKE_CARDS_PROVIDER", "cxi", 1);

  EXPECT_EQ(ofi::choose(kElsewhere).value().front().provider, "cxi");
}

TEST_F(Cards, WithoutALinkAreNotTaken) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 down, mlx5_1 0000:01:00.0 up", 1);

  for (const char* rails : {"auto", "1", "2"}) {
    setenv("HCCOMM_OFI_RAILS", rails, 1);
    EXPECT_EQ(taken(), "mlx5_1") << rails;
  }
  const Finding down = found("verbs;ofi_rxm on mlx5_0");
  EXPECT_FALSE(down.used);
  EXPECT_EQ(down.reason, "its link is down");
}

TEST_F(Cards, NoneOfWhichHasALinkAreNamed) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 down, mlx5_1 0000:01:00.0 down", 1);

  for (const bool asked : {false, true}) {
    if (asked) setenv("HCCOMM_OFI_PROVIDER", "verbs", 1);
    const Status status = ofi::choose(kElsewhere).status();

    EXPECT_EQ(status.code(), Code::Unavailable);
    EXPECT_NE(status.text().find("no card has a link: mlx5_0, mlx5_1"), std::string::npos)
        << status.text();
  }
}

TEST_F(Cards, OnTheMemoryNodeOfThisProcessArePreferred) {
  const int here = ofi::node_here();
  ASSERT_GE(here, 0);
  plug("0000:81:00.0", here + 1);
  plug("0000:01:00.0", here);

  EXPECT_EQ(taken(), "mlx5_1");
  const Finding near = found("verbs;ofi_rxm on mlx5_1"), far = found("verbs;ofi_rxm on mlx5_0");
  EXPECT_TRUE(near.used);
  EXPECT_EQ(near.reason, "on this process's memory node");
  EXPECT_FALSE(far.used);
  EXPECT_EQ(far.reason, "farther: this process is on memory node " + std::to_string(here));
  const std::string place = "PCI 0000:81:00.0, memory node " + std::to_string(here + 1);
  EXPECT_TRUE(far.detail.starts_with(place + ", 200 Gbit/s, link up")) << far.detail;
}

TEST_F(Cards, FartherOnesAreTakenAfterThoseThatAreNearWhereSoManyAreAskedFor) {
  const int here = ofi::node_here();
  plug("0000:81:00.0", here + 1);
  plug("0000:01:00.0", here);
  setenv("HCCOMM_OFI_RAILS", "2", 1);

  EXPECT_EQ(taken(), "mlx5_1 mlx5_0");
}

TEST_F(Cards, AFartherOneWithALinkIsBetterThanANearOneWithout) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 up, mlx5_1 0000:01:00.0 down", 1);
  const int here = ofi::node_here();
  plug("0000:81:00.0", here + 1);
  plug("0000:01:00.0", here);

  EXPECT_EQ(taken(), "mlx5_0");
}

// Each port of RoCE has an address. That tcp uses one of them makes the other no worse a rail.
TEST_F(Cards, EquallyNearAreAllTakenWhateverTheAddressOfEach) {
  plug("0000:81:00.0", ofi::node_here());
  plug("0000:01:00.0", ofi::node_here());

  EXPECT_EQ(taken(), "mlx5_0 mlx5_1");
  EXPECT_EQ(taken(tcp::Ip::parse("198.18.1.1").value()), "mlx5_1 mlx5_0");
}

TEST_F(Cards, MoreThanHccommOfiRailsAllowsAreLeftOut) {
  setenv("HCCOMM_OFI_RAILS", "1", 1);

  EXPECT_EQ(taken(), "mlx5_0");
  EXPECT_EQ(found("verbs;ofi_rxm on mlx5_1").reason,
            "HCCOMM_OFI_RAILS: 1 of those as near is taken");
}

TEST_F(Cards, SayWhetherTheyCouldReachTheMemoryOfDevices) {
  EXPECT_NE(found("verbs;ofi_rxm on mlx5_0").detail.find("device memory staged (no FI_HMEM)"),
            std::string::npos);
  EXPECT_NE(found("verbs;ofi_rxm on mlx5_1").detail.find("device memory direct where"),
            std::string::npos);
  setenv("HCCOMM_OFI_DEVICE", "0", 1);
  EXPECT_NE(found("verbs;ofi_rxm on mlx5_1").detail.find("staged (HCCOMM_OFI_DEVICE=0)"),
            std::string::npos);
}

// ---- what goes over them ------------------------------------------------------------------------

// Two members of a job over the cards, RAILS of them.
class OverCards : public EachTransport {
 protected:
  void SetUp() override {
    seen();
    clear_settings();
    if (!has_libfabric()) GTEST_SKIP() << "no libfabric here";
    setenv("FAKE_CARDS", kTwo, 1);
    setenv("HCCOMM_OFI_RAILS", "2", 1);
    before_ = seen();
  }
  // The server's process may list its cards otherwise.
  void open(const char* of_the_server = kTwo) {
    EachTransport::SetUp();
    ASSERT_TRUE(dialer_->why_not().empty()) << dialer_->why_not();
    setenv("FAKE_CARDS", of_the_server, 1);
    server_ = member(job_, key_);
  }
  void meet(const char* of_the_server = kTwo) {
    ASSERT_NO_FATAL_FAILURE(open(of_the_server));
    ASSERT_NO_FATAL_FAILURE(connect());
  }
  // Messages in slots and in place, both ways.
  void talk() {
    std::vector<std::size_t> sizes;
    for (std::size_t i = 0; i < 100; ++i) sizes.push_back(i * i * 7 % 400'000);
    Collector forth, back;
    exchange(*dialed_, *taken_, sizes, forth);
    exchange(*taken_, *dialed_, sizes, back);
    send_in_place(4'000'003);
  }
  void send_in_place(std::size_t size) {
    const auto payload = payload_of(1, size);
    std::vector<std::byte> place(size);
    Collector inbox, unused;
    inbox.place = place.data();
    taken_->expect(header_of(1, size), place.data(), size);
    taken_->flush();
    ASSERT_TRUE(poll_until(*dialed_, unused, [n = 0]() mutable { return ++n > 50; }));
    std::thread sender([&] {
      for (std::size_t done = 0; done < size;) {
        wire::Header part = header_of(1, std::min(size - done, dialed_->frame_bytes()));
        part.address = done;
        if (!test::send_all(*dialed_, unused, part, payload.data() + done)) return;
        done += part.length;
      }
    });
    const bool came = poll_until(*taken_, inbox, [&] { return inbox.placed == size; });
    sender.join();
    ASSERT_TRUE(came) << taken_->status().text();
    EXPECT_TRUE(payload == place);
  }
  void TearDown() override {
    dialed_.reset();
    taken_.reset();
    dialer_.reset();
    server_.reset();
    clear_settings();
    EXPECT_EQ(seen().refused, before_.refused) << seen().first;
  }
  std::uint64_t bytes(int card) const { return seen().bytes[card] - before_.bytes[card]; }
  std::uint64_t injected(int card) const { return seen().injected[card] - before_.injected[card]; }

  cards before_ = {};
};

TEST_P(OverCards, ALargeMessageIsWrittenInPlaceOverBothAndCountedOnce) {
  ASSERT_NO_FATAL_FAILURE(meet());
  constexpr std::size_t kBytes = 40'000'003;

  send_in_place(kBytes);

  EXPECT_GT(bytes(0), kBytes / 3);
  EXPECT_GT(bytes(1), kBytes / 3);
  EXPECT_LT(bytes(0) + bytes(1), kBytes + kBytes / 100) << "it was sent twice";
}

TEST_P(OverCards, FramesOfAnySizeComeInOrder) {
  ASSERT_NO_FATAL_FAILURE(meet());
  std::vector<std::size_t> sizes;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < 400; ++i) sum += sizes.emplace_back(i * i * 7 % 400'000);
  Collector inbox;

  exchange(*dialed_, *taken_, sizes, inbox);

  EXPECT_GE(bytes(0) + bytes(1), sum);
  EXPECT_GT(bytes(1), sum / 4);
  EXPECT_EQ(injected(0) + injected(1), 0u) << "ofi_rxm crashes on what was injected";
}

TEST_P(OverCards, WhatIsSmallEnoughIsInjectedAndNoMore) {
  setenv("FAKE_CARDS_PROVIDER", "cxi", 1);
  ASSERT_NO_FATAL_FAILURE(meet());
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < 300; ++i) sizes.push_back(i);
  Collector forth, back;

  exchange(*dialed_, *taken_, sizes, forth);
  exchange(*taken_, *dialed_, sizes, back);

  EXPECT_GT(injected(0), 0u);
}

// Two fabrics, which the two processes list in another order: the n-th card of one does not reach
// the n-th of the other.
TEST_P(OverCards, OfTwoFabricsArePairedByTheFabric) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 up+on=a, mlx5_1 0000:01:00.0 up+on=b", 1);
  ASSERT_NO_FATAL_FAILURE(meet("mlx5_0 0000:81:00.0 up+on=b, mlx5_1 0000:01:00.0 up+on=a"));

  talk();

  EXPECT_GT(bytes(0), 1'000'000u);
  EXPECT_GT(bytes(1), 1'000'000u);
}

TEST_P(OverCards, ThatReachNoneOfThePeersAreLeftOut) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 up+on=a, mlx5_1 0000:01:00.0 up+on=b", 1);
  ASSERT_NO_FATAL_FAILURE(meet("mlx5_0 0000:81:00.0 up+on=c, mlx5_1 0000:01:00.0 up+on=a"));

  talk();

  EXPECT_NE(dialed_->describe().find("bytes over mlx5_0"), std::string::npos)
      << dialed_->describe();
  EXPECT_EQ(dialed_->describe().find("bytes over mlx5_1"), std::string::npos);
}

TEST_P(OverCards, OfOtherFabricsThanAllOfThePeersAreRefusedWithTheNamesOfBoth) {
  setenv("FAKE_CARDS", "mlx5_0 0000:81:00.0 up+on=a", 1);
  ASSERT_NO_FATAL_FAILURE(open("mlx5_3 0000:01:00.0 up+on=b"));

  auto link = dialer_->transport().connect(server_->card(), Deadline::after(Seconds(1)));

  ASSERT_FALSE(link.ok());
  const std::string why = link.status().text();
  EXPECT_NE(why.find("on mlx5_0"), std::string::npos) << why;
  EXPECT_NE(why.find("its cards: mlx5_3 (fake-b)"), std::string::npos) << why;
}

INSTANTIATE_TEST_SUITE_P(Ofi, OverCards, testing::ValuesIn([] {
                           static const Builtin ofi = ofi_transport();
                           return std::vector<Way>{{&ofi, false}};
                         }()),
                         [](const auto&) { return std::string("ofi"); });

// ---- that the fake is as strict as it says ------------------------------------------------------

// One endpoint for each card, which writes to itself.
class StrictCards : public Cards {
 protected:
  void SetUp() override {
    Cards::SetUp();
    if (IsSkipped()) return;
    setenv("HCCOMM_OFI_RAILS", "2", 1);
    auto choices = ofi::choose(kElsewhere);
    ASSERT_TRUE(choices.ok()) << choices.status().text();
    for (auto& each : choices.value()) {
      auto& rail = rails_.emplace_back(std::make_unique<ofi::Rail>(std::move(each)));
      ASSERT_TRUE(rail->open().ok());
      char name[256];
      std::size_t bytes = sizeof name;
      ASSERT_EQ(fi_getname(&rail->endpoint->fid, name, &bytes), 0);
      ASSERT_EQ(fi_av_insert(rail->addresses, name, 1, &self_.emplace_back(), 0, nullptr), 1);
    }
    memory_.resize(1 << 16);
    half_ = ofi::enroll(rails_, memory_.data(), memory_.size() / 2, Access::Write).value();
    refused_ = seen().refused;
  }
  void TearDown() override {
    ofi::strike(half_);
    for (auto& rail : rails_) rail->close();
    Cards::TearDown();
  }
  using Access = ofi::Access;
  std::uint64_t at(std::size_t offset) const { return half_.address(0, memory_.data() + offset); }
  ssize_t write(const std::byte* from, void* descriptor, std::uint64_t to, std::uint64_t key) {
    return fi_writedata(rails_[0]->endpoint, from, 100, descriptor, 7, self_[0], to, key,
                        &context_);
  }
  // Refused, and noted.
  void expect_refused(ssize_t outcome, int code) {
    EXPECT_EQ(outcome, -code);
    EXPECT_EQ(seen().refused, ++refused_);
  }

  ofi::Rails rails_;
  std::vector<std::uint64_t> self_;
  std::vector<std::byte> memory_;
  ofi::Registration half_;
  std::uint64_t refused_ = 0;
  std::uint64_t context_[8] = {};
};

TEST_F(StrictCards, WriteBetweenRegisteredMemory) {
  memory_[0] = std::byte{42};
  ssize_t said = -FI_EAGAIN;
  int left = 2;  // the write's end, and its arrival
  const Deadline deadline = soon();
  while (left > 0 && !deadline.passed()) {
    if (said == -FI_EAGAIN) {
      said = write(memory_.data(), half_.descriptor[0], at(1000), half_.key[0]);
    }
    fi_cq_data_entry entry;
    if (fi_cq_read(rails_[0]->queue, &entry, 1) == 1) --left;
  }

  EXPECT_EQ(left, 0);
  EXPECT_EQ(memory_[1000], std::byte{42});
  EXPECT_EQ(seen().refused, refused_);
}

TEST_F(StrictCards, RefuseToSendWhatIsNotRegistered) {
  const std::byte* const outside = memory_.data() + memory_.size() / 2;

  expect_refused(write(memory_.data(), nullptr, at(0), half_.key[0]), FI_EINVAL);
  expect_refused(write(memory_.data(), half_.descriptor[1], at(0), half_.key[0]), FI_EINVAL);
  expect_refused(write(outside, half_.descriptor[0], at(0), half_.key[0]), FI_EINVAL);
}

TEST_F(StrictCards, RefuseToWriteWithAWrongKeyOrOutsideOfTheMemory) {
  ofi::Registration gone = ofi::enroll(rails_, memory_.data(), 4096, Access::Write).value();
  const std::uint64_t gone_key = gone.key[0];
  ofi::strike(gone);
  ofi::Registration read = ofi::enroll(rails_, memory_.data(), 4096, Access::Read).value();
  void* const own = half_.descriptor[0];

  expect_refused(write(memory_.data(), own, at(0), half_.key[0] + 1), FI_EKEYREJECTED);
  expect_refused(write(memory_.data(), own, at(0), half_.key[1]), FI_EKEYREJECTED);
  expect_refused(write(memory_.data(), own, at(0), gone_key), FI_EKEYREJECTED);
  expect_refused(write(memory_.data(), own, at(0), read.key[0]), FI_EACCES);
  expect_refused(write(memory_.data(), own, 0, half_.key[0]), FI_EINVAL);  // an offset
  expect_refused(write(memory_.data(), own, at(memory_.size() / 2 - 50), half_.key[0]), FI_EINVAL);
  ofi::strike(read);
}

TEST_F(StrictCards, RefuseToInjectMoreThanTheySay) {
  ASSERT_EQ(rails_[0]->choice.info->tx_attr->inject_size, 64u);

  expect_refused(fi_inject_writedata(rails_[0]->endpoint, memory_.data(), 65, 7, self_[0], at(0),
                                     half_.key[0]),
                 FI_EMSGSIZE);
}

TEST_F(StrictCards, RefuseToRegisterWhatIsNotThere) {
  void* const hole =
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  ASSERT_EQ(munmap(hole, 8192), 0);

  auto memory = ofi::enroll(rails_, static_cast<std::byte*>(hole), 8192, Access::Write);

  EXPECT_FALSE(memory.ok());
  EXPECT_EQ(seen().refused, ++refused_);
}

}  // namespace
}  // namespace hccomm::transport
