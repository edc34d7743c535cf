// SPDX-License-Identifier: Apache-2.0
//
// Layout, little-endian: "hc", kind, 1, u16 major, u16 minor, u32 size; then the record's fields in
// the order in which they are declared. Text is a u32 length and its bytes; a list is a u32 count;
// a card is a text that holds its fields, so that later ones can be skipped.
#include "rendezvous/records.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace hccomm::rendezvous {
namespace {

constexpr std::uint8_t kFormat = 1;
constexpr std::size_t kMaxText = 4096;  // bytes of a failure's text

class Writer {
 public:
  template <typename T>
  void number(T value) {
    static_assert(std::is_integral_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void bytes(std::string_view value) {
    number(static_cast<std::uint32_t>(value.size()));
    out_.append(value);
  }
  void head(Kind kind, const Head& head) {
    out_.append("hc");
    number(static_cast<std::uint8_t>(kind));
    number(kFormat);
    number(head.major);
    number(head.minor);
    number(head.size);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads past the end give zeros and bad().
class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}
  template <typename T>
  T number() {
    T value{};
    if (in_.size() < sizeof value) {
      bad_ = true;
      return value;
    }
    std::memcpy(&value, in_.data(), sizeof value);
    in_.remove_prefix(sizeof value);
    return value;
  }
  std::string_view bytes() {
    const auto size = number<std::uint32_t>();
    if (bad_ || size > in_.size()) {
      bad_ = true;
      return {};
    }
    const std::string_view value = in_.substr(0, size);
    in_.remove_prefix(size);
    return value;
  }
  // A count of items of at least `item_bytes` each, which must still be there.
  std::uint32_t count(std::size_t item_bytes) {
    const auto count = number<std::uint32_t>();
    if (bad_ || count > in_.size() / item_bytes) bad_ = true;
    return bad_ ? 0 : count;
  }
  bool bad() const { return bad_; }

 private:
  std::string_view in_;
  bool bad_ = false;
};

Status damaged(const char* what) {
  return {Code::Integrity, text("rendezvous: a damaged ", what,
                                " in the store; give this job a store "
                                "or a name that nothing else writes to")};
}

std::string encode_fields(const transport::Card& card) {
  Writer out;
  out.bytes(card.uuid);
  out.bytes(card.host);
  out.bytes(card.machine);
  out.number(card.pid);
  out.number(card.cores);
  out.number(card.choices);
  out.number(static_cast<std::uint32_t>(card.addresses.size()));
  for (const auto& [transport, address] : card.addresses) {
    out.bytes(transport);
    out.bytes(address);
  }
  return out.take();
}

bool decode_fields(std::string_view bytes, transport::Card& card) {
  Reader in(bytes);
  card.uuid = in.bytes();
  card.host = in.bytes();
  card.machine = in.bytes();
  card.pid = in.number<std::int64_t>();
  card.cores = in.number<std::uint32_t>();
  card.choices = in.number<std::uint64_t>();
  const std::uint32_t addresses = in.count(8);
  card.addresses.reserve(addresses);
  for (std::uint32_t each = 0; each < addresses; ++each) {
    const std::string_view transport = in.bytes();
    card.addresses.emplace_back(transport, in.bytes());
  }
  return !in.bad() && card.uuid.size() == kIdBytes;
}

// The bytes behind the head of a record of this build's major version.
Result<Reader> open(std::string_view bytes, Kind kind, Head& head) {
  Result<Head> found = decode_head(bytes, kind);
  if (!found) return found.status();
  head = found.value();
  if (head.major != wire::kVersionMajor) {
    return Status(Code::Mismatch,
                  text("rendezvous: a record of wire version ", head.major, ".", head.minor,
                       ", this build speaks ", wire::kVersionMajor, ".", wire::kVersionMinor,
                       "; use builds of hccomm with equal major wire versions"));
  }
  return Reader(bytes.substr(12));
}

}  // namespace

std::string encode(const Greeting& greeting) {
  Writer out;
  out.head(Kind::Greeting, greeting.head);
  out.bytes(greeting.job);
  out.bytes(greeting.host);
  out.number(greeting.pid);
  return out.take();
}

std::string encode(const CardRecord& record) {
  Writer out;
  out.head(Kind::Card, record.head);
  out.number(record.token);
  out.bytes(encode_fields(record.card));
  return out.take();
}

std::string encode(const BookRecord& record) {
  Writer out;
  out.head(Kind::Book, record.head);
  out.number(static_cast<std::int32_t>(record.failure.code()));
  out.number(static_cast<std::int32_t>(record.failure.rank()));
  out.bytes(record.failure.text().substr(0, kMaxText));
  out.bytes(record.job);
  out.number(static_cast<std::uint32_t>(record.cards.size()));
  for (std::size_t rank = 0; rank < record.cards.size(); ++rank) {
    out.number(record.tokens.at(rank));
    out.bytes(encode_fields(record.cards[rank]));
  }
  return out.take();
}

Result<Head> decode_head(std::string_view bytes, Kind kind) {
  const char magic[] = {'h', 'c', static_cast<char>(kind)};
  if (bytes.size() < 12 || std::memcmp(bytes.data(), magic, sizeof magic) != 0) {
    return damaged("record");
  }
  Reader in(bytes.substr(4));
  Head head;
  head.major = in.number<std::uint16_t>();
  head.minor = in.number<std::uint16_t>();
  head.size = in.number<std::uint32_t>();
  if (head.major == wire::kVersionMajor && bytes[3] != kFormat) return damaged("record");
  return head;
}

Result<Greeting> decode_greeting(std::string_view bytes) {
  Greeting greeting;
  Result<Reader> in = open(bytes, Kind::Greeting, greeting.head);
  if (!in) return in.status();
  greeting.job = in.value().bytes();
  greeting.host = in.value().bytes();
  greeting.pid = in.value().number<std::int64_t>();
  const bool good = greeting.job.empty() || greeting.job.size() == kIdBytes;
  if (in.value().bad() || !good) return damaged("greeting");
  return greeting;
}

Result<CardRecord> decode_card(std::string_view bytes) {
  CardRecord record;
  Result<Reader> in = open(bytes, Kind::Card, record.head);
  if (!in) return in.status();
  record.token = in.value().number<std::uint64_t>();
  if (!decode_fields(in.value().bytes(), record.card)) return damaged("card");
  return record;
}

Result<BookRecord> decode_book(std::string_view bytes) {
  BookRecord record;
  Result<Reader> opened = open(bytes, Kind::Book, record.head);
  if (!opened) return opened.status();
  Reader& in = opened.value();
  const auto code = in.number<std::int32_t>();
  const auto blamed = in.number<std::int32_t>();
  const std::string why = printable(in.bytes(), kMaxText);
  record.job = in.bytes();
  const std::uint32_t cards = in.count(12);
  if (code < 0 || code > static_cast<std::int32_t>(Code::Internal) || in.bad())
    return damaged("book");
  if (code != 0) {
    record.failure = Status(static_cast<Code>(code), why, blamed);
    return record;
  }
  for (std::uint32_t rank = 0; rank < cards; ++rank) {
    record.tokens.push_back(in.number<std::uint64_t>());
    if (!decode_fields(in.bytes(), record.cards.emplace_back())) return damaged("book");
  }
  if (in.bad() || record.job.size() != kIdBytes || cards != record.head.size)
    return damaged("book");
  return record;
}

std::string printable(std::string_view bytes, std::size_t most) {
  std::string out(bytes.substr(0, most));
  std::replace_if(
      out.begin(), out.end(), [](unsigned char each) { return each < 0x20 || each == 0x7f; }, '.');
  return out;
}

}  // namespace hccomm::rendezvous
