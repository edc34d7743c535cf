// SPDX-License-Identifier: Apache-2.0
//
// A transport between the engine and a real one that does harm to frames: it drops, damages,
// delays, swaps or repeats them, and cuts links. Tests say to which by a function; the rest passes
// untouched. Also what makes a pulled message damaged.
#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "support/mischief.hpp"
#include "transport/transports.hpp"

namespace hccomm::test {

// Owns:   the real link, and copies of frames that are late or damaged.
// Thread: as Link.
// Fails:  as the real link; PeerLost once it was cut.
class FaultyLink final : public transport::Link {
 public:
  FaultyLink(std::unique_ptr<transport::Link> link, std::shared_ptr<Mischief> mischief)
      : link_(std::move(link)), mischief_(std::move(mischief)) {}

  transport::Progress send(transport::Outgoing& frame) noexcept override {
    using transport::Progress;
    if (cut_) return Progress::Broken;
    if (frame.sent > 0) return link_->send(frame);
    pump();
    const Deed deed = mischief_->decide(frame.header);
    if (deed == Deed::Cut) {
      cut_ = true;
      return Progress::Broken;
    }
    const bool straight = deed == Deed::Pass && own_.empty() && swapped_.empty();
    if (straight) return link_->send(frame);
    if (deed != Deed::Drop) keep(frame, deed);
    frame.sent = sizeof frame.header + frame.header.length;
    pump();
    return Progress::Done;
  }
  bool poll(transport::Inbox& inbox, std::size_t budget) noexcept override {
    pump();
    return !cut_ && link_->poll(inbox, budget);
  }
  bool pending() noexcept override {
    pump();
    return cut_ || link_->pending();
  }
  void discard() noexcept override { link_->discard(); }
  Status pull(std::uint64_t key, void* dst, std::uint64_t address,
              std::size_t bytes) noexcept override {
    return link_->pull(key, dst, address, bytes);
  }
  bool pulls() const noexcept override { return link_->pulls(); }
  transport::ViewPtr view(std::uint64_t address, std::uint64_t bytes) noexcept override {
    return link_->view(address, bytes);
  }
  bool streams_sums() const noexcept override { return link_->streams_sums(); }
  void withdraw(std::uint64_t key) noexcept override { link_->withdraw(key); }
  bool withdrawn(std::uint64_t key) const noexcept override { return link_->withdrawn(key); }
  bool sleeping(bool asleep) noexcept override {
    pump();
    const bool quiet = link_->sleeping(asleep);
    return quiet && (!asleep || (own_.empty() && !cut_));
  }
  void flush() noexcept override {
    pump();
    link_->flush();
  }
  int fd() const noexcept override { return link_->fd(); }
  bool wants_write() const noexcept override { return link_->wants_write(); }
  std::size_t eager_bytes() const noexcept override { return link_->eager_bytes(); }
  std::size_t frame_bytes() const noexcept override { return link_->frame_bytes(); }
  Status status() const override {
    return cut_ ? Status(Code::PeerLost, "the test has cut the link") : link_->status();
  }
  std::string describe() const override { return link_->describe() + ", faulty"; }

 private:
  struct Copy {
    transport::Outgoing frame;
    std::vector<std::byte> payload;
    Clock::time_point due{};  // when it may leave
  };

  static void flip(void* data, std::size_t at) { static_cast<unsigned char*>(data)[at] ^= 0x10; }
  void keep(const transport::Outgoing& frame, Deed deed) {
    Copy copy;
    copy.frame.header = frame.header;
    copy.payload.assign(frame.payload, frame.payload + frame.header.length);
    if (deed == Deed::FlipPayload && !copy.payload.empty()) {
      flip(copy.payload.data(), copy.payload.size() / 2);
    }
    if (deed == Deed::FlipHeader) flip(&copy.frame.header, offsetof(wire::Header, context));
    if (deed == Deed::Delay) copy.due = Clock::now() + std::chrono::milliseconds(5);
    if (deed == Deed::Repeat) own_.push_back(copy);
    if (deed == Deed::Swap) {
      swapped_.push_back(std::move(copy));
      return;
    }
    own_.push_back(std::move(copy));
    while (!swapped_.empty()) {
      own_.push_back(std::move(swapped_.front()));
      swapped_.pop_front();
    }
  }
  void pump() {
    while (!own_.empty()) {
      Copy& first = own_.front();
      if (first.due != Clock::time_point{} && Clock::now() < first.due) return;
      first.frame.payload = first.payload.data();
      if (link_->send(first.frame) != transport::Progress::Done) return;
      own_.pop_front();
      if (own_.empty()) link_->flush();
    }
  }

  std::unique_ptr<transport::Link> link_;
  std::shared_ptr<Mischief> mischief_;
  std::deque<Copy> own_;      // leave in this order, before anything else
  std::deque<Copy> swapped_;  // leave after the next frame
  bool cut_ = false;
};

// Wraps what a real transport makes.
class FaultyTransport final : public transport::Transport, private transport::Acceptor {
 public:
  FaultyTransport(transport::Acceptor& acceptor, std::shared_ptr<Mischief> mischief)
      : acceptor_(acceptor), mischief_(std::move(mischief)) {}

  Status open(const transport::Builtin& real, const transport::Identity& identity) {
    auto opened = real.open(identity, *this);
    if (!opened.ok()) return opened.status();
    real_ = std::move(opened).value();
    return {};
  }
  const char* name() const noexcept override { return real_->name(); }
  transport::Address address() const override { return real_->address(); }
  std::string refuses(const transport::Card& self, const transport::Card& peer) const override {
    return real_->refuses(self, peer);
  }
  Result<std::unique_ptr<transport::Link>> connect(const transport::Card& peer,
                                                   Deadline deadline) override {
    auto link = real_->connect(peer, deadline);
    if (!link.ok()) return link;
    return std::unique_ptr<transport::Link>(
        std::make_unique<FaultyLink>(std::move(link).value(), mischief_));
  }
  Result<std::unique_ptr<transport::Shared>> share(std::size_t bytes) override {
    return real_->share(bytes);
  }
  void stop() noexcept override { real_->stop(); }

 private:
  bool reserve(const std::string& uuid) override { return acceptor_.reserve(uuid); }
  void accepted(transport::Accepted peer) override {
    peer.link = std::make_unique<FaultyLink>(std::move(peer.link), mischief_);
    acceptor_.accepted(std::move(peer));
  }
  void abandoned(const std::string& uuid) override { acceptor_.abandoned(uuid); }

  transport::Acceptor& acceptor_;
  std::shared_ptr<Mischief> mischief_;
  std::unique_ptr<transport::Transport> real_;
};

inline const transport::Builtin& builtin_named(const std::string& name) {
  for (const transport::Builtin& each : transport::transports()) {
    if (each.name == name) return each;
  }
  throw Error(Code::Internal, "no transport " + name);
}

// "tcp", or "faulty-tcp" for one that does what `mischief` says.
inline Result<std::unique_ptr<transport::Transport>> open_transport(
    const std::string& name, const transport::Identity& identity, transport::Acceptor& acceptor,
    const std::shared_ptr<Mischief>& mischief) {
  static const std::string kPrefix = "faulty-";
  if (!name.starts_with(kPrefix)) return builtin_named(name).open(identity, acceptor);
  auto made = std::make_unique<FaultyTransport>(acceptor, mischief);
  Status status = made->open(builtin_named(name.substr(kPrefix.size())), identity);
  if (!status.ok()) return status;
  return std::unique_ptr<transport::Transport>(std::move(made));
}

}  // namespace hccomm::test
