// SPDX-License-Identifier: Apache-2.0
//
// What ranks write into a store when they meet, as bytes. Every record opens with the same Head, in
// every version of hccomm; what follows it is read by builds of the same major wire version, which
// skip what a newer minor version has added. Values come from a store that anybody may write to:
// decoding accepts any bytes and allocates nothing that they do not pay for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "transport/transport.hpp"
#include "wire/frame.hpp"

namespace hccomm::rendezvous {

inline constexpr std::size_t kIdBytes = 16;  // of a job and of a process

enum class Kind : std::uint8_t { Greeting = 'G', Card = 'C', Book = 'B' };

// Who wrote a record: its wire version, and how many ranks it was told there are.
struct Head {
  std::uint16_t major = wire::kVersionMajor;
  std::uint16_t minor = wire::kVersionMinor;
  std::uint32_t size = 0;

  friend bool operator==(const Head&, const Head&) = default;
};

// A process that has arrived; rank 0's carries the job.
struct Greeting {
  Head head;
  std::string job;  // kIdBytes, or empty
  std::string host;
  std::int64_t pid = 0;
};

struct CardRecord {
  Head head;
  std::uint64_t token = 0;  // random: tells two processes that claim one rank apart
  transport::Card card;
};

// What rank 0 found: all cards by rank, or why there are none. A rank that cannot join leaves one
// with its failure in place of its card, rank 0 in place of the job's greeting.
struct BookRecord {
  Head head;
  Status failure;
  std::string job;
  std::vector<std::uint64_t> tokens;
  std::vector<transport::Card> cards;
};

std::string encode(const Greeting& greeting);
std::string encode(const CardRecord& record);
std::string encode(const BookRecord& record);

// Of a record of any version. Code::Integrity for what is no record of that kind.
Result<Head> decode_head(std::string_view bytes, Kind kind);
// Code::Integrity for damaged bytes, Mismatch for another major version.
Result<Greeting> decode_greeting(std::string_view bytes);
Result<CardRecord> decode_card(std::string_view bytes);
Result<BookRecord> decode_book(std::string_view bytes);

// For texts to people: no control characters, at most `most` bytes.
std::string printable(std::string_view bytes, std::size_t most);

}  // namespace hccomm::rendezvous
