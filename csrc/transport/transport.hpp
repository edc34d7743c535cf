// SPDX-License-Identifier: Apache-2.0
//
// The transport seam: how links between processes come to be (what they do: link.hpp). One file or
// folder per transport; builtins.inc lists them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"
#include "transport/link.hpp"

namespace hccomm::transport {

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

// Memory of a device, as cards are told of it.
struct DeviceMemory {
  std::string_view kind;      // "cuda"
  int index = 0;              // of the device
  int fabric_interface = 0;   // what libfabric calls it (fi_hmem_iface); 0: it has no name
  std::byte* data = nullptr;  // where the device sees it; the host must not look there
  std::uint64_t bytes = 0;
  // A dmabuf descriptor of whole pages of it, the caller's to close. Empty: the runtime has none.
  std::function<Result<int>(std::byte* pages, std::uint64_t bytes)> dmabuf;
};

// Memory of this process that its peers on this machine can map (Link::view).
//
// Owns:   the memory; peers that have mapped it keep its pages.
// Thread: any.
class Shared {
 public:
  virtual ~Shared() = default;
  virtual std::byte* data() const noexcept = 0;
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
  // The program keeps data[0..bytes) where it is until expel() of the same, and will send from it
  // and receive into it: a transport whose cards must know memory tells them now. Thread: any.
  virtual Status enroll(std::byte* /*data*/, std::size_t /*bytes*/) { return {}; }
  virtual void expel(std::byte* /*data*/, std::size_t /*bytes*/) noexcept {}
  // Likewise device memory, for links that reach devices. Fails: Unavailable where no card can, or
  // one has refused.
  virtual Status enroll(const DeviceMemory& memory);
  virtual void expel(const DeviceMemory& /*memory*/) noexcept {}
  // New memory that peers can map. Fails: Unavailable where this transport shares none, System
  // where there is no more. Thread: any.
  virtual Result<std::unique_ptr<Shared>> share(std::size_t bytes);
  // Stops accepting and joins its threads.
  virtual void stop() noexcept = 0;
};

// One of the ways in which a transport could be used on this machine, for hccomm info.
struct Finding {
  std::string what;    // "verbs;ofi_rxm on mlx5_0"
  std::string detail;  // what it can do
  bool used = false;
  std::string reason;  // why it is, or is not
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
  // Transport::share(), also before there is one; nullptr where it shares none.
  Result<std::unique_ptr<Shared>> (*share)(std::size_t bytes) = nullptr;
};

}  // namespace hccomm::transport
