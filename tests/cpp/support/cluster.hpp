// SPDX-License-Identifier: Apache-2.0
//
// N engines in one process, linked by a transport of the caller's choice: what engine tests run on.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "algorithm/algorithms.hpp"
#include "base/machine.hpp"
#include "collective/collective.hpp"
#include "dtype/reduce.hpp"
#include "engine/engine.hpp"
#include "support/faulty.hpp"
#include "transport/transports.hpp"

namespace hccomm::test {

// One rank: an engine, a transport, a group of all.
class Node final : private engine::Dialer, private transport::Acceptor {
 public:
  Node(const char* transport, int rank, int size, engine::Settings settings = {})
      : rank_(rank), size_(size) {
    std::string uuid(16, '\0');
    static std::atomic<std::uint64_t> serial{1};
    const std::uint64_t number = serial++;
    std::memcpy(uuid.data(), &number, sizeof number);
    identity_ = {std::string(16, 'j'), "", uuid};
    engine_ = std::make_unique<engine::Engine>(static_cast<engine::Dialer&>(*this), uuid, settings);
    std::string name = transport;  // "tcp", "faulty-tcp", "sealed-tcp", "framed-faulty-tcp" ...
    if (name.starts_with("sealed-")) seal_ = transport::Seal::Everything;
    if (name.starts_with("framed-")) seal_ = transport::Seal::Frames;
    if (seal_ != transport::Seal::Nothing) name = name.substr(7);
    transport_ = open_transport(name, identity_, *this, mischief_).take();
    card_ = {uuid, host_id(), machine_id(), getpid(), 1, 0, {}};
    card_.addresses = {{transport_->name(), transport_->address()}};
  }
  ~Node() {
    transport_->stop();
    for (std::thread& each : dials_) each.join();
    engine_.reset();
  }
  void meet(const std::vector<transport::Card>& cards, std::uint64_t id = 7) {
    context_ = {};
    context_.id = id;
    context_.name = "world";
    context_.rank = rank_;
    context_.size = size_;
    for (int each = 0; each < size_; ++each) context_.who.push_back(text("rank ", each));
    engine_->add(context_, cards);
  }
  void leave(bool say_bye = true) {
    engine_->remove(context_, Deadline::after(Seconds(2)), say_bye);
  }

  engine::Engine& engine() { return *engine_; }
  engine::Context& context() { return context_; }
  Mischief& mischief() { return *mischief_; }
  const transport::Card& card() const { return card_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  void refuse_to_dial(bool refuses) { refuses_to_dial_ = refuses; }
  Status enroll(const transport::DeviceMemory& memory) override {
    return transport_->enroll(memory);
  }
  void expel(const transport::DeviceMemory& memory) noexcept override { transport_->expel(memory); }

 private:
  std::unique_ptr<transport::Link> finished(std::unique_ptr<transport::Link> link) const {
    if (seal_ == transport::Seal::Nothing) return link;
    return transport::sealed(std::move(link), seal_);
  }
  Status dial(const transport::Card& peer) override {
    if (refuses_to_dial_) return {Code::System, "no thread can be started"};
    const std::lock_guard lock(mutex_);
    dials_.emplace_back([this, peer] {
      const Deadline deadline = Deadline::after(Seconds(10));
      auto link = transport_->connect(peer, deadline);
      // On a machine so busy that a handshake takes its two seconds: again, as comm/ does.
      while (!link.ok() && link.status().code() == Code::PeerLost && !deadline.passed()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        link = transport_->connect(peer, deadline);
      }
      if (link.ok()) link = finished(std::move(link).value());
      engine_->dialed(peer.uuid, std::move(link));
    });
    return {};
  }
  Result<std::unique_ptr<transport::Shared>> share(std::size_t bytes) override {
    return transport_->share(bytes);
  }
  bool reserve(const std::string& uuid) override { return engine_->reserve(uuid); }
  void accepted(transport::Accepted peer) override {
    engine_->accepted(peer.uuid, finished(std::move(peer.link)));
  }
  void abandoned(const std::string& uuid) override { engine_->abandoned(uuid); }

  int rank_, size_;
  transport::Seal seal_ = transport::Seal::Nothing;
  std::atomic<bool> refuses_to_dial_{false};
  transport::Identity identity_;
  transport::Card card_;
  std::shared_ptr<Mischief> mischief_ = std::make_shared<Mischief>();
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<transport::Transport> transport_;
  engine::Context context_;
  std::mutex mutex_;  // guards dials_
  std::list<std::thread> dials_;
};

class Cluster {
 public:
  explicit Cluster(const char* transport, int size, engine::Settings settings = {}) {
    settings.oversubscribed = true;
    std::vector<transport::Card> cards;
    for (int rank = 0; rank < size; ++rank) {
      nodes_.push_back(std::make_unique<Node>(transport, rank, size, settings));
      cards.push_back(nodes_.back()->card());
    }
    for (auto& node : nodes_) node->meet(cards);
  }
  ~Cluster() {
    run([](Node& node) {
      node.engine().quiesce(node.context(), Deadline::after(Seconds(2)));
      node.leave();
    });
  }
  Node& operator[](int rank) { return *nodes_[rank]; }
  // All leave, and make another group.
  void meet_again(std::uint64_t id) {
    for (auto& node : nodes_) node->leave();
    meet(id);
  }
  // Requires: all have left.
  void meet(std::uint64_t id) {
    std::vector<transport::Card> cards;
    for (auto& node : nodes_) cards.push_back(node->card());
    for (auto& node : nodes_) node->meet(cards, id);
  }
  int size() const { return static_cast<int>(nodes_.size()); }
  // Calls the function for every rank, each in its thread.
  void run(const std::function<void(Node&)>& body) {
    std::vector<std::thread> threads;
    for (auto& node : nodes_) threads.emplace_back([&body, &node] { body(*node); });
    for (std::thread& each : threads) each.join();
  }

 private:
  std::vector<std::unique_ptr<Node>> nodes_;
};

inline std::shared_ptr<const engine::Recipe> recipe_of(const plan::Call& call, Node& node,
                                                       const char* algorithm,
                                                       std::uint64_t segment = 0,
                                                       std::uint64_t fingerprint = 11) {
  plan::Group group;
  group.rank = node.rank();
  group.size = node.size();
  auto recipe = std::make_shared<engine::Recipe>();
  recipe->plan = algorithm::find(call.collective, algorithm)->make(call, group, {segment});
  recipe->element_bytes = dtype::size_of(call.type);
  recipe->type = call.type;
  recipe->op = call.op;
  recipe->reduce = dtype::reduce(call.type, call.op);
  recipe->reduce_many = dtype::reduce_many(call.type, call.op);
  recipe->fingerprint = fingerprint;
  recipe->moves = !collective::find(call.collective).reduces;
  recipe->what = "call " + std::to_string(fingerprint);
  engine::finish_recipe(*recipe);
  return recipe;
}

}  // namespace hccomm::test
