// SPDX-License-Identifier: Apache-2.0
//
// A card opened through libfabric: one reliable-datagram endpoint that all links of the process
// share, its completion queue, and the registered memory. All that is sent is written into the
// receiver's inbox, with a number as immediate data; so no receive is ever posted, and the depth of
// a provider's queues does not limit how many peers there are.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "transport/ofi/peer.hpp"
#include "transport/ofi/provider.hpp"
#include "transport/transport.hpp"

struct fid_av;
struct fid_cq;
struct fi_cq_data_entry;

namespace hccomm::transport::ofi {

// What one process tells the other about itself before they meet on the fabric.
struct Offer {
  std::uint32_t layout;  // of this struct and of peer.hpp
  std::uint32_t id;      // what the other's messages shall carry
  std::uint32_t eager_bytes, eager_slots;
  std::uint32_t slot_bytes, ring_slots;
  std::uint64_t inbox_address, eager_offset, ring_offset, key;
  std::uint32_t name_bytes;
  char name[260];  // the endpoint's
};

// A frame, or a part of one, that is next in order.
struct Arrived {
  Kind kind = Kind::Eager;
  std::byte* data = nullptr;
  std::size_t bytes = 0;  // of the whole slot
};

// Owns:   all that libfabric gave out, the pool, and a thread that keeps things moving while
//         nobody polls: providers move data only when they are asked.
// Thread: any; one mutex guards it all, and is held for no longer than a look at the queue.
// Fails:  open() and admit() give the reason; later errors are the peer's (Peer::failure).
class Fabric {
 public:
  static Result<std::shared_ptr<Fabric>> open(Choice choice);
  ~Fabric();

  const std::string& provider() const { return choice_.provider; }
  const std::string& domain() const { return choice_.domain; }
  const Library& library() const { return *choice_.library; }

  // A peer to be: its number, slots and ring are there. forget() where nothing comes of it.
  Result<Peer*> admit(Offer& mine);
  Status introduce(Peer& peer, const Offer& theirs);
  void greet(Peer& peer);  // sends the hello through the fabric
  bool met(Peer& peer);
  void forget(Peer& peer);
  // From now on the control connection is ours.
  void adopt(Peer& peer, UniqueFd control, std::string name);

  // What a link does. send_*: Done when posted; the payload of what borrows is read until
  // borrowed() falls to zero.
  Progress send_eager(Peer& peer, const wire::Header& header, const std::byte* payload);
  Progress send_part(Peer& peer, const iovec* parts, int count, std::size_t bytes);
  unsigned borrowed(Peer& peer);
  bool ready(Peer& peer);  // something is next in order, or the peer has failed
  bool next(Peer& peer, Arrived& arrived);
  void take_back(Peer& peer, const Arrived& arrived);
  void listen(Peer& peer);  // looks at the control connection
  Status failure(Peer& peer);
  void fail(Peer& peer, Status why);
  void leave(Peer& peer);  // the link is gone

  int fd() const { return poller_.get(); }
  bool sleep(Peer& peer);  // false: something has come
  void wake();

 private:
  explicit Fabric(Choice choice) : choice_(std::move(choice)) {}
  Status open_all();
  Status open_queue();
  Status open_endpoint();
  void close_all() noexcept;
  Status check(int err, const char* what) const;

  void progress();
  void completed(const fi_cq_data_entry& entry);
  void arrived(Immediate what);
  void queue_error();
  void finished(Op& op);
  void suspect(const Status& why);
  void judge();
  Op* sender(std::vector<Op*>& idle);
  Status make_senders(unsigned count, std::size_t bytes, std::vector<Op*>& into);
  bool inject(Peer& peer, Kind kind, std::uint16_t value);
  void settle(Peer& peer);
  Progress posted(Peer& peer, Op* op, ssize_t outcome, const char* what);
  // Nothing is sent to it any more: to write to a peer that is gone makes providers connect anew.
  bool shut(const Peer& peer) const {
    return ended_ || peer.over || peer.heard_bye || !peer.failure.ok();
  }
  bool in_order(Peer& peer) { return peer.slot_of(peer.expected).here; }
  void listen_to(Peer& peer);
  void noted(Peer& peer, const Note& note);
  void say(Peer& peer, const Note& note);
  void answer_bye(Peer& peer);
  void drop(Peer& peer);
  static void end_all() noexcept;
  void keep() noexcept;
  bool keep_once();

  Choice choice_;
  std::mutex mutex_;  // guards all that follows
  fid_fabric* fabric_ = nullptr;
  fid_domain* domain_ = nullptr;
  fid_ep* endpoint_ = nullptr;
  fid_av* addresses_ = nullptr;
  fid_cq* queue_ = nullptr;
  UniqueFd poller_, bell_, timer_;
  Pool pool_;
  Block scratch_;  // bytes that may be sent
  std::deque<Op> ops_;
  std::vector<Op*> senders_;  // idle
  std::vector<Op*> copiers_;  // idle, with room for a ring slot
  bool copies_ = false;       // what is sent must lie in registered memory
  std::map<std::uint32_t, std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> by_id_;
  std::uint32_t next_id_ = 0;
  std::uint64_t polls_ = 0;
  bool asleep_ = false;
  long nap_us_ = 0;
  Status suspicion_;
  Clock::time_point suspected_at_{};
  std::condition_variable stir_;  // the keeper has something to do
  bool stopping_ = false;
  bool ended_ = false;  // the process ends: libfabric may be gone at any moment
  std::thread keeper_;
};

}  // namespace hccomm::transport::ofi
