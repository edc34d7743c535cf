// SPDX-License-Identifier: Apache-2.0
//
// One rank's process on the network: its transports, listening, and the engine over them. All
// communicators of a process share one endpoint, so links belong to pairs of processes.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.hpp"
#include "transport/transports.hpp"

namespace hccomm::comm {

// Bits of Card::choices that say which setting differs; the rest of it is a hash.
inline constexpr std::uint64_t kChecksFrames = 1, kEncrypts = 2, kChecksCopies = 4,
                               kBuiltIn = 0xffffff0000000000;  // of what is built in

// A transport that this process could not open, or a pair could not use, and why.
struct Refusal {
  std::string transport;
  std::string reason;
};

// The built-ins that HCCOMM_TRANSPORTS allows, best first.
std::vector<const transport::Builtin*> allowed_transports();

// Owns:   the engine, the transports, and the threads that dial.
// Thread: any.
// Fails:  the constructor throws Unavailable when no transport can be opened at all.
class Endpoint final : private engine::Dialer, private transport::Acceptor {
 public:
  // local_ranks: how many ranks share this machine, to tell whether they outnumber the cores.
  Endpoint(std::string job, std::string key, bool encrypts = false);
  ~Endpoint();

  const std::string& job() const { return identity_.job; }
  const transport::Card& card() const { return card_; }
  const std::string& key() const { return identity_.key; }
  bool authenticated() const { return !identity_.key.empty(); }
  engine::Engine& engine() { return *engine_; }

  // Why each transport that is better than the one in use cannot serve this pair.
  std::vector<Refusal> refusals(const transport::Card& peer) const;
  // The transports, best first, that may serve this pair.
  std::vector<std::string> candidates(const transport::Card& peer) const;
  const std::vector<Refusal>& closed() const { return closed_; }  // transports that did not open

  // Tells the cards of all transports of memory (Transport::enroll). One that refuses undoes it.
  Status enroll(std::byte* data, std::size_t bytes);
  void expel(std::byte* data, std::size_t bytes) noexcept;
  Status enroll(const transport::DeviceMemory& memory) override;
  void expel(const transport::DeviceMemory& memory) noexcept override;

  // This process's endpoint, made at first use; the job is the first caller's. nullptr before.
  static std::shared_ptr<Endpoint> of_process();
  static Endpoint* peek() noexcept;  // the same for signal handlers: takes no lock
  static void set_of_process(std::shared_ptr<Endpoint> endpoint);
  // True in a child that was forked after an endpoint was made: nothing here works there.
  static bool forked() noexcept;

 private:
  Status dial(const transport::Card& peer) override;
  Result<std::unique_ptr<transport::Shared>> share(std::size_t bytes) override;
  bool reserve(const std::string& uuid) override { return engine_->reserve(uuid); }
  void accepted(transport::Accepted peer) override {
    engine_->accepted(peer.uuid, finished(std::move(peer.link)));
  }
  void abandoned(const std::string& uuid) override { engine_->abandoned(uuid); }
  Result<std::unique_ptr<transport::Link>> connect(const transport::Card& peer);
  std::unique_ptr<transport::Link> finished(std::unique_ptr<transport::Link> link) const;

  transport::Identity identity_;
  transport::Card card_;
  transport::Seal seal_ = transport::Seal::Nothing;  // HCCOMM_INTEGRITY
  std::unique_ptr<engine::Engine> engine_;
  std::vector<std::unique_ptr<transport::Transport>> transports_;  // best first
  std::vector<Refusal> closed_;
  struct Dial {
    std::thread thread;
    std::atomic<bool> over{false};
  };
  std::mutex dials_mutex_;  // guards dials_ and stopping_
  std::list<Dial> dials_;
  bool stopping_ = false;
  std::atomic<bool> ending_{false};  // the same, for threads that dial
};

}  // namespace hccomm::comm
