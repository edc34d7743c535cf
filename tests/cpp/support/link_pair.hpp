// SPDX-License-Identifier: Apache-2.0
//
// What every test of a Link needs: an inbox that keeps what arrives and can place payloads each of
// the ways the seam allows, frames whose bytes are known, and loops that end.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "transport/transport.hpp"

namespace hccomm::test {

inline constexpr Seconds kPatience{30};  // no test needs it; every loop has it

// Byte `at` of message `seed`: differs between neighbours and between messages.
inline std::byte pattern(std::uint64_t seed, std::uint64_t at) {
  return static_cast<std::byte>((at * 131 + (at >> 8) * 17 + seed * 29) & 0xff);
}

inline std::vector<std::byte> payload_of(std::uint64_t seed, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = pattern(seed, i);
  return out;
}

inline bool matches(const std::vector<std::byte>& payload, std::uint64_t seed) {
  for (std::size_t i = 0; i < payload.size(); ++i) {
    if (payload[i] != pattern(seed, i)) return false;
  }
  return true;
}

inline wire::Header header_of(std::uint32_t index, std::size_t bytes) {
  wire::Header header;
  header.type = wire::Type::Data;
  header.index = index;
  header.length = bytes;
  return header;
}

struct Message {
  wire::Header header;
  std::vector<std::byte> payload;
};

// Keeps every frame; checks the promises of Inbox as they come.
class Collector final : public transport::Inbox {
 public:
  enum class Way { Direct, Pieces };
  explicit Collector(Way way = Way::Direct) : way_(way) {}

  std::vector<Message> messages;
  std::size_t parted = 0;          // frames that came by begin()
  std::function<void()> on_begin;  // after the placement is known
  std::function<void()> on_piece;
  std::byte* place = nullptr;  // where the parts of one message go, by their address
  std::size_t placed = 0;

  void deliver(const wire::Header& header, const std::byte* payload) override {
    EXPECT_FALSE(open_) << "deliver() between begin() and end()";
    if (place != nullptr) {
      std::memcpy(place + header.address, payload, header.length);
      placed += header.length;
      return;
    }
    messages.push_back({header, {payload, payload + header.length}});
  }
  transport::Placement begin(const wire::Header& header) override {
    EXPECT_FALSE(open_);
    open_ = true;
    ++parted;
    if (place != nullptr) {
      coming_ = header.length;
      return {place + header.address};
    }
    messages.push_back({header, std::vector<std::byte>(header.length)});
    filled_ = 0;
    last_ = false;
    if (on_begin) on_begin();
    return {way_ == Way::Direct ? messages.back().payload.data() : nullptr};
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    Message& message = messages.back();
    EXPECT_TRUE(open_);
    EXPECT_EQ(way_, Way::Pieces);
    EXPECT_FALSE(last_) << "only the last piece may be odd";
    ASSERT_LE(filled_ + bytes, message.payload.size());
    std::memcpy(message.payload.data() + filled_, piece, bytes);
    filled_ += bytes;
    last_ = bytes % 16 != 0;
    if (on_piece) on_piece();
  }
  void end() override {
    EXPECT_TRUE(open_);
    open_ = false;
    placed += std::exchange(coming_, 0);
    if (way_ == Way::Pieces && complete) {
      EXPECT_EQ(filled_, messages.back().payload.size());
    }
  }

  bool complete = true;  // false: discarded frames are expected
  bool open() const { return open_; }

 private:
  const Way way_;
  bool open_ = false;
  bool last_ = false;
  std::size_t filled_ = 0, coming_ = 0;
};

// Polls as the engine does until `enough`, or the link broke, or patience is over.
inline bool poll_until(transport::Link& link, transport::Inbox& inbox,
                       const std::function<bool()>& enough) {
  const Deadline deadline = Deadline::after(kPatience);
  while (!enough()) {
    if (link.pending()) {
      if (!link.poll(inbox, 1 << 20)) return enough();
    } else if (deadline.passed()) {
      return false;
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

// Offers the frame until it is taken, polling `link` for what comes meanwhile.
inline bool send_all(transport::Link& link, transport::Inbox& inbox, const wire::Header& header,
                     const std::byte* payload) {
  const Deadline deadline = Deadline::after(kPatience);
  transport::Outgoing frame{header, payload};
  while (!deadline.passed()) {
    const auto progress = link.send(frame);
    if (progress == transport::Progress::Broken) return false;
    if (progress == transport::Progress::Done) {
      link.flush();
      return true;
    }
    link.flush();
    if (link.pending() && !link.poll(inbox, 1 << 20)) return false;
    std::this_thread::yield();
  }
  return false;
}

}  // namespace hccomm::test
