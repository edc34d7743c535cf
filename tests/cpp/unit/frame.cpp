// SPDX-License-Identifier: Apache-2.0
#include "wire/frame.hpp"

#include <gtest/gtest.h>

namespace hccomm::wire {
namespace {

const std::byte* bytes(const std::string& text) {
  return reinterpret_cast<const std::byte*>(text.data());
}

TEST(Frame, EveryTypeHasANameAndPassesTheCheck) {
  for (int type = 1; type <= static_cast<int>(Type::Absent); ++type) {
    Header header;
    header.type = static_cast<Type>(type);
    header.length = kMaxControl;
    EXPECT_EQ(check(header), Status());
    EXPECT_STRNE(name(header.type), "?");
  }
}

TEST(Frame, UnknownTypesAreRefused) {
  for (const int type : {0, static_cast<int>(Type::Devices) + 1, 255}) {
    Header header;
    header.type = static_cast<Type>(type);
    EXPECT_EQ(check(header).code(), Code::Integrity) << type;
  }
}

TEST(Frame, ReservedFieldsMustBeZero) {
  Header header;
  header.source = 1;
  EXPECT_EQ(check(header).code(), Code::Integrity);
}

TEST(Frame, LengthsAreBoundByTypeAndLink) {
  Header header;
  header.type = Type::Data;
  header.length = 4096;
  EXPECT_EQ(check(header, 4096), Status());
  EXPECT_EQ(check(header, 4095).code(), Code::Integrity);
  header.length = ~std::uint32_t{0};
  EXPECT_EQ(check(header).code(), Code::Integrity);
  header.type = Type::Status;
  header.length = kMaxControl + 1;
  EXPECT_EQ(check(header).code(), Code::Integrity);
}

TEST(StatusPayload, ReturnsAsItWas) {
  const Status status(Code::PeerLost, "rank 3 left", 3);
  const std::string encoded = encode_status(status);

  EXPECT_EQ(decode_status(bytes(encoded), encoded.size()), status);
}

TEST(StatusPayload, LongTextsAreCut) {
  const std::string encoded = encode_status(Status(Code::System, std::string(5000, 'x')));

  const Status status = decode_status(bytes(encoded), encoded.size());

  EXPECT_EQ(status.code(), Code::System);
  EXPECT_EQ(status.text().size(), 1024u);
}

TEST(StatusPayload, DamagedBytesGiveIntegrity) {
  const std::string good = encode_status(Status(Code::Timeout, "text", 1));
  for (std::size_t keep = 0; keep < good.size(); ++keep) {
    EXPECT_EQ(decode_status(bytes(good), keep).code(), Code::Integrity) << keep;
  }
  for (const int code : {0, 10, 127}) {
    std::string bad = good;
    bad[0] = static_cast<char>(code);
    EXPECT_EQ(decode_status(bytes(bad), bad.size()).code(), Code::Integrity) << code;
  }
  std::string bad = good;
  bad[11] = '\x7f';  // a text of 2 GiB
  EXPECT_EQ(decode_status(bytes(bad), bad.size()).code(), Code::Integrity);
}

TEST(StatusPayload, ControlCharactersDoNotReachTheLog) {
  const std::string encoded = encode_status(Status(Code::System, "a\x1b[2J\nb"));

  EXPECT_EQ(decode_status(bytes(encoded), encoded.size()).text(), "a [2J b");
}

TEST(Seal, ComesBackAndHoldsForItsNumberOnly) {
  Header header;
  header.type = Type::Data;
  header.length = 100;

  seal(header, 0x1234abcd, 7);

  EXPECT_EQ(check(header), Status());
  EXPECT_EQ(expected_crc(header, 7), 0x1234abcdu);
  EXPECT_NE(expected_crc(header, 8), 0x1234abcdu);
}

TEST(Seal, NoticesEveryFlippedBitOfTheHeader) {
  Header header;
  header.type = Type::Tagged;
  header.flags = 14;
  header.index = 3;
  header.context = 0x0123456789abcdef;
  header.length = 4096;
  seal(header, 0xfeedbeef, 12);

  for (std::size_t bit = 0; bit < 8 * sizeof header; ++bit) {
    Header bad = header;
    reinterpret_cast<unsigned char*>(&bad)[bit / 8] ^= static_cast<unsigned char>(1 << bit % 8);
    EXPECT_FALSE(seal_holds(bad)) << "bit " << bit;
  }
}

}  // namespace
}  // namespace hccomm::wire
