// SPDX-License-Identifier: Apache-2.0
//
// The link between two processes of one machine: a ring each way, a bell for sleepers, and where
// the kernel allows it single copies of the peer's memory for large messages. exchange.cpp
// makes it once both sides have swapped their rings.
#pragma once

#include <memory>
#include <string>

#include "base/clock.hpp"
#include "transport/shm/bell.hpp"
#include "transport/shm/commons.hpp"
#include "transport/shm/ring.hpp"
#include "transport/shm/segment.hpp"
#include "transport/shm/sharing.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport::shm {

// What both processes have agreed on.
struct Parts {
  Segment mine;    // the ring that this process writes
  Segment theirs;  // the ring that it reads
  std::size_t my_area_bytes = 0;
  std::size_t their_area_bytes = 0;
  Bell bell;
  bool pulls = false;                        // single copy works in both directions
  std::uint64_t exports = 0;                 // where the peer's table of exports lies
  std::shared_ptr<Commons> my_commons = {};  // nullptr: the peer does not see them
  Segment their_commons = {};
};

// Owns:   the rings' mappings and the bell.
// Thread: one at a time (the engine's lock).
// Fails:  PeerLost once the peer has ended and the ring is read empty; Integrity when the ring
//         holds what no peer of ours writes.
class ShmLink final : public Link {
 public:
  explicit ShmLink(Parts parts);
  ~ShmLink() override;  // nobody writes to what was expected after it

  Progress send(Outgoing& frame) noexcept override;
  bool poll(Inbox& inbox, std::size_t budget) noexcept override;
  bool pending() noexcept override;
  void discard() noexcept override { reader_.discard(); }
  Status pull(std::uint64_t, void* dst, std::uint64_t address, std::size_t bytes) noexcept override;
  bool pulls() const noexcept override { return parts_.pulls; }
  bool streams_sums() const noexcept override;
  ViewPtr view(std::uint64_t address, std::uint64_t bytes) noexcept override {
    return parts_.pulls ? views_.find(address, bytes) : nullptr;
  }
  void withdraw(std::uint64_t key) noexcept override { writer_.withdraw(key); }
  bool withdrawn(std::uint64_t key) const noexcept override { return reader_.withdrawn(key); }
  void expect(const wire::Header& which, std::byte* data, std::size_t bytes) noexcept override;
  void release(const wire::Header& of) noexcept override { expected_.close(&of); }
  void reclaim(const wire::Header& of) noexcept override { take_back(&of); }
  Turn claim(const wire::Header& which, Piece& piece, bool patient) noexcept override {
    return expected_.claim(which, piece, patient);
  }
  void settle(const wire::Header& which) noexcept override { expected_.settle(which); }
  bool awaited(const wire::Header& which, std::uint64_t bytes) noexcept override {
    return granted_.waits(which, bytes);
  }
  bool maps(const wire::Header& which, std::uint64_t bytes) noexcept override;
  bool shows(const std::byte* data, std::uint64_t bytes) const noexcept override {
    return parts_.pulls && shares(data, bytes);
  }
  Result<Progress> write(const wire::Header& which, const std::byte* data, std::uint64_t bytes,
                         std::uint64_t& wrote) noexcept override;
  bool sleeping(bool asleep) noexcept override;
  void flush() noexcept override;
  int fd() const noexcept override { return parts_.bell.fd(); }
  std::size_t eager_bytes() const noexcept override;
  std::size_t frame_bytes() const noexcept override;
  Status status() const override { return status_; }
  std::string describe() const override;

 private:
  bool fall_asleep() noexcept;
  void wake_up() noexcept;
  void ring_if_asleep() noexcept;
  bool peer_waits_for_room() const noexcept;
  void idle() noexcept;
  bool listen_now_and_then() noexcept;
  void tidy_now_and_then(Clock::time_point now) noexcept;
  void take_back(const wire::Header* of) noexcept;
  bool fail(Code code, auto&& why) noexcept;

  Parts parts_;
  RingWriter writer_;
  RingReader reader_;
  Expected expected_;  // in `mine`
  Granted granted_;    // in `theirs`
  Views views_;
  Status status_;
  Clock::time_point next_listen_{}, next_tidy_{};
  unsigned idle_polls_ = 0;
  bool asleep_ = false;
  bool blocked_ = false;      // the last send() answered Again
  bool owes_frames_ = false;  // sent since the peer's sleep was last looked at
  bool owes_room_ = false;    // read since then
  bool ring_due_ = false;     // the peer has rung, but its byte has not come yet
};

}  // namespace hccomm::transport::shm
