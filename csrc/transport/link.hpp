// SPDX-License-Identifier: Apache-2.0
//
// One connection between two processes, as the engine sees it: what a transport makes. engine/
// decides what is sent and where it lands; a Link only moves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/error.hpp"
#include "wire/frame.hpp"

namespace hccomm::transport {

// A frame on its way out. The engine owns it; the link advances `sent` until the frame is complete.
struct Outgoing {
  wire::Header header;
  const std::byte* payload = nullptr;
  std::size_t sent = 0;  // bytes of header + payload taken so far
  // Not 0: the same payload goes to several peers, under the same number within the operation; and
  // it does not change until the last of them has it, or the operation has failed.
  std::uint32_t fan = 0;
  // The payload lies on a device, where only the cards read it (Link::reaches_devices).
  bool on_device = false;
};

enum class Progress : std::uint8_t { Done, Again, Broken };

// What a receiver does next about a message that both ends may copy: pull a piece, wait for the
// sender to begin (for as long as it is patient), or nothing more, as no piece is left for it.
enum class Turn : std::uint8_t { Copy, Wait, Over };

// A part of a large message.
struct Piece {
  std::uint64_t offset = 0, bytes = 0;
};

// Where the payload of a frame that arrives in parts shall go.
struct Placement {
  std::byte* direct = nullptr;  // store it here as it comes; nullptr: hand the pieces to consume()
};

// Memory that the peer shares (Transport::share), mapped into this process: it stays so for as long
// as somebody holds it, whatever the peer does. The peer writes there when it likes.
struct View {
  std::byte* data = nullptr;             // here
  std::uint64_t address = 0, bytes = 0;  // in the peer

  virtual ~View() = default;
  std::byte* at(std::uint64_t theirs) const noexcept { return data + (theirs - address); }
};
using ViewPtr = std::shared_ptr<const View>;

// What the engine is to a link. All calls come from inside Link::poll().
class Inbox {
 public:
  // A frame whose whole payload lies at `payload` (in the link's memory, valid during the call).
  virtual void deliver(const wire::Header& header, const std::byte* payload) = 0;
  // A frame whose payload comes in parts: begin, then consume for each piece in order (only where
  // the placement is not direct; all but the last are multiples of 16 bytes), then end.
  virtual Placement begin(const wire::Header& header) = 0;
  virtual void consume(const std::byte* piece, std::size_t bytes) = 0;
  virtual void end() = 0;
  // A part of a message has come to where expect_on_device() wanted it, and the device sees it.
  virtual void landed(const wire::Header& /*header*/) {}

 protected:
  ~Inbox() = default;
};

// One connection between this process and one other, for all groups they share.
//
// Owns:   its descriptors and memory.
// Thread: one at a time, under the engine's lock.
// Fails:  send gives Broken and poll gives false once the connection is gone; status() says why.
class Link {
 public:
  virtual ~Link() = default;

  // Takes as much of the frame as fits now; never blocks. Frames leave in order: a frame begun
  // must be completed before the next one is offered.
  virtual Progress send(Outgoing& frame) noexcept = 0;
  // Hands over what has arrived, at most about `budget` bytes. False when the link is broken.
  virtual bool poll(Inbox& inbox, std::size_t budget) noexcept = 0;
  // True when poll() would find something: the cheap question of a spinning waiter.
  virtual bool pending() noexcept = 0;
  // The destination of the frame that is arriving in parts is gone: its rest shall go nowhere, and
  // neither consume() nor the placement is used for it again; end() still comes.
  virtual void discard() noexcept = 0;
  // The payload of the frame that send() has begun is about to go: whoever reads it where it lies
  // has done so when this returns. The rest will come from a copy.
  virtual void recall() noexcept {}

  // The payload of the message `which` (type, context, sequence, index, fingerprint) is going to be
  // placed at data[0..bytes): a link may have the peer write it there, before begin() asks where.
  // It does no more once all of it has come, or reclaim() has returned. Frames tell of it all the
  // same, unless it has been taken back.
  virtual void expect(const wire::Header& /*which*/, std::byte* /*data*/,
                      std::size_t /*bytes*/) noexcept {}
  // Whether cards read and write the memory of devices that Transport::enroll() has told of. Such a
  // message is sent (Outgoing::on_device) only while it is awaited(), and what the receiver takes
  // back then is left out. expect_on_device(): as expect(), and landed() tells what has come so;
  // other parts come as they would without it.
  virtual bool reaches_devices() const noexcept { return false; }
  virtual void expect_on_device(const wire::Header& /*which*/, std::byte* /*data*/,
                                std::size_t /*bytes*/) noexcept {}
  // Takes back what was expected: of the message, or for Data of all messages of the operation.
  // release() asks the peer to stop, so that several can be asked at once; reclaim() asks where
  // that has not been done, and waits until it has.
  virtual void release(const wire::Header& /*of*/) noexcept {}
  virtual void reclaim(const wire::Header& /*of*/) noexcept {}

  // Where both ends may copy what was expected (links that pull): each takes the next piece.
  // claim() takes one for the receiver to pull and stores it in `piece`, or leaves there all that
  // is missing, where the sender does not copy. settle(): the message is whole.
  virtual Turn claim(const wire::Header& /*which*/, Piece& /*piece*/, bool /*patient*/) noexcept {
    return Turn::Copy;
  }
  virtual void settle(const wire::Header& /*which*/) noexcept {}
  // awaited(): whether the receiver expects the message and nobody has begun to copy it. write()
  // takes a piece and writes it to its place, `wrote` bytes; Done when no piece is left, Again with
  // 0 bytes while the receiver has no place for it. Fails where the place cannot be written.
  virtual bool awaited(const wire::Header& /*which*/, std::uint64_t /*bytes*/) noexcept {
    return false;
  }
  virtual Result<Progress> write(const wire::Header& which, const std::byte* data,
                                 std::uint64_t bytes, std::uint64_t& wrote) noexcept;

  // Whether write() of that message goes to memory of the peer that is seen here, at the speed of a
  // plain copy.
  virtual bool maps(const wire::Header& /*which*/, std::uint64_t /*bytes*/) noexcept {
    return false;
  }
  // Whether the peer can map what lies there (Transport::share), to be told so with its address.
  virtual bool shows(const std::byte* /*data*/, std::uint64_t /*bytes*/) const noexcept {
    return false;
  }

  // Copies `bytes` from the peer's memory that was offered under `key`. Requires: pulls().
  virtual Status pull(std::uint64_t key, void* dst, std::uint64_t address,
                      std::size_t bytes) noexcept;
  virtual bool pulls() const noexcept { return false; }
  // Whether what is reduced as it comes is quicker in frames than by pull().
  virtual bool streams_sums() const noexcept { return false; }
  // The peer's shared memory that holds [address, address + bytes), for who may read what lies
  // there now; nullptr where it is not shared, or cannot be mapped.
  virtual ViewPtr view(std::uint64_t /*address*/, std::uint64_t /*bytes*/) noexcept {
    return nullptr;
  }
  // What the peer was offered under `key` may change from now on: it sees so at the end of a pull.
  virtual void withdraw(std::uint64_t) noexcept {}
  // Whether the peer has withdrawn `key`. What was pulled before the answer no was as offered.
  virtual bool withdrawn(std::uint64_t) const noexcept { return false; }

  // Called before this process sleeps (true) and after it woke (false): while asleep, the peer
  // must make fd() readable after it sent something. Returns false when something has already come.
  virtual bool sleeping(bool asleep) noexcept = 0;
  // Rings the peer's bell if it sleeps. Called once after a batch of sends.
  virtual void flush() noexcept {}
  // Readable when there is something to poll for or the peer is gone; -1 where there is none.
  virtual int fd() const noexcept = 0;
  // Whether fd() must also be watched for writability (a send answered Again).
  virtual bool wants_write() const noexcept { return false; }

  virtual std::size_t eager_bytes() const noexcept = 0;  // largest payload sent unasked
  virtual std::size_t frame_bytes() const noexcept = 0;  // largest payload of one frame worth using
  virtual Status status() const = 0;                     // why it is broken
  virtual std::string describe() const = 0;              // "shm (single copy)", for hccomm info
};

}  // namespace hccomm::transport
