// SPDX-License-Identifier: Apache-2.0
//
// The transport seam: how frames cross between two processes. engine/ decides what is sent and
// where it lands; a Link only moves it. One file or folder per transport; builtins.inc lists them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "wire/frame.hpp"

namespace hccomm::transport {

// A frame on its way out. The engine owns it; the link advances `sent` until the frame is complete.
struct Outgoing {
  wire::Header header;
  const std::byte* payload = nullptr;
  std::size_t sent = 0;  // bytes of header + payload taken so far
};

enum class Progress : std::uint8_t { Done, Again, Broken };

// Where the payload of a frame that arrives in parts shall go.
struct Placement {
  std::byte* direct = nullptr;  // store it here as it comes; nullptr: hand the pieces to consume()
};

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

 protected:
  ~Inbox() = default;
};

// One connection between this process and one other, for all groups they share.
//
// Owns:   its descriptors and memory.
// Thread: send, poll and pull are called under the engine's lock, one at a time. status() too.
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
  // Takes back what was expected: of the message, or for Data of all messages of the operation.
  // release() asks the peer to stop, so that several can be asked at once; reclaim() asks where
  // that has not been done, and waits until it has.
  virtual void release(const wire::Header& /*of*/) noexcept {}
  virtual void reclaim(const wire::Header& /*of*/) noexcept {}

  // Copies `bytes` from the peer's memory. Requires: pulls().
  virtual Status pull(void* dst, std::uint64_t address, std::size_t bytes) noexcept;
  virtual bool pulls() const noexcept { return false; }
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

// What a process tells the others about how to reach it by one transport; opaque to everyone else.
using Address = std::string;

// Facts about a process that decide which transports can reach it. Exchanged at rendezvous.
struct Card {
  std::string uuid;     // 16 random bytes
  std::string host;     // boot id or HCCOMM_HOST: equal means same host
  std::string machine;  // boot id and namespaces: equal means memory can be shared
  std::int64_t pid = 0;
  std::uint32_t cores = 1;    // processors it may use
  std::uint64_t choices = 0;  // hash of the settings by which algorithms are chosen
  std::vector<std::pair<std::string, Address>> addresses;  // transport name -> address, best first
};

// Who connects, and with what secret. The same on all ranks of a job, except self and peer.
struct Identity {
  std::string job;        // 16 bytes: rejects strays of other jobs
  std::string key;        // 32 bytes, or empty: no authentication
  std::string uuid;       // of this process
  bool encrypts = false;  // HCCOMM_ENCRYPT: nothing leaves this host in clear
};

// What a listener hands over once a stranger has proved to be a peer.
struct Accepted {
  std::string uuid;  // whose link this is
  std::unique_ptr<Link> link;
};

// Who takes the links of peers that dial us. A listener asks reserve() once the peer is proven and
// before it sends the verdict (false: the verdict is Duplicate), and then answers with exactly one
// of accepted() and abandoned(). accepted() may send frames at once, so nothing of the handshake
// may follow it on the connection. Thread: any.
class Acceptor {
 public:
  virtual bool reserve(const std::string& uuid) = 0;
  virtual void accepted(Accepted peer) = 0;
  virtual void abandoned(const std::string& uuid) = 0;

 protected:
  ~Acceptor() = default;
};

// One transport in one process: listens and connects.
//
// Owns:   its listening socket and the threads of handshakes in progress.
// Thread: connect() from any thread; it blocks until the deadline and takes no engine lock.
// Fails:  connect() gives the reason; the listener drops strangers with one log line per source.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual const char* name() const noexcept = 0;
  virtual Address address() const = 0;
  // Why this transport cannot reach that process, or "" when it can.
  virtual std::string refuses(const Card& self, const Card& peer) const = 0;
  // Code::Aborted when the peer answered Duplicate: its own connection to us exists or is coming.
  virtual Result<std::unique_ptr<Link>> connect(const Card& peer, Deadline deadline) = 0;
  // Stops accepting and joins its threads.
  virtual void stop() noexcept = 0;
};

// One of the ways in which a transport could be used on this machine, for hccomm info.
struct Finding {
  std::string what;    // "verbs;ofi_rxm on mlx5_0"
  std::string detail;  // what it can do
  bool used = false;
  std::string reason;  // why it is not
};

// A built-in: one line in builtins.inc.
struct Builtin {
  const char* name;
  const char* summary;
  int preference;  // higher is better
  // The transport, listening; or why not here.
  Result<std::unique_ptr<Transport>> (*open)(const Identity&, Acceptor&);
  // What there is to choose from, for transports that choose; nullptr for the others.
  Result<std::vector<Finding>> (*survey)() = nullptr;
  // With Identity::encrypts nobody else can read what it carries: it is encrypted, or it never
  // leaves this host and this user. Others are not opened then.
  bool keeps_secret = false;
};

}  // namespace hccomm::transport
