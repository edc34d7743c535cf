// SPDX-License-Identifier: Apache-2.0
//
// A group of ranks and what it can do: the only class that sees everything. It turns a request
// into a recipe (checked, an algorithm chosen, planned; kept in a cache) and hands it to the
// engine.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.hpp"
#include "comm/devices.hpp"
#include "comm/endpoint.hpp"
#include "comm/registration.hpp"
#include "engine/engine.hpp"
#include "plan/plan.hpp"
#include "select/select.hpp"

namespace hccomm::comm {

class Islands;

struct Memory {
  std::byte* data = nullptr;
  std::uint64_t count = 0;  // elements it holds
  DeviceBuffer device;      // where it is none of the host's; `data` then serves comparisons
};

// One collective as the caller asked for it.
struct Request {
  plan::Call call;
  Memory input, output;
  double factor = 1.0;
  Seconds timeout{0};  // 0: the communicator's
  engine::Follow follow = engine::Follow::Soon;
};

// One point-to-point message.
struct Message {
  int peer = -1;  // -1: from any rank (recv)
  std::uint64_t tag = 0;
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  std::uint8_t kind = 0;  // the element type plus one; 0: goes with everything
  Seconds timeout{0};
  engine::Follow follow = engine::Follow::Soon;
  DeviceBuffer device;  // where the buffer is none of the host's
};

// Owns:   its context in the engine and its plan cache; shares the endpoint.
// Thread: any; operations must be started in the same order on all ranks, which is the caller's
//         business where several threads start them.
// Fails:  wrong requests throw Error before a byte moves; what goes wrong later is in the
// operation.
class Communicator {
 public:
  Communicator(std::shared_ptr<Endpoint> endpoint, std::string name, std::uint64_t id, int rank,
               std::vector<transport::Card> cards, Seconds timeout, bool islands = true);
  ~Communicator();

  int rank() const { return group_.rank; }
  int size() const { return group_.size; }
  const std::string& name() const { return context_.name; }
  void set_timeout(Seconds timeout);

  engine::Operation* start(const Request& request);
  Status run(const Request& request);
  // As run() of the call that was run last; false where it is another, and nothing has happened.
  bool repeat(const engine::Simple& call, double factor, Seconds timeout, Status& outcome) {
    if (closed_ || islands_ != nullptr || Endpoint::forked()) return false;
    return endpoint_->engine().repeat(context_, call, factor, timeout_of(timeout), outcome);
  }
  // As start(), but never over islands (islands.hpp).
  engine::Operation* start_own(const Request& request);
  Status trouble();  // what the communicator has failed with
  // Between the two a rank that falls silent is lost, though no operation waits for it.
  void watch() { ++std::atomic_ref(context_.watched); }
  void watch_no_more() { --std::atomic_ref(context_.watched); }
  engine::Operation* send(const Message& message);
  engine::Operation* recv(const Message& message);
  // Both at once, and waits for them; `source` is whom `in` came from.
  Status exchange(const Message& out, const Message& in, int& source);
  engine::Engine& engine() { return endpoint_->engine(); }

  // The group of these ranks; each member calls it, nobody else does. No network I/O.
  std::unique_ptr<Communicator> group(const std::vector<int>& ranks, std::string name,
                                      Seconds timeout, bool islands = true);
  // Collective. nullptr for a negative color.
  std::unique_ptr<Communicator> split(int color, int key);

  // Tells the cards of this process of memory. No network I/O; other ranks need not do the same.
  std::unique_ptr<Registration> enroll(std::byte* data, std::size_t bytes);
  std::unique_ptr<Registration> enroll(const DeviceBuffer& buffer, std::size_t bytes);

  // Collective. A setting of this communicator alone, in place of the environment's. Throws
  // Mismatch on all ranks when they do not give the same.
  void set(const std::string& name, const std::string& value);

  // Collective. From now on calls go over islands (islands.hpp), also where that is not found to be
  // possible by itself. Throws alike on all ranks where it cannot be.
  void use_islands(const DeviceBuffer& mine);

  // Collective over the ranks that live: agrees on who they are and makes their group. Works on a
  // failed communicator, which stays to be closed. Throws Timeout naming a rank that does not call,
  // PeerLost where the others have gone on without this rank.
  std::unique_ptr<Communicator> shrink(Seconds timeout);

  void abort(const std::string& reason);
  // Fails everything of this communicator, on all its ranks.
  void fail(const Status& why);
  // Aborts what is in flight, on all ranks, and closes.
  void leave(const std::string& reason);
  // Waits for what is in flight, says goodbye. Timeout when something was left.
  Status close(Seconds timeout);
  std::string describe();  // JSON
  const transport::Card& card_of(int rank) const { return cards_[static_cast<std::size_t>(rank)]; }
  Seconds timeout_of(Seconds asked) const { return asked.count() > 0 ? asked : timeout_; }
  std::string dump() { return endpoint_->engine().dump(context_); }  // the flight recorder, JSON

 private:
  using RecipePtr = std::shared_ptr<const engine::Recipe>;
  RecipePtr recipe_for(const Request& request);
  bool repeats_last(const Request& request) const;
  RecipePtr make_recipe(const plan::Call& call);
  void agree(const char* what, const std::string& value);
  void leave_islands(bool quiet);
  void check_usable(const char* what) const;
  engine::Parcel parcel_of(const char* what, const Message& message, engine::Where& where);
  const engine::Buffers* on_devices(const Request& request, const engine::Recipe& recipe,
                                    engine::Buffers& buffers);
  engine::Where where_of(const char* what, const DeviceBuffer& buffer);
  void check_message(const char* what, const Message& message) const;

  std::shared_ptr<Endpoint> endpoint_;
  engine::Context context_;
  plan::Group group_;
  select::Facts facts_;
  select::Table table_;
  std::vector<transport::Card> cards_;
  Seconds timeout_;
  bool closed_ = false;
  std::unique_ptr<Islands> islands_;

  std::mutex mutex_;  // guards the members below
  select::Rules rules_;
  std::string algorithms_;  // the text of rules_
  plan::Call last_call_;
  RecipePtr last_;
  std::uint64_t last_input_ = 0, last_output_ = 0;      // elements that last_call_ needs
  std::unordered_map<std::string, RecipePtr> recipes_;  // by the bytes of the call
  std::string key_;  // those of the call that is looked up; its memory is used again
  std::map<std::pair<std::vector<int>, std::string>, int> made_;  // groups made of these ranks
  int splits_ = 0;
  int shrinks_ = 0;
};

}  // namespace hccomm::comm
