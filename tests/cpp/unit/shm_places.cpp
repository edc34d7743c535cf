// SPDX-License-Identifier: Apache-2.0
//
// The table of expected messages (transport/shm/places): who may copy which piece of what, and what
// a receiver that gives up may rely on.
#include "transport/shm/places.hpp"

#include <gtest/gtest.h>

#include <atomic>
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
  EXPECT_EQ(table.receiver.take(message(1), {0, 1}, false).bytes, 0u);
}

TEST(ShmPlaces, APatientReceiverLetsTheSenderBeginAndFinish) {
  Table table;
  table.receiver.publish(message(1), somewhere(), 512 << 10);  // four pieces

  const Piece early = table.receiver.take(message(1), {0, 1}, true);
  EXPECT_EQ(early.offset + early.bytes, 0u);
  table.sender.written(table.sender.take(message(1), 512 << 10));
  EXPECT_EQ(table.receiver.take(message(1), {0, 1}, true).offset, 128u << 10);
  EXPECT_EQ(table.receiver.take(message(1), {0, 1}, true).offset, 256u << 10);
  EXPECT_EQ(table.receiver.take(message(1), {0, 1}, true).bytes, 0u) << "the last is the sender's";
  EXPECT_EQ(table.sender.take(message(1), 512 << 10).piece.offset, 384u << 10);
}

TEST(ShmPlaces, WithoutAPlaceTheReceiverPullsAll) {
  Table table;
  const Piece rest = table.receiver.take(message(1), {100, 200}, true);
  EXPECT_EQ(rest.offset, 100u);
  EXPECT_EQ(rest.bytes, 200u);
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

// Both take pieces of message after message, and some messages are given up in the middle: every
// piece of a whole message is copied once, and none of a closed one is begun.
TEST(ShmPlaces, InAThousandMessagesNoPieceIsCopiedTwiceOrForAnotherMessage) {
  constexpr std::uint64_t kMessages = 1000, kBytes = 2 << 20;
  const std::uint64_t pieces = kBytes / piece_bytes(kBytes);
  Table table;
  std::vector<std::atomic<int>> copied(kMessages * pieces);
  std::atomic<std::uint64_t> current{0}, closed{0};
  std::atomic<int> late{0};
  std::thread sender([&] {
    for (std::uint64_t at = 0; (at = current) < kMessages;) {
      const Granted::Task task = table.sender.take(message(at), kBytes);
      if (task.piece.bytes == 0) {
        std::this_thread::yield();
        continue;
      }
      if (closed > at) ++late;  // taken, then closed: the receiver still waits for written()
      ++copied[at * pieces + task.piece.offset / piece_bytes(kBytes)];
      table.sender.written(task);
    }
  });
  for (std::uint64_t at = 0; at < kMessages; ++at) {
    table.receiver.publish(message(at), somewhere(), kBytes);
    current = at;
    const bool gives_up = at % 3 == 0;
    for (std::uint64_t mine = 0; !gives_up || mine < 3; ++mine) {
      const Piece piece = table.receiver.take(message(at), {}, false);
      if (piece.bytes == 0) break;
      ++copied[at * pieces + piece.offset / piece_bytes(kBytes)];
    }
    const Header all = message(at);
    const auto whole = [&] {
      for (std::uint64_t k = 0; k < pieces; ++k) {
        if (copied[at * pieces + k] == 0) return false;
      }
      return true;
    };
    while (!gives_up && !whole()) std::this_thread::yield();
    while (!table.receiver.close(&all)) std::this_thread::yield();
    closed = at + 1;
  }
  current = kMessages;
  sender.join();

  EXPECT_EQ(late, 0);
  for (const auto& count : copied) EXPECT_LE(count, 1);
}

}  // namespace
}  // namespace hccomm::transport::shm
