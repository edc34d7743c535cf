// SPDX-License-Identifier: Apache-2.0
//
// The fixture of the transport suite: two members of a job in this process, over one transport.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "support/link_pair.hpp"
#include "support/member.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

namespace hccomm::transport {

// A transport, and whether HCCOMM_ENCRYPT is set: those that keep secrets must work alike.
struct Way {
  const Builtin* builtin;
  bool encrypts;
};

class EachTransport : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    job_ = wire::random_bytes(16);
    dialer_ = member(job_, key_);
    server_ = member(job_, key_);
    for (const auto& each : {dialer_.get(), server_.get()}) {
      if (!each->why_not().empty()) GTEST_SKIP() << builtin().name << ": " << each->why_not();
    }
    const std::string why = dialer_->transport().refuses(dialer_->card(), server_->card());
    if (why.ends_with("two endpoints of one process"))
      GTEST_SKIP() << builtin().name << ": " << why;
  }
  const Builtin& builtin() const { return *GetParam().builtin; }
  std::unique_ptr<Member> member(const std::string& job, const std::string& key) const {
    return std::make_unique<Member>(builtin(), job, key, wire::random_bytes(16),
                                    GetParam().encrypts);
  }

  // A connected pair of links: `dialed_` and `taken_`.
  void connect() {
    ASSERT_EQ(dialer_->transport().refuses(dialer_->card(), server_->card()), "");
    auto link = dialer_->transport().connect(server_->card(), soon());
    ASSERT_TRUE(link.ok()) << link.status().text();
    dialed_ = std::move(link).value();
    Accepted accepted = server_->take();
    ASSERT_NE(accepted.link, nullptr);
    EXPECT_EQ(accepted.uuid, dialer_->card().uuid);
    taken_ = std::move(accepted.link);
  }
  // Sends from one link and polls the other, in turns, until all frames are over.
  void exchange(Link& from, Link& to, const std::vector<std::size_t>& sizes,
                test::Collector& inbox) {
    const Deadline deadline = soon();
    test::Collector unused;
    std::vector<std::vector<std::byte>> payloads;
    for (std::uint32_t i = 0; i < sizes.size(); ++i)
      payloads.push_back(test::payload_of(i, sizes[i]));
    std::size_t next = 0;
    Outgoing frame;
    bool offered = false;
    while ((next < sizes.size() || inbox.messages.size() < sizes.size() || inbox.open()) &&
           !deadline.passed()) {
      if (next < sizes.size()) {
        if (!offered) {
          frame = {test::header_of(static_cast<std::uint32_t>(next), sizes[next]),
                   payloads[next].data()};
        }
        const Progress progress = from.send(frame);
        from.flush();
        ASSERT_NE(progress, Progress::Broken) << from.status().text();
        offered = progress == Progress::Again;
        if (!offered) ++next;
      }
      ASSERT_TRUE(!to.pending() || to.poll(inbox, 1 << 20)) << to.status().text();
      ASSERT_TRUE(!from.pending() || from.poll(unused, 1 << 20)) << from.status().text();
    }
    ASSERT_EQ(inbox.messages.size(), sizes.size());
    for (std::uint32_t i = 0; i < sizes.size(); ++i) {
      ASSERT_EQ(inbox.messages[i].header.index, i);
      ASSERT_EQ(inbox.messages[i].payload.size(), sizes[i]);
      EXPECT_TRUE(test::matches(inbox.messages[i].payload, i)) << "frame of " << sizes[i];
    }
  }

  std::string job_, key_ = std::string(32, 'k');
  std::unique_ptr<Member> dialer_, server_;
  std::unique_ptr<Link> dialed_, taken_;
};

}  // namespace hccomm::transport
