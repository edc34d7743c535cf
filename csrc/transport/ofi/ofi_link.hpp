// SPDX-License-Identifier: Apache-2.0
//
// The link to one peer over a fabric. Small frames are written whole into a slot of the peer's
// inbox; of larger ones the parts, straight from the user's memory, and they are taken out of it
// straight into a reduction or the destination. What the peer has advertised is written in place.
#pragma once

#include <memory>
#include <string>

#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

// Owns:   its place in the fabric (Peer), a share of the fabric, and an epoll that joins the
//         fabric's bell with the control connection.
// Thread: as Link.
// Fails:  PeerLost when the control connection ends or the provider reports the peer; Integrity
//         when what arrives is no frame. What had arrived whole before is handed over first.
class OfiLink final : public Link {
 public:
  static Result<std::unique_ptr<Link>> make(std::shared_ptr<Fabric> fabric, Peer& peer, int control,
                                            std::string description);
  ~OfiLink() override;

  Progress send(Outgoing& frame) noexcept override;
  bool poll(Inbox& inbox, std::size_t budget) noexcept override;
  bool pending() noexcept override;
  void discard() noexcept override;
  void recall() noexcept override;
  void expect(const wire::Header& which, std::byte* data, std::size_t bytes) noexcept override;
  bool reaches_devices() const noexcept override { return fabric_->reaches_devices(); }
  void expect_on_device(const wire::Header& which, std::byte* data,
                        std::size_t bytes) noexcept override;
  bool awaited(const wire::Header& which, std::uint64_t bytes) noexcept override;
  void release(const wire::Header& of) noexcept override;
  void reclaim(const wire::Header& of) noexcept override;
  bool sleeping(bool asleep) noexcept override;
  int fd() const noexcept override { return poller_.get(); }
  std::size_t eager_bytes() const noexcept override;
  std::size_t frame_bytes() const noexcept override;
  Status status() const override { return status_; }
  std::string describe() const override { return description_ + fabric_->rails_used(peer_); }

 private:
  // A frame that arrives in parts.
  struct Large {
    bool active = false, discarded = false;
    std::byte* direct = nullptr;
    std::uint64_t left = 0;
    wire::Header header;
  };
  OfiLink(std::shared_ptr<Fabric> fabric, Peer& peer, std::string description);
  Progress send_parts(Outgoing& frame);
  Progress send_direct(Outgoing& frame);
  bool goes_in_pieces(const Outgoing& frame) const;
  Progress send_pieces(Outgoing& frame);
  Progress sent_all(Outgoing& frame);
  bool take(Inbox& inbox, Arrived& arrived);
  bool take_direct(Inbox& inbox, const Arrived& arrived);
  void part(Inbox& inbox, const std::byte* data, std::size_t bytes);
  bool end(Status why);
  template <typename Make>
  bool wrong(Make&& what);
  void look_around();

  const std::shared_ptr<Fabric> fabric_;
  Peer& peer_;
  const std::string description_;
  UniqueFd poller_;
  Status status_;
  std::size_t posted_ = 0;  // of the frame that is being sent
  int grant_ = -1;          // by which it is written in its place; -1: through the inbox
  unsigned idle_polls_ = 0;
  Clock::time_point next_look_{};
  Large large_;
};

}  // namespace hccomm::transport::ofi
