// SPDX-License-Identifier: Apache-2.0
//
// Frames with a recognisable content, and an Inbox that keeps what a link hands over.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "transport/transport.hpp"

namespace hccomm::test {

struct Frame {
  std::uint64_t number = 0;  // travels in the header as `sequence`
  std::vector<std::byte> payload;

  // Requires: the frame outlives the result.
  transport::Outgoing outgoing() const {
    transport::Outgoing out;
    out.header.type = wire::Type::Data;
    out.header.sequence = number;
    out.header.length = payload.size();
    out.payload = payload.data();
    return out;
  }
  friend bool operator==(const Frame&, const Frame&) = default;
};

// The payload follows from size and number, so a receiver can make the frame that it expects.
inline Frame pattern(std::size_t bytes, std::uint64_t number) {
  Frame frame{number, std::vector<std::byte>(bytes)};
  for (std::size_t i = 0; i < bytes; ++i) {
    frame.payload[i] = static_cast<std::byte>((i * 31 + (i >> 8) * 7 + number * 13) & 0xff);
  }
  return frame;
}

class Recorder final : public transport::Inbox {
 public:
  explicit Recorder(bool direct) : direct_(direct) {}

  void deliver(const wire::Header& header, const std::byte* payload) override {
    frames.push_back({header.sequence, {payload, payload + header.length}});
  }
  transport::Placement begin(const wire::Header& header) override {
    // A length that a peer made up must not be believed here either.
    current_ = {header.sequence, std::vector<std::byte>(header.length < kMost ? header.length : 0)};
    filled_ = 0;
    return {direct_ ? current_.payload.data() : nullptr};
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    pieces.push_back(bytes);
    if (filled_ + bytes > current_.payload.size()) return;
    std::copy(piece, piece + bytes, current_.payload.data() + filled_);
    filled_ += bytes;
  }
  void end() override { frames.push_back(std::move(current_)); }

  std::vector<Frame> frames;
  std::vector<std::size_t> pieces;  // sizes handed to consume()

 private:
  static constexpr std::uint64_t kMost = std::uint64_t{1} << 30;
  bool direct_;
  Frame current_;
  std::size_t filled_ = 0;
};

}  // namespace hccomm::test
