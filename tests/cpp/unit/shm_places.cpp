// SPDX-License-Identifier: Apache-2.0
//
// The table of expected messages (transport/shm/places): who may copy which piece of what, and what
// a receiver that gives up may rely on.
#include "transport/shm/places.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

namespace hccomm::transport::shm {
namespace {

using wire::Header;
using wire::Type;

constexpr std::uint64_t kMessage = 4 << 20;

Header message(std::uint64_t sequence, std::uint32_t index = 0) {
  Header header;
  header.type = Type::Data;
  header.context = 7;
  header.sequence = sequence;
  header.index = index;
  header.fingerprint = 99;
  return header;
}

struct Table {
  alignas(64) std::byte memory[kPlacesBytes] = {};
  Expected receiver{memory};
  Granted sender{memory};
};

std::byte* somewhere() {
  static std::vector<std::byte> bytes(64);
  return bytes.data();
}

// What the receiver may pull next of a message: its offset, or nothing.
std::optional<std::uint64_t> pulled(Table& table, const Header& which, bool patient = false) {
  Piece piece;
  if (table.receiver.claim(which, piece, patient) != Turn::Copy) return {};
  return piece.offset;
}

TEST(ShmPlaces, TheSenderFindsItsMessageAndNoOther) {
  Table table;
  table.receiver.publish(message(1), somewhere(), kMessage);
  Header other_call = message(1);
  other_call.fingerprint = 98;

  EXPECT_TRUE(table.sender.waits(message(1), kMessage));
  EXPECT_FALSE(table.sender.waits(message(2), kMessage));
  EXPECT_FALSE(table.sender.waits(message(1, 1), kMessage));
  EXPECT_FALSE(table.sender.waits(message(1), kMessage - 4));
  EXPECT_FALSE(table.sender.waits(other_call, kMessage));
}

TEST(ShmPlaces, AloneTheSenderTakesAllPiecesInOrder) {
  Table table;
  table.receiver.publish(message(1), somewhere(), kMessage + 5);
  std::uint64_t offset = 0;
  while (offset < kMessage + 5) {
    const Granted::Task task = table.sender.take(message(1), kMessage + 5);
    ASSERT_NE(task.piece.bytes, 0u);
    EXPECT_EQ(task.piece.offset, offset);
    EXPECT_EQ(task.address, reinterpret_cast<std::uintptr_t>(somewhere()) + offset);
    table.sender.written(task);
    offset += task.piece.bytes;
    EXPECT_EQ(task.last, offset == kMessage + 5);
  }
  Piece piece;
  EXPECT_EQ(table.receiver.claim(message(1), piece, false), Turn::Over);
}

TEST(ShmPlaces, APatientReceiverLetsTheSenderBeginAndFinish) {
  Table table;
  table.receiver.publish(message(1), somewhere(), 512 << 10);  // four pieces

  Piece piece;
  EXPECT_EQ(table.receiver.claim(message(1), piece, true), Turn::Wait);
  table.sender.written(table.sender.take(message(1), 512 << 10));
  EXPECT_EQ(pulled(table, message(1), true), 128u << 10);
  EXPECT_EQ(pulled(table, message(1), true), 256u << 10);
  EXPECT_EQ(table.receiver.claim(message(1), piece, true), Turn::Over)
      << "the last is the sender's";
  EXPECT_EQ(table.sender.take(message(1), 512 << 10).piece.offset, 384u << 10);
}

TEST(ShmPlaces, WithoutAPlaceTheReceiverPullsAll) {
  Table table;
  Piece rest = {100, 200};
  EXPECT_EQ(table.receiver.claim(message(1), rest, true), Turn::Copy);
  EXPECT_EQ(rest.offset, 100u);
  EXPECT_EQ(rest.bytes, 200u);
}

TEST(ShmPlaces, WhatThePeerScribblesMovesNoPullBeyondTheMessage) {
  Table table;
  table.receiver.publish(message(1), somewhere(), 512 << 10);  // four pieces
  auto* const places = reinterpret_cast<Place*>(table.memory);
  for (std::size_t line = 0; line < kPlaces; ++line) {
    places[line].word += 7;  // more pieces than there are have been taken
    places[line].bytes = std::uint64_t{1} << 40;
    places[line].context = 1234;
  }
  Piece piece;
  EXPECT_EQ(table.receiver.claim(message(1), piece, false), Turn::Over);
  for (std::size_t line = 0; line < kPlaces; ++line) places[line].word -= 7;
  for (const std::uint64_t at : {0, 1, 2, 3}) EXPECT_EQ(pulled(table, message(1)), at << 17);

  const Header all = message(1);
  EXPECT_TRUE(table.receiver.close(&all)) << "found by what we know of it";
  EXPECT_EQ(table.sender.take(message(1), 512 << 10).place, nullptr);
}

TEST(ShmPlaces, ASettledPlaceIsClosedUntilItIsGivenAgain) {
  Table table;
  table.receiver.publish(message(1), somewhere(), 512 << 10);
  while (pulled(table, message(1))) {
  }
  table.receiver.settle(message(1));

  EXPECT_EQ(table.sender.take(message(1), 512 << 10).place, nullptr);
}

TEST(ShmPlaces, ClosingWaitsForThePieceThatIsBeingWritten) {
  Table table;
  table.receiver.publish(message(1, 0), somewhere(), kMessage);
  table.receiver.publish(message(1, 1), somewhere(), kMessage);
  table.receiver.publish(message(2), somewhere(), kMessage);
  const Granted::Task task = table.sender.take(message(1, 1), kMessage);
  const Header all_of_it = message(1);

  EXPECT_FALSE(table.receiver.close(&all_of_it));
  EXPECT_EQ(table.sender.take(message(1, 0), kMessage).place, nullptr);
  EXPECT_EQ(table.sender.take(message(1, 1), kMessage).place, nullptr);
  EXPECT_NE(table.sender.take(message(2), kMessage).place, nullptr) << "another operation's";

  table.sender.written(task);
  EXPECT_TRUE(table.receiver.close(&all_of_it));
}

TEST(ShmPlaces, APointToPointMessageIsClosedAlone) {
  Table table;
  Header one = message(5, 0), two = message(5, 1);  // the same tag
  one.type = two.type = Type::TaggedData;
  table.receiver.publish(one, somewhere(), kMessage);
  table.receiver.publish(two, somewhere(), kMessage);

  EXPECT_TRUE(table.receiver.close(&one));
  EXPECT_FALSE(table.sender.waits(one, kMessage));
  EXPECT_TRUE(table.sender.waits(two, kMessage));
}

TEST(ShmPlaces, AFullTableMeansOneMessageLessAndIsUsedAgain) {
  Table table;
  std::size_t found = 0;
  for (std::uint32_t index = 0; index < 3 * kPlaces; ++index) {
    table.receiver.publish(message(1, index), somewhere(), kMessage);
    found += table.sender.waits(message(1, index), kMessage) ? 1 : 0;
  }
  EXPECT_GE(found, kPlaces / 2);
  EXPECT_LE(found, kPlaces);

  for (std::uint32_t index = 0; index < 3 * kPlaces; ++index) {
    table.receiver.settle(message(1, index));
  }
  table.receiver.publish(message(2), somewhere(), kMessage);
  EXPECT_TRUE(table.sender.waits(message(2), kMessage));
}

// Both take pieces of message after message, large and small ones in turn at one line of the table,
// and some messages are given up in the middle: every piece of a whole message is copied once, and
// none of a closed one is begun.
TEST(ShmPlaces, InAThousandMessagesNoPieceIsCopiedTwiceOrForAnotherMessage) {
  constexpr std::uint64_t kMessages = 1000, kMost = 8;
  static std::byte places[kMessages];  // where each message goes; pieces are told, not copied
  const auto bytes_of = [](std::uint64_t at) {
    return std::uint64_t{at % 2 == 0 ? 64u << 10 : 1u << 20};
  };
  const auto pieces_of = [&](std::uint64_t at) { return at % 2 == 0 ? 1u : kMost; };
  Table table;
  std::vector<std::atomic<int>> copied(kMessages * kMost);
  std::atomic<std::uint64_t> current{0}, closed{0};
  std::atomic<int> late{0}, astray{0};
  std::thread sender([&] {
    for (std::uint64_t at = 0; (at = current) < kMessages;) {
      const Granted::Task task = table.sender.take(message(at), bytes_of(at));
      if (task.piece.bytes == 0) {
        std::this_thread::yield();
        continue;
      }
      if (closed > at) ++late;  // taken, then closed: the receiver still waits for written()
      const auto place = reinterpret_cast<std::uintptr_t>(&places[at]);
      if (task.address != place + task.piece.offset) ++astray;
      ++copied[at * kMost + task.piece.offset / piece_bytes(bytes_of(at))];
      table.sender.written(task);
    }
  });
  for (std::uint64_t at = 0; at < kMessages; ++at) {
    current = at;  // the sender looks for it before it is there
    table.receiver.publish(message(at), &places[at], bytes_of(at));
    const bool gives_up = at % 3 == 0;
    for (std::uint64_t mine = 0; !gives_up || mine < 3; ++mine) {
      const auto offset = pulled(table, message(at));
      if (!offset) break;
      ++copied[at * kMost + *offset / piece_bytes(bytes_of(at))];
    }
    const Header all = message(at);
    const auto whole = [&] {
      for (std::uint64_t k = 0; k < pieces_of(at); ++k) {
        if (copied[at * kMost + k] == 0) return false;
      }
      return true;
    };
    while (!gives_up && !whole()) std::this_thread::yield();
    if (gives_up) {
      while (!table.receiver.close(&all)) std::this_thread::yield();
    } else {
      table.receiver.settle(all);
    }
    closed = at + 1;
  }
  current = kMessages;
  sender.join();

  EXPECT_EQ(late, 0);
  EXPECT_EQ(astray, 0);
  for (const auto& count : copied) EXPECT_LE(count, 1);
}

}  // namespace
}  // namespace hccomm::transport::shm
