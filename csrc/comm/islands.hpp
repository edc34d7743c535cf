// SPDX-License-Identifier: Apache-2.0
//
// Which calls of a communicator go over islands. The ranks find that out among themselves: no rank
// knows where the others' arrays lie, so at the first collective, and at later ones of doubling
// number, each tells what device it uses, and all compute the same islands. From then on calls that
// islands serve go through archipelago.hpp, the others hccomm's own way.
//
// Ranks decide alike because they decide by the order of calls: while one is being decided or done,
// later ones wait behind it.
#pragma once

#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/json.hpp"
#include "comm/archipelago.hpp"
#include "comm/communicator.hpp"
#include "native/islands.hpp"

namespace hccomm::comm {

// Owns:   the archipelago once there is one, a thread that works off the calls in order.
// Thread: start() and run() as Communicator's; describe() from any.
// Fails:  a call that fails, fails the communicator, unless HCCOMM_ISLAND_FAILURE lets hccomm
//         repeat it.
class Islands {
 public:
  explicit Islands(Communicator& parent);
  ~Islands();  // Requires: quiet, or the parent is poisoned.
  Islands(const Islands&) = delete;
  Islands& operator=(const Islands&) = delete;

  // What a rank's card says: the kinds whose library it may have, and its label.
  static std::string hint(int rank);
  // What that card said, or nullopt: its build knows nothing of islands.
  static std::optional<std::string> hint_of(const transport::Card& card);
  // Whether ranks with these cards may form an island at all.
  static bool possible(const std::vector<transport::Card>& cards);

  // The handle of a call that goes over islands or waits behind one; nullptr: it goes its own way.
  engine::Operation* start(const Request& request);
  // Likewise, and waits for it; nullopt: it goes its own way.
  std::optional<Status> run(const Request& request);
  // Collective: this rank's arrays lie there. Throws alike on all ranks where there is no island.
  void use(const DeviceBuffer& mine);
  Json describe();
  // How arrays go between this rank and another, and why not better.
  Json describe_pair(int rank, const std::string& here, const std::string& transport);

 private:
  enum class State { Unsettled, On, Off };
  enum class Way { Own, Agree, Over };
  struct Job {
    Request request;
    Deadline deadline;
    std::optional<Way> way;  // nullopt: to be judged when its turn comes
    Gate gates[2];           // the caller's streams at the call
    Status trouble;          // what went wrong before its turn
    engine::Operation* handle = nullptr;
    std::uint64_t tag = 0;
  };

  // islands.cpp
  Way judge(const plan::Call& call);
  bool idle() const { return !busy_ && jobs_.empty(); }
  Job make_job(const Request& request, std::uint64_t seen);
  void note_place(const Request& request);
  void gate(Job& job);
  static void drop_gates(Job& job);
  Message to_self(const Job& job) const;
  void serve();
  Status execute(Job& job);
  Status attempt(Job& job, Watch& watch);
  void finish(Job& job, const Status& status);
  // islands_run.cpp
  Status own_way(Job& job, Watch& watch);
  Status over(Job& job, Watch& watch);
  Status cause(const Status& mine, Watch& watch);
  Status save(const Request& request, std::vector<std::byte>& saved, bool back, Watch& watch);
  Status vote(const Status& mine, std::uint64_t fingerprint, bool& failed, Watch& watch);
  Status share_rates(Watch& watch);
  // islands_agree.cpp
  Status agree(Job* job, Watch& watch);
  Status share(const Status& mine, Watch& watch);
  Status join(const Chart& chart, const engine::Where& where, std::unique_ptr<native::Group>& group,
              Watch& watch);
  Status meet(const Chart& chart, const engine::Where& where, std::unique_ptr<native::Group>& group,
              Watch& watch);
  Communicator& everyone(std::unique_ptr<Communicator>& which, const char* name);
  Communicator& talk() { return everyone(talk_, "islands.talk"); }
  Communicator& alarm() { return everyone(alarm_, "islands.alarm"); }
  void turn_off(const std::string& why);

  Communicator& parent_;
  const std::string failure_;  // HCCOMM_ISLAND_FAILURE
  std::unique_ptr<Communicator> talk_, alarm_, members_;
  std::uint64_t overs_ = 0;
  bool fails_ = false;  // HCCOMM_ISLAND_FAILURE=fail on some rank

  std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  State state_ = State::Unsettled;
  std::unique_ptr<Archipelago> archipelago_;
  std::unique_ptr<Archipelago> broken_;       // of no use any more; ends with this
  bool keeps_ = false;                        // a call that fails is repeated
  std::vector<native::Member> members_told_;  // by rank, once they have agreed
  std::string why_ = "no call of these ranks has shown where their arrays lie";
  DeviceBuffer place_;      // where this rank's arrays lie, as far as they were seen
  std::uint64_t seen_ = 0;  // calls that may settle it
  std::list<Job> jobs_;     // that stay where they are until their turn
  bool busy_ = false, stopping_ = false;
  std::uint64_t next_tag_ = std::uint64_t{1} << 63;
  std::thread worker_;
};

}  // namespace hccomm::comm
