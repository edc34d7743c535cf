// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are threads of one process. Two links share a Wire: a queue of frames each way under
// one mutex. It is the transport to read first: everything the seam asks for, in its plainest form.
// One would choose it to run a whole job inside a test or a debugger.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "transport/transport.hpp"
#include "transport/transports.hpp"

namespace hccomm::transport {

static constexpr std::size_t kEagerBytes = 64 * 1024;
static constexpr std::size_t kFrameBytes = 1024 * 1024;
static constexpr std::size_t kQueueBytes = 4 * kFrameBytes;  // then the sender has to wait
static constexpr std::size_t kWithdrawnKept = 448;           // as the rings of shm do

namespace {

struct Message {
  wire::Header header;
  std::vector<std::byte> payload;
};

// What belongs to one of the two links.
struct End {
  std::deque<Message> arrived;  // sent by the other, not yet handed over
  std::size_t arrived_bytes = 0;
  bool asleep = false;
  bool closed = false;
  std::deque<std::uint64_t> withdrawn;  // the last offers of its own
  UniqueFd bell{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};

  void wake() {
    if (asleep) eventfd_write(bell.get(), 1);
  }
};

struct Wire {
  std::mutex mutex;  // guards the ends, except for the bells' descriptors, which are constant
  End ends[2];
};

class InprocLink final : public Link {
 public:
  InprocLink(std::shared_ptr<Wire> wire, int side)
      : wire_(std::move(wire)), mine_(wire_->ends[side]), theirs_(wire_->ends[1 - side]) {}

  ~InprocLink() override {
    const std::lock_guard lock(wire_->mutex);
    mine_.closed = true;
    theirs_.wake();
  }

  Progress send(Outgoing& frame) noexcept override {
    const std::size_t bytes = sizeof frame.header + frame.header.length;
    const std::lock_guard lock(wire_->mutex);
    if (theirs_.closed) return Progress::Broken;
    blocked_ = theirs_.arrived_bytes != 0 && theirs_.arrived_bytes + bytes > kQueueBytes;
    if (blocked_) return Progress::Again;
    try {
      theirs_.arrived.push_back(
          {frame.header, {frame.payload, frame.payload + frame.header.length}});
    } catch (const std::bad_alloc&) {  // it is tried again
      blocked_ = true;
      return Progress::Again;
    }
    theirs_.arrived_bytes += bytes;
    frame.sent = bytes;
    return Progress::Done;
  }

  bool poll(Inbox& inbox, std::size_t budget) noexcept override {
    std::size_t taken = 0;
    Message message;
    bool came = false;
    while (taken < budget && take(message)) {
      inbox.deliver(message.header, message.payload.data());  // unlocked: it may send
      taken += sizeof message.header + message.payload.size();
      came = true;
    }
    const std::lock_guard lock(wire_->mutex);
    if (came) theirs_.wake();  // it may wait for room
    return !theirs_.closed || !mine_.arrived.empty();
  }

  bool pending() noexcept override {
    const std::lock_guard lock(wire_->mutex);
    return !mine_.arrived.empty() || theirs_.closed;
  }

  void discard() noexcept override {}  // every frame arrives whole

  // Locked, so that who takes its memory back waits for the end of a copy: there is no kernel
  // between the two that would refuse to read what has been freed.
  Status pull(std::uint64_t key, void* dst, std::uint64_t address,
              std::size_t bytes) noexcept override {
    const std::lock_guard lock(wire_->mutex);
    if (theirs_.closed) return {Code::PeerLost, "inproc: the other rank has closed its link"};
    if (taken_back(key)) return {Code::Aborted, "inproc: the other rank took its memory back"};
    std::memcpy(dst, reinterpret_cast<const void*>(static_cast<std::uintptr_t>(address)), bytes);
    return {};
  }
  bool pulls() const noexcept override { return true; }
  bool streams_sums() const noexcept override { return true; }  // so that tests see it anywhere
  void withdraw(std::uint64_t key) noexcept override {
    const std::lock_guard lock(wire_->mutex);
    try {
      if (mine_.withdrawn.size() == kWithdrawnKept) mine_.withdrawn.pop_front();
      mine_.withdrawn.push_back(key);
    } catch (const std::bad_alloc&) {  // the peer must not read: nothing more passes
      mine_.closed = theirs_.closed = true;
      theirs_.wake();
    }
  }
  bool withdrawn(std::uint64_t key) const noexcept override {
    const std::lock_guard lock(wire_->mutex);
    return taken_back(key);
  }

  bool sleeping(bool asleep) noexcept override {
    const std::lock_guard lock(wire_->mutex);
    eventfd_t rings = 0;
    if (!asleep) eventfd_read(mine_.bell.get(), &rings);
    const bool room = blocked_ && theirs_.arrived.empty();
    const bool come = !mine_.arrived.empty() || theirs_.closed || room;
    mine_.asleep = asleep && !come;
    return !asleep || !come;
  }

  void flush() noexcept override {
    const std::lock_guard lock(wire_->mutex);
    if (!theirs_.arrived.empty()) theirs_.wake();
  }

  int fd() const noexcept override { return mine_.bell.get(); }
  std::size_t eager_bytes() const noexcept override { return kEagerBytes; }
  std::size_t frame_bytes() const noexcept override { return kFrameBytes; }
  std::string describe() const override { return "inproc (threads of one process)"; }

  Status status() const override {
    const std::lock_guard lock(wire_->mutex);
    if (!theirs_.closed) return {};
    return {Code::PeerLost, "inproc: the rank in the other thread has closed its link"};
  }

 private:
  // Requires: the mutex is held.
  bool taken_back(std::uint64_t key) const noexcept {
    return std::ranges::find(theirs_.withdrawn, key) != theirs_.withdrawn.end();
  }
  bool take(Message& message) {
    const std::lock_guard lock(wire_->mutex);
    if (mine_.arrived.empty()) return false;
    message = std::move(mine_.arrived.front());
    mine_.arrived.pop_front();
    mine_.arrived_bytes -= sizeof message.header + message.payload.size();
    return true;
  }

  const std::shared_ptr<Wire> wire_;
  End& mine_;
  End& theirs_;
  bool blocked_ = false;  // the last send() answered Again
};

// Where a rank of this process can be called on.
struct Door {
  Door(Identity of, Acceptor& who) : identity(std::move(of)), acceptor(who) {}

  const Identity identity;
  std::mutex mutex;  // guards open, and acceptor while it is called
  bool open = true;
  Acceptor& acceptor;
};

// Every listening rank of this process, by its uuid.
class Doors {
 public:
  static Doors& all() {
    static Doors doors;
    return doors;
  }
  void add(std::shared_ptr<Door> door) {
    const std::lock_guard lock(mutex_);
    doors_[door->identity.uuid] = std::move(door);
  }
  void remove(const std::string& uuid) {
    const std::lock_guard lock(mutex_);
    doors_.erase(uuid);
  }
  std::shared_ptr<Door> find(const std::string& uuid) {
    const std::lock_guard lock(mutex_);
    const auto found = doors_.find(uuid);
    return found == doors_.end() ? nullptr : found->second;
  }

 private:
  std::mutex mutex_;  // guards doors_
  std::map<std::string, std::shared_ptr<Door>> doors_;
};

class InprocTransport final : public Transport {
 public:
  InprocTransport(const Identity& identity, Acceptor& acceptor)
      : door_(std::make_shared<Door>(identity, acceptor)) {
    Doors::all().add(door_);
  }
  ~InprocTransport() override { stop(); }

  const char* name() const noexcept override { return "inproc"; }
  Address address() const override { return text("pid ", getpid()); }

  std::string refuses(const Card& self, const Card& peer) const override {
    if (self.pid != peer.pid) return text("it is process ", peer.pid, ", this is ", self.pid);
    const auto inproc = [](const auto& each) { return each.first == "inproc"; };
    if (std::ranges::none_of(peer.addresses, inproc)) return "it does not listen for inproc";
    if (Doors::all().find(peer.uuid) == nullptr) return "no rank of this process has its id";
    return {};
  }

  Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline) override {
    const std::shared_ptr<Door> door = Doors::all().find(peer.uuid);
    if (!door) return Status(Code::PeerLost, "inproc: that rank no longer listens");
    const Identity& self = door_->identity;
    if (door->identity.job != self.job || door->identity.key != self.key) {
      return Status(Code::Unavailable, "inproc: that rank belongs to another job");
    }
    const auto wire = std::make_shared<Wire>();
    if (!wire->ends[0].bell || !wire->ends[1].bell) {
      return Status(Code::System, "inproc: no descriptor is free; raise `ulimit -n`");
    }
    auto mine = std::make_unique<InprocLink>(wire, 0);
    const std::lock_guard lock(door->mutex);
    if (!door->open) return Status(Code::PeerLost, "inproc: that rank no longer listens");
    if (!door->acceptor.reserve(self.uuid)) {
      return Status(Code::Aborted, "inproc: the peer has a link with this rank already");
    }
    door->acceptor.accepted({self.uuid, std::make_unique<InprocLink>(wire, 1)});
    return std::unique_ptr<Link>(std::move(mine));
  }

  void stop() noexcept override {
    Doors::all().remove(door_->identity.uuid);
    const std::lock_guard lock(door_->mutex);  // no call of the acceptor is under way from here on
    door_->open = false;
  }

 private:
  const std::shared_ptr<Door> door_;
};

}  // namespace

Builtin inproc_transport() {
  return {
      "inproc",
      "ranks that are threads of one process",
      100,
      [](const Identity& identity, Acceptor& acceptor) -> Result<std::unique_ptr<Transport>> {
        return std::unique_ptr<Transport>(std::make_unique<InprocTransport>(identity, acceptor));
      },
      nullptr,
      true};
}

}  // namespace hccomm::transport
