// SPDX-License-Identifier: Apache-2.0
//
// Runs operations over channels. There is one engine per process endpoint, shared by all its
// communicators. Starting never blocks; who drives is ruled by docs/threading.md.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <set>
#include <thread>
#include <unordered_map>

#include "base/unique_fd.hpp"
#include "engine/channel.hpp"
#include "engine/context.hpp"
#include "engine/staging.hpp"

namespace hccomm::engine {

// Owns:   channels, operations, the service thread.
// Thread: every public function from any thread. One mutex guards everything below; it is released
//         while a waiter sleeps, and callbacks run outside it.
// Fails:  operations carry their Status; std::bad_alloc from a call that has not begun (surely).
class Engine final : private StagingClient {
 public:
  Engine(Dialer& dialer, std::string uuid, Settings settings);
  ~Engine();  // Requires: no context is left. Stays where it is.

  // Joins and leaves of groups. channels and who are filled in by add(). `say_bye` tells the peers.
  void add(Context& context, const std::vector<transport::Card>& cards);
  void remove(Context& context, Deadline deadline, bool say_bye);
  bool quiesce(Context& context, Deadline deadline);  // false: operations are still in flight
  // Fails all operations of the context, present and future; `tell` floods the reason to its ranks.
  void poison(Context& context, Status why, bool tell);
  Status trouble(const Context& context);               // what it was poisoned with, or Ok
  std::string dump(Context& context);                   // the flight recorder as JSON
  std::vector<int> lost_ranks(const Context& context);  // lost to it, or gone from it
  // Starts a collective; the handle returned holds one reference.
  Operation* start(Context& context, Job job, Follow follow);
  Operation* start(Context& context, OperationKind kind, const Parcel& parcel);
  Status run(Context& context, Job job);  // start() and wait() without a handle
  // Runs the context's last collective again, if `call` is it: all has been checked and looked up.
  // False where it is not, or the context has failed; nothing has happened then.
  bool repeat(Context&, const Simple& call, double factor, Seconds timeout, Status& outcome);
  void forget_last(Context& context);
  Status exchange(Context& context, const Parcel& out, const Parcel& in, int& source);
  Status wait(Operation& operation, Deadline deadline);  // drives; Timeout: it is still running
  bool test(Operation& operation);
  Seconds took(const Operation& operation);  // one that is done; 0: it has been forgotten
  // Calls `function` once the operation is done, outside the lock; at once when it is.
  void on_done(Operation& operation, void (*function)(void*, int), void* context);
  void release(Operation& operation);
  void hold(Operation& operation);        // others work on its buffers: should it fail, it ends
  void let_go(Operation& operation);      // with this, or 5 s later
  bool reserve(const std::string& uuid);  // transport::Acceptor. False: linked, or we dial
  void accepted(const std::string& uuid, std::unique_ptr<transport::Link> link);
  void abandoned(const std::string& uuid);
  void dialed(const std::string& uuid, Result<std::unique_ptr<transport::Link>> link);
  std::string describe(const Context& context, int rank);  // its link: "tcp ...", "lost: why"
  std::vector<Staging::Report> devices() { return staging_.report(); }  // used so far
  // Messages to and from that rank by IPC; `why_not`: why others will not go so.
  std::uint64_t went_across(const Context& context, int rank, std::string& why_not);
  void share_machine(int ranks, int cores);  // more ranks than cores yield at once
  // Async-signal-safe: every operation fails with Aborted at the next look.
  void abort_from_signal() noexcept { abort_word_.store(1, std::memory_order_release); }

 private:
  friend class Channel;
  class Guard;
  // engine.cpp
  Channel& channel_of(const transport::Card& card);
  Channel& sound_channel_of(const transport::Card& card);
  void need(Channel& channel);
  void attach(Channel& channel, std::unique_ptr<transport::Link> link);
  Operation& fresh(std::size_t count = 1);
  void enlist(Operation& op, Context& context, OperationKind kind, Seconds timeout);
  void finish(Operation& op, Status status), finish(Operation& op), close(Operation& op);
  void drop_reference(Operation& op);
  Operation* handle(Operation& op, Follow follow);
  // collective.cpp
  Operation& begin_collective(Context& context, const Job& job, Result<Staged*>* staged);
  Status run_here(Guard& guard, Context& context, const Job& job, Result<Staged*>* staged);
  void run_step(Operation& op, std::uint32_t step);
  void issue_send(Operation& op, std::uint32_t step), issue_opens(Operation& op);
  void issue_open(Operation& op, std::size_t inlet);
  void unpark(Channel& channel);
  void complete(Operation& op, std::uint32_t step), drain();
  void receive(Context& context, int source, const Header& header, const std::byte* payload);
  Kept keep(int source, const Header& header, const std::byte* payload);
  void receive_early(Operation& op);
  bool agrees(Context& context, int source, const Header& header);
  void receive_control(Context&, Operation&, int source, const Header&, const std::byte* payload);
  bool fits(Operation& op, std::uint32_t step, const Header& header, int source);
  void put(Operation&, std::uint32_t step, std::uint64_t at, const std::byte*, std::uint64_t);
  void apply(Operation&, std::uint32_t step, std::uint64_t at, const std::byte*, std::uint64_t);
  void came(Operation& op, std::uint32_t step, std::uint64_t bytes);
  // copying.cpp
  void start_pull(Channel&, Operation& op, std::uint32_t step, std::uint64_t address, bool shared);
  bool advance(Pull& pull, bool& moved), advance(Push& push);
  bool pulled(Channel& channel, Operation& op, std::uint32_t step, std::uint64_t bytes);
  void receive_written(Operation& op, std::uint32_t step, int source, const Header& header);
  void start_push(const Push& push, const Header& ready);
  bool copy_large();
  void sent(Operation& op, std::uint32_t step);
  void stream(Channel& channel, Operation& op, std::uint32_t step);
  void cannot_copy(Operation& op, Channel& channel, const Status& why);
  // tagged.cpp
  void issue_tagged(Operation& op), want(Operation& op), dispatch(Operation& op);
  Operation* wanted(Context& context, int source, const Header& header);
  bool suits(Context& context, Operation& op, int source, const Header& header);
  void receive_tagged(Context& context, int source, const Header& header, const std::byte* payload);
  void match(Context&, Operation& op, int source, const Header&, const std::byte* payload);
  void receive_tagged_control(Context&, int source, const Header&, const std::byte* payload);
  Operation& enlist_message(Context& context, OperationKind kind, const Parcel& parcel);
  Operation& begin_message(Context&, OperationKind kind, const Parcel&, Result<Staged*>* staged);
  Operation* send_now(Context& context, const Parcel& parcel);
  Status exchange_staged(Context& context, const Parcel& out, const Parcel& in, int& source);
  Status finish_exchange(Guard& guard, Operation* sends, Operation& receives, int& source);
  bool send_held(Operation& op);
  void arrived(Operation& op, std::uint64_t at, std::uint64_t bytes);
  // staged.cpp, placed.cpp, viewed.cpp, across.cpp: buffers on devices
  bool begin_staged(Operation& op, Result<Staged*>& staged);
  void end(Operation& op), linger(Operation& op, const Status& status);
  bool leave_device(Operation& op, const Status& status);
  void device_failed(Operation& op, const Status& why), give_up(Operation& op);
  Reaches reach(Context& context, std::uint64_t bytes, const Where& one, const Where& other = {});
  void tell_devices(const Context& context);
  void offer_device(Operation& op, std::uint32_t step, Channel& channel);
  void start_across(Channel&, Operation&, std::uint32_t step, std::uint64_t at, const std::string&);
  void send_placed(Operation& op, std::uint32_t step, Channel& channel, const Header& header);
  void landed(Context& context, int source, const Header& header);
  bool fetch(Operation& op, std::uint32_t step, const transport::ViewPtr&, std::uint64_t address);
  void fetched(Staged& staged, const Cell& cell) override;
  void more_here(Context& context, Operation& op, int source, const Header& header);
  void grown(Context& context, Operation& op, std::uint32_t step, int source, const Header& header);
  void opened(Staged& staged) override;
  void carried(Staged& staged, bool in, const Cell& cell) override;
  void copied_in(Staged& staged, const Cell& cell) override;
  void copied_out(Staged& staged) override, copies_over(Staged& staged) override;
  void copy_failed(Staged& staged, const Status& why) override;
  // failure.cpp
  void poison_locked(Context& context, Status why, bool tell);
  void go_on_without(Context& context, const Status& why);
  void fail(Operation& op, const Status& why);
  void channel_broken(Channel& channel, const Status& why);
  void cannot_dial(Channel& channel, const Status& why), probe(Operation& op), lament();
  void tell_damage(Channel& channel, const Status& why), fell_silent(Channel& channel);
  void lost(Context& context, int rank), leave(Context& context);
  void retire(Channel& channel), drop_unused(Channel& channel);
  void peer_gone(Context& context, int rank), miss_the_gone(Operation& op);
  void say_bye_to(Context& context, int rank);
  void differs(Context& context, std::uint64_t mine, int source, const Header& header);
  void check_deadlines(Clock::time_point now);
  void look_around(Guard& guard, Clock::time_point now);
  void surely(auto&& body);
  void receive_absent(Context& context, const Header& header, const std::byte* payload);
  std::string dump_locked(Context& context);
  // drive.cpp
  bool progress();
  void flush(), call_back(Guard& guard), let_in(Guard& guard);
  void drive(Guard& guard, const Operation* until, Deadline deadline);
  bool sleep(Guard& guard, Deadline deadline);
  void serve(), tick(Clock::time_point now), look_for_the_silent(Clock::time_point now);
  void start_service(), ring_service(), arm_service();

  Dialer& dialer_;
  const std::string uuid_;
  Settings settings_;
  std::mutex mutex_;                                // guards everything below, except the atomics
  std::atomic<int> abort_word_{0}, contenders_{0};  // 1: aborted; threads that want the mutex
  std::condition_variable done_;                    // an operation is done, or the driver has left
  int waiters_ = 0;                                 // threads in done_
  bool driving_ = false, asleep_ = false;  // a waiter drives; links were told that we sleep
  Waiting waiting_;                        // of a driver that finds nothing
  Blocks blocks_;                          // outlives all that keeps frames
  std::unordered_map<std::string, std::unique_ptr<Channel>> channels_;  // by uuid; none is broken
  std::vector<std::unique_ptr<Channel>> retired_;    // broken, of contexts that are not closed yet
  std::vector<std::unique_ptr<Channel>> graveyard_;  // dropped, maybe still on the call stack
  std::vector<Channel*> up_;                         // those with a link
  std::set<std::string> reserved_;                   // uuids whose link is on its way to us
  std::vector<std::pair<Clock::time_point, Channel*>> late_dials_;
  std::vector<Context*> contexts_;
  LastClosed closed_;  // contexts: their late frames are dropped
  std::deque<Operation> storage_;
  std::vector<Operation*> free_, running_, looked_at_;
  std::vector<std::pair<Operation*, std::uint32_t>> ready_;     // steps to run, last in first out
  bool draining_ = false, stopping_ = false, starved_ = false;  // last: memory was refused
  Line<Pull> pulls_;
  Line<Push> pushes_;
  std::atomic<bool> reaches_devices_{false}, pulls_any_{false};  // links have been seen that do
  std::vector<std::byte> bounce_;  // pulled data on its way into a reduction
  Line<Callback> callbacks_;
  UniqueFd poller_, bell_, service_bell_, service_timer_;
  Staging staging_;
  Clock::time_point armed_until_{}, next_look_{}, next_beat_{}, next_check_{};  // last: deadlines
  std::thread service_;  // started with the first link
};

}  // namespace hccomm::engine
