// SPDX-License-Identifier: Apache-2.0
//
// A sealed link over a real one that only notes what it is asked. The suites of the engine run
// sealed links over the real transports.
#include <gtest/gtest.h>

#include <utility>

#include "transport/transports.hpp"

namespace hccomm::transport {
namespace {

// Takes the header of a frame and not yet its payload.
class Noting final : public Link {
 public:
  explicit Noting(int& recalls, int& expected, bool pulls = false)
      : recalls_(recalls), expected_(expected), pulls_(pulls) {}

  Progress send(Outgoing& frame) noexcept override {
    frame.sent = sizeof frame.header;
    return Progress::Again;
  }
  bool poll(Inbox&, std::size_t) noexcept override { return true; }
  bool pending() noexcept override { return false; }
  void discard() noexcept override {}
  void recall() noexcept override { ++recalls_; }
  void expect(const wire::Header&, std::byte*, std::size_t) noexcept override { ++expected_; }
  bool pulls() const noexcept override { return pulls_; }
  bool awaited(const wire::Header&, std::uint64_t) noexcept override { return true; }
  bool sleeping(bool) noexcept override { return true; }
  int fd() const noexcept override { return -1; }
  std::size_t eager_bytes() const noexcept override { return 64; }
  std::size_t frame_bytes() const noexcept override { return 4096; }
  Status status() const override { return {}; }
  std::string describe() const override { return "noting"; }

 private:
  int& recalls_;
  int& expected_;
  const bool pulls_;
};

TEST(SealedLink, RecallsWhatTheRealLinkStillReads) {
  int recalls = 0, expected = 0;
  const auto link = sealed(std::make_unique<Noting>(recalls, expected), Seal::Frames);
  const std::byte payload[1000] = {};
  Outgoing frame;
  frame.header.type = wire::Type::Data;
  frame.header.length = sizeof payload;
  frame.payload = payload;
  ASSERT_EQ(link->send(frame), Progress::Again);

  link->recall();

  EXPECT_EQ(recalls, 1);
}

// What a card, or with Seal::Everything the peer, would write in its place would come without a
// seal.
TEST(SealedLink, LetsNothingPassTheSealByButCopiesWhereTheyMay) {
  std::byte place[1000] = {};
  wire::Header which;
  which.type = wire::Type::Data;
  for (const bool pulls : {false, true}) {
    for (const Seal seal : {Seal::Frames, Seal::Everything}) {
      int recalls = 0, expected = 0;
      const auto link = sealed(std::make_unique<Noting>(recalls, expected, pulls), seal);

      link->expect(which, place, sizeof place);

      const bool may = pulls && seal == Seal::Frames;
      EXPECT_EQ(expected, may ? 1 : 0);
      EXPECT_EQ(link->pulls(), may);
      EXPECT_EQ(link->awaited(which, sizeof place), may);
    }
  }
}

}  // namespace
}  // namespace hccomm::transport
