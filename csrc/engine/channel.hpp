// SPDX-License-Identifier: Apache-2.0
//
// This process's end of the connection to one other process, shared by all groups the two have in
// common: the frames that wait to leave, and the sorting of those that arrive.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/context.hpp"
#include "engine/operation.hpp"
#include "engine/rest.hpp"
#include "engine/silence.hpp"
#include "transport/transport.hpp"

namespace hccomm::engine {

class Engine;

// A frame that waits to leave. When it has left, `step` of `operation` is complete.
struct Pending {
  transport::Outgoing frame;
  Operation* operation = nullptr;  // nullptr: nobody waits for it
  std::uint32_t step = 0;
  std::unique_ptr<std::byte[]> owned;  // payload that nobody else keeps alive
};

// A large message that leaves in parts, between the others.
struct Bulk {
  wire::Header header;  // of every part; address is the offset
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0, offset = 0;
  Operation* operation = nullptr;
  std::uint32_t step = 0;
  const std::uint64_t* available = nullptr;  // bytes of it that are there; nullptr: all
  bool on_device = false;                    // as Outgoing::on_device
};

// A step that cannot be issued before the link is up.
struct Parked {
  Operation* operation = nullptr;
  std::uint32_t step = 0;
  bool open = false;  // not a send: our Open for this peer is due
};

// Owns:   the link, once there is one, and the frames that wait.
// Thread: guarded by the engine's lock.
// Fails:  a broken link poisons every context that has this peer (Engine::channel_broken).
class Channel final : public transport::Inbox {
 public:
  enum class State : std::uint8_t { Idle, Dialing, Up, Broken };

  Channel(Engine& engine, transport::Card card) : engine_(engine), card_(std::move(card)) {}

  const transport::Card& card() const { return card_; }
  // How to reach the peer, where so far only its uuid was known.
  void know(const transport::Card& card) {
    if (card_.addresses.empty()) card_ = card;
  }
  State state() const { return state_; }
  bool up() const { return state_ == State::Up; }
  transport::Link* link() const { return link_.get(); }
  std::size_t eager_bytes() const { return eager_bytes_; }
  bool pulls() const { return pulls_; }
  bool streams_sums() const { return streams_sums_; }  // as Link's
  bool crowded() const;                                // ranks of this machine outnumber its cores
  const Status& why() const { return why_; }

  void bind(Context& context, int rank);
  void unbind(const Context& context);
  // The contexts that have this peer, with its rank in each.
  struct Binding {
    Context* context = nullptr;
    int rank = -1;
  };
  const std::unordered_map<std::uint64_t, Binding>& bindings() const { return bindings_; }

  void set_dialing() { state_ = State::Dialing; }
  void set_idle() { state_ = State::Idle; }
  void attach(std::unique_ptr<transport::Link> link, std::size_t eager_limit);
  void set_broken(Status why);  // Requires: not called from inside the link

  // Sends a frame now, or keeps it until there is room. The payload must stay valid until the
  // operation's step completes; with no operation it must be owned by the frame.
  void send(const wire::Header& header, const std::byte* payload, Operation* operation = nullptr,
            std::uint32_t step = 0);
  // Whether a frame may leave at once, with none before it; and tries to send that frame. False: it
  // has not left, or not whole (frame.sent), and then keep() must have it.
  bool clear() const { return up() && !current_ && urgent_.empty(); }
  bool try_send(transport::Outgoing& frame) {
    dirty_ = true;
    return link_->send(frame) == transport::Progress::Done;
  }
  void keep(const transport::Outgoing& frame, Operation* operation, std::uint32_t step);
  void send_text(wire::Header header, const std::string& payload);
  void send_bulk(Bulk bulk);
  void park(Parked parked) { parked_.push_back(parked); }
  std::vector<Parked> take_parked() { return std::move(parked_); }

  // Receives and sends what is possible. True when something moved.
  bool progress();
  bool pump();  // the queues, as far as the link takes them
  bool idle() const { return urgent_.empty() && bulk_.empty() && !current_; }
  // Tells the peer that we live and for how long it has said nothing, and that we have taken its
  // Bye to the group `left`.
  void beat(std::uint64_t left = 0);
  // Rings the peer's bell after sends, if it sleeps.
  void flush() {
    if (dirty_ && up()) link_->flush();
    dirty_ = false;
  }
  // Devices on both sides of a link that pulls (across.cpp).
  struct Devices {
    std::vector<std::string> theirs;   // passports
    std::size_t told = 0;              // of ours
    bool grows = false, said = false;  // it takes what is offered piece by piece; it knows we do
    std::string why_not;               // memory of one side could not be opened on the other
    std::uint64_t messages = 0;        // that went from device to device
    Rest offering, expecting;          // it did not take what we offered; it offered nothing
  } devices;
  std::uint64_t flowed = 0;  // bytes of large messages sent unasked since the peer answered one
  // Kept by Engine::tick. Without a link: for how long an operation has waited for one.
  Silence silence;
  std::uint32_t watched = 1;  // the epoll events its descriptor is registered for (EPOLLIN)

  // The message may be written in its place before it is asked for.
  void expect(const wire::Header& which, std::byte* data, std::size_t bytes) {
    if (up() && bytes > eager_bytes_) link_->expect(which, data, bytes);
  }
  void expect_on_device(const wire::Header& which, std::byte* data, std::size_t bytes) {
    if (up()) link_->expect_on_device(which, data, bytes);
  }
  // Asks the peer to write no more of what the operation expects; cancel() waits until it has.
  void release(const Operation& operation);
  // Forgets everything that belongs to an operation that has failed.
  void cancel(const Operation* operation);

  void deliver(const wire::Header& header, const std::byte* payload) override;
  transport::Placement begin(const wire::Header& header) override;
  void consume(const std::byte* piece, std::size_t bytes) override;
  void end() override;
  void landed(const wire::Header& header) override;

 private:
  void hand_over(const wire::Header& header, const std::byte* payload);
  transport::Placement place_of(const wire::Header& header);
  bool next_bulk_part();
  std::optional<wire::Header> expected(const Operation& op) const;
  void completed(Operation* operation, std::uint32_t step);
  const Binding* binding_of(std::uint64_t context);
  void keep_for_later(const wire::Header& header, const std::byte* payload);

  Engine& engine_;
  transport::Card card_;
  State state_ = State::Idle;
  Status why_;
  std::unique_ptr<transport::Link> link_;
  std::size_t eager_bytes_ = 0, frame_bytes_ = 0;
  bool pulls_ = false, streams_sums_ = false;
  bool dirty_ = false;  // sent since the last flush

  std::unordered_map<std::uint64_t, Binding> bindings_;
  std::uint64_t last_context_ = 0;  // one-entry cache of binding_of
  Binding last_binding_;
  // Frames for groups that this rank has not made yet.
  std::unordered_map<std::uint64_t, std::vector<Kept>> strangers_;

  std::optional<Pending> current_;  // begun, must be finished first
  Line<Pending> urgent_;
  Line<Bulk> bulk_;
  std::vector<Parked> parked_;

  // The frame that is arriving in parts.
  struct Incoming {
    enum class Mode : std::uint8_t { None, Direct, Reduce, Keep, Drop } mode = Mode::None;
    wire::Header header;
    Binding binding;
    Operation* operation = nullptr;
    std::uint32_t step = 0;
    std::uint64_t offset = 0;
    Blocks::Block buffer;
  } incoming_;
};

inline constexpr const char* kTakesGrowing = "growing";  // among the passports: Devices::grows
// One side cannot open memory of the other's devices, and why.
void not_across(Channel& channel, const std::string& why);
// What we offered so the receiver wants in frames: for good, for a while, or this once.
void declined(Channel& channel, const wire::Header& header, const std::string& why);

}  // namespace hccomm::engine
