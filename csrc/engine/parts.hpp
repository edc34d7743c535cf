// SPDX-License-Identifier: Apache-2.0
//
// The small types of the engine: how it is set up, what a message is, who drives it, and who makes
// the links. comm/ fills them in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.hpp"
#include "device/device.hpp"
#include "engine/waiting.hpp"
#include "transport/transport.hpp"

namespace hccomm::engine {

using wire::Header;

class Channel;
struct Context;
struct Operation;

// What is called, outside the lock, once an operation is done.
struct Callback {
  void (*function)(void*, int);
  void* context;
  int code;
};

// Where sums are made that end on a device: where that is quicker, or always on one side.
enum class Sums : std::uint8_t { Auto, Host, Device };

struct Settings {
  std::size_t eager_limit = 0;            // bytes; 0: each link's own
  int spin_us = 60;                       // polling before a waiter sleeps
  bool patient = true;                    // or longer, where sleeping has turned out too costly
  Seconds silence{3.0};                   // in which a peer that is silent is lost; 0: never
  bool oversubscribed = false;            // more local ranks than cores: yield at once
  std::size_t staging_bytes = 256 << 20;  // pinned host memory per device, at most
  std::size_t staging_segment = 0;        // bytes of one copy; 0: as measured
  Sums staging_sums = Sums::Auto;
  std::size_t in_place_bytes = 0;  // of device buffers that cards shall reach; 0: none
  bool device_ipc = true, check_copies = false;  // copies: what they moved is read again
  std::string (*describe_fingerprint)(std::uint64_t) = nullptr;  // for messages
  std::string dump_folder;  // where the flight recorder is written on errors; "": nowhere
};

// Who will drive an operation that has been started.
enum class Follow : std::uint8_t {
  Wait,        // the caller waits at once
  Soon,        // the caller waits, or tests, presently
  Background,  // nobody waits for long: the service thread drives at once
};

// Where a buffer lies on a device. The name is of the kind, "cuda", and outlives the engine.
struct Where {
  device::Runtime* runtime = nullptr;  // nullptr: host memory
  std::int32_t index = 0;
  bool opaque = false;  // handles are no addresses: they compare equal, or are different memory
  device::Place place;
  void* stream = nullptr;  // the caller's
  std::string_view name;
};

// The buffers of a collective that lie on a device, by plan::Space.
struct Buffers {
  Where where[2];
};

// Makes links. dial() is called under the engine's lock and returns at once; the outcome comes
// later through Engine::dialed() or Engine::accepted(), from a thread that holds no lock.
//
// Fails: System where this process cannot even begin; then nothing comes later.
class Dialer {
 public:
  virtual Status dial(const transport::Card& peer) = 0;
  // Transport::enroll() and expel() of device memory, of whichever transport has cards for it.
  virtual Status enroll(const transport::DeviceMemory&) {
    return {Code::Unavailable, "no transport reaches the memory of devices"};
  }
  virtual void expel(const transport::DeviceMemory&) noexcept {}
  // Transport::share(), of whichever transport shares memory.
  virtual Result<std::unique_ptr<transport::Shared>> share(std::size_t /*bytes*/) {
    return Status(Code::Unavailable, "no transport shares memory");
  }

 protected:
  ~Dialer() = default;
};

// A point-to-point message; peer -1 receives from any rank. `kind` is the element type plus one
// and must be the same on both sides; 0 goes with everything.
struct Parcel {
  int peer = -1;
  std::uint64_t tag = 0;
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  std::uint8_t kind = 0;
  Seconds timeout{300};
  Follow follow = Follow::Soon;
  const Where* where = nullptr;  // of `data`, where that lies on a device; read by start_*() only
};

// Names an offer of memory between two processes: a collective's by its sequence number, a tagged
// message's by the number that its sender gave it.
inline std::uint64_t offer(std::uint64_t context, std::uint64_t number, bool tagged) {
  return (context ^ (2 * number + (tagged ? 1 : 0)) * 0x9E3779B97F4A7C15ull) *
         0xD6E8FEB86659FD93ull;
}

// Some ranks, and the size from which on messages to them and from them take another way.
struct Reach {
  std::vector<int> ranks;   // sorted
  std::uint64_t above = 0;  // bytes; smaller ones are sent unasked

  bool has(int rank, std::uint64_t bytes) const {
    return bytes > above && std::ranges::binary_search(ranks, rank);
  }
  friend bool operator==(const Reach&, const Reach&) = default;
};

// What staging need not do: cards reach some ranks from the memory of devices, the devices of
// others open that of ours and ours theirs (IPC), and the memory of others is seen from here, so
// that a device copies right out of it.
struct Reaches {
  Reach cards, opened, opens, views;
};

// A message that is being copied out of the sender's memory, a piece at a time.
struct Pull {
  Channel* channel = nullptr;
  Operation* operation = nullptr;
  std::uint32_t step = 0;
  unsigned patience = 0;                             // looks, until we begin ourselves
  std::uint64_t address = 0, offset = 0, bytes = 0;  // from the offset to `bytes`
  bool alone = false;                                // the sender does not copy
  transport::ViewPtr view;                           // where we see it; nullptr: nowhere
};

// A large message that we write to its place, alone or while the peer pulls.
struct Push {
  Channel* channel = nullptr;
  Operation* operation = nullptr;
  std::uint32_t step = 0;
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0, wrote = 0;
  bool helps = false;  // the receiver copies; we do while we have nothing to pull
};

// The message that the step (of a collective; else the operation) sends or receives, as both ends
// name it.
wire::Header message_of(const Operation& op, std::uint32_t step);
// Tells the link where that message belongs, if it may come straight to its place by now.
void expect(Operation& op, std::uint32_t step);
// Whether what the step receives is stored as it comes: it reduces nothing, or the device does.
bool stores(const Operation& op, std::uint32_t step);
// Of what the step, or the message, sends: whether it goes unasked; whether peers can map it.
bool goes_unasked(const Channel& channel, const Operation& op, std::uint32_t step);
bool in_shared_memory(const Operation& op, std::uint32_t step);
// The step that receives the index-th message from a rank; -1: there is none.
std::int64_t recv_step(const Operation& op, int source, std::uint32_t index);
// Whether the operation waits for that rank, and how far it has come, for messages and dumps.
bool waits_for(const Operation& op, int rank);
// Asks for a message that was announced; tells who asked what more of it has left the device.
void answer(Operation& op);
void tell_here(Operation& op);
void tell_growth(Operation& op, std::uint32_t step);
void answer_probe(Context& context, int source, const wire::Header& probe);
// Sends one rank the reason why the context is poisoned, once.
void tell(Context& context, int rank);
// Takes all that has arrived, the end of the connection included.
void look_at(Channel& channel);
// No frame finds the operation any more.
void detach(Operation& op);
void forget_tagged(Operation& op);
std::string progress_text(const Operation& op);
void note_waits(const Operation& op);
// Writes what dump_locked() says to the folder HCCOMM_DUMP.
void write_dump(const Context& context, const std::string& folder, const std::string& body);

}  // namespace hccomm::engine
