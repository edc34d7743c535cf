// SPDX-License-Identifier: Apache-2.0
//
// HCCOMM_INTEGRITY=crc32c: a link between the engine and a real one that seals every frame it sends
// and opens every frame that comes, so that no flipped bit, lost, repeated or overtaken frame on
// the way (memory, driver, network card, a switch that mends checksums) becomes a wrong result.
// What passes frames by has no seal. Copies between the memories of two processes of one machine
// may all the same (Seal::Frames): no wire, card or driver carries them. Nothing else may: where a
// card would write, the message goes in frames.
#include <utility>

#include "base/crc32c.hpp"
#include "base/worded.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

namespace {

// Owns:   the real link.
// Thread: as Link.
// Fails:  Integrity once a frame was not what its seal says; what had arrived before is handed
// over.
//         A damaged piece is not: the last one of a frame waits for the verdict.
class SealedLink final : public Link, private Inbox {
 public:
  SealedLink(std::unique_ptr<Link> link, Seal seal)
      : link_(std::move(link)), copies_(seal == Seal::Frames && link_->pulls()) {}

  Progress send(Outgoing& frame) noexcept override {
    const bool fresh = frame.sent == 0;
    if (fresh) wire::seal(frame.header, crc32c(0, frame.payload, frame.header.length), sent_);
    const Progress progress = link_->send(frame);
    if (fresh && frame.sent > 0) ++sent_;
    return progress;
  }

  bool poll(Inbox& inbox, std::size_t budget) noexcept override {
    if (!status_.ok()) return false;
    outer_ = &inbox;
    const bool sound = link_->poll(*this, budget);
    return sound && status_.ok();
  }
  bool pending() noexcept override { return !status_.ok() || link_->pending(); }
  void discard() noexcept override {
    incoming_.discarded = true;
    link_->discard();
  }
  void recall() noexcept override { link_->recall(); }

  void expect(const wire::Header& which, std::byte* data, std::size_t bytes) noexcept override {
    if (copies_) link_->expect(which, data, bytes);
  }
  void release(const wire::Header& of) noexcept override { link_->release(of); }
  void reclaim(const wire::Header& of) noexcept override { link_->reclaim(of); }
  Turn claim(const wire::Header& which, Piece& piece, bool patient) noexcept override {
    return link_->claim(which, piece, patient);
  }
  void settle(const wire::Header& which) noexcept override { link_->settle(which); }
  bool awaited(const wire::Header& which, std::uint64_t bytes) noexcept override {
    return copies_ && link_->awaited(which, bytes);
  }
  bool maps(const wire::Header& which, std::uint64_t bytes) noexcept override {
    return copies_ && link_->maps(which, bytes);
  }
  bool shows(const std::byte* data, std::uint64_t bytes) const noexcept override {
    return copies_ && link_->shows(data, bytes);
  }
  Result<Progress> write(const wire::Header& which, const std::byte* data, std::uint64_t bytes,
                         std::uint64_t& wrote) noexcept override {
    return link_->write(which, data, bytes, wrote);
  }
  Status pull(std::uint64_t key, void* dst, std::uint64_t address,
              std::size_t bytes) noexcept override {
    return link_->pull(key, dst, address, bytes);
  }
  bool pulls() const noexcept override { return copies_; }
  ViewPtr view(std::uint64_t address, std::uint64_t bytes) noexcept override {
    return copies_ ? link_->view(address, bytes) : nullptr;
  }
  void withdraw(std::uint64_t key) noexcept override { link_->withdraw(key); }
  bool withdrawn(std::uint64_t key) const noexcept override { return link_->withdrawn(key); }

  bool sleeping(bool asleep) noexcept override { return link_->sleeping(asleep); }
  void flush() noexcept override { link_->flush(); }
  int fd() const noexcept override { return link_->fd(); }
  bool wants_write() const noexcept override { return link_->wants_write(); }
  std::size_t eager_bytes() const noexcept override { return link_->eager_bytes(); }
  std::size_t frame_bytes() const noexcept override { return link_->frame_bytes(); }
  Status status() const override { return status_.ok() ? link_->status() : status_; }
  std::string describe() const override {
    return link_->describe() + (copies_ ? ", frames checked" : ", checked");
  }

 private:
  // The frame that arrives in parts.
  struct Incoming {
    wire::Header header;
    std::uint32_t expected = 0, crc = 0;
    const std::byte* direct = nullptr;
    std::uint64_t left = 0;
    bool discarded = false;
  };

  // What the engine shall see of a header, and the CRC that its payload must have.
  bool open(const wire::Header& sealed, wire::Header& header, std::uint32_t& expected) {
    if (!status_.ok()) return false;  // nothing after the first damage
    if ((sealed.flags & wire::kSealed) == 0 || !wire::seal_holds(sealed)) {
      damaged(sealed, "its header is not what was sent");
      return false;
    }
    expected = wire::expected_crc(sealed, received_++);
    header = sealed;
    header.flags &= static_cast<std::uint8_t>(~wire::kSealed);
    header.source = 0;
    header.check = 0;
    return true;
  }
  void damaged(const wire::Header& header, const char* what) {
    if (!status_.ok()) return;
    status_ = worded(Code::Integrity, [&]() -> Status {
      return {
          Code::Integrity,
          text("frame ", received_, " (", wire::name(header.type), ", operation #", header.sequence,
               ", ", header.length, " bytes) over ", link_->describe(), ": ", what,
               " (HCCOMM_INTEGRITY); look at the memory and the network between the two")};
    });
  }
  static constexpr const char* kWrong =
      "its CRC-32C is wrong: damaged on the way, or a frame before it is missing";

  void deliver(const wire::Header& sealed, const std::byte* payload) override {
    wire::Header header;
    std::uint32_t expected = 0;
    if (!open(sealed, header, expected)) return;
    if (crc32c(0, payload, header.length) != expected) {
      damaged(header, kWrong);
    } else {
      outer_->deliver(header, payload);
    }
  }
  Placement begin(const wire::Header& sealed) override {
    incoming_ = {};
    if (!open(sealed, incoming_.header, incoming_.expected)) return {};
    incoming_.left = incoming_.header.length;
    const Placement placement = outer_->begin(incoming_.header);
    incoming_.direct = placement.direct;
    return placement;
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    if (!status_.ok()) return;
    incoming_.crc = crc32c(incoming_.crc, piece, bytes);
    incoming_.left -= bytes;
    if (incoming_.left == 0 && incoming_.crc != incoming_.expected) {
      damaged(incoming_.header, kWrong);
    } else {
      outer_->consume(piece, bytes);
    }
  }
  void end() override {
    if (!status_.ok()) return;
    if (incoming_.direct != nullptr && !incoming_.discarded &&
        crc32c(0, incoming_.direct, incoming_.header.length) != incoming_.expected) {
      damaged(incoming_.header, kWrong);
    } else {
      outer_->end();
    }
  }

  std::unique_ptr<Link> link_;
  const bool copies_;
  Inbox* outer_ = nullptr;  // during poll()
  std::uint64_t sent_ = 0, received_ = 0;
  Incoming incoming_;
  Status status_;
};

}  // namespace

std::unique_ptr<Link> sealed(std::unique_ptr<Link> link, Seal seal) {
  return std::make_unique<SealedLink>(std::move(link), seal);
}

}  // namespace hccomm::transport
