// SPDX-License-Identifier: Apache-2.0
//
// The cards opened through libfabric: on each one reliable-datagram endpoint that all links of the
// process share, its completion queue, and the registered memory. All that is sent is written into
// the receiver's inbox, or straight to where it has said that a message shall lie, with a number as
// immediate data; so no receive is ever posted, and the depth of a provider's queues does not limit
// how many peers there are.
#pragma once

#include <sys/uio.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "transport/ofi/arrived.hpp"
#include "transport/ofi/offer.hpp"
#include "transport/ofi/peer.hpp"
#include "transport/ofi/provider.hpp"
#include "transport/ofi/short_lock.hpp"
#include "transport/transport.hpp"

struct fi_cq_data_entry;

namespace hccomm::transport::ofi {

// Owns:   all that libfabric gave out, the pool, and a thread that keeps things moving while
//         nobody polls: providers move data only when they are asked.
// Thread: any; one mutex guards it all, and is held for no longer than a look at the queue.
// Fails:  open() and admit() give the reason; later errors are the peer's (Peer::failure).
class Fabric {
 public:
  static Result<std::shared_ptr<Fabric>> open(std::vector<Choice> choices);
  ~Fabric();

  const std::string& provider() const { return rails_.front()->choice.provider; }
  bool over_sockets() const;
  std::string domains() const;
  // What has gone over which rail, in large messages; "" where there is one.
  std::string rails_used(Peer& peer);
  const Library& library() const { return *rails_.front()->choice.library; }

  // A peer to be: its number, slots and ring are there. forget() where nothing comes of it.
  Result<Peer*> admit(Offer& mine);
  Status introduce(Peer& peer, const Offer& mine, const Offer& theirs);
  // Sends the hello through the fabric, on each lane. False: refused on one where theirs has come.
  bool greet(Peer& peer);
  unsigned met(Peer& peer, unsigned& lanes);  // on how many of them the peer's has come
  void forget(Peer& peer);
  // From now on the control connection is ours.
  void adopt(Peer& peer, UniqueFd control, std::string name);

  // What a link does. send_*: Done when posted; the payload of what borrows is read until
  // borrowed() falls to zero.
  Progress send_eager(Peer& peer, const wire::Header& header, const std::byte* payload);
  Progress send_part(Peer& peer, const iovec* parts, int count, std::size_t bytes);
  // All that is left of a frame in pieces; `sent` counts its bytes, with the header.
  Progress send_pieces(Peer& peer, const wire::Header& header, const std::byte* payload,
                       std::size_t& sent);
  unsigned borrowed(Peer& peer);

  // The peer may write the message at `data`, and does unless it is late; reclaim() ends that.
  void expect(Peer& peer, const wire::Header& which, std::byte* data, std::size_t bytes,
              bool on_device);
  // Asks the peer to write no more: of all messages of the operation; nullptr: of any.
  void release(Peer& peer, const wire::Header* of);
  // Nobody writes there any more when it returns.
  void reclaim(Peer& peer, const wire::Header* of);
  // The grant by which the whole frame may be written in its place; -1: none.
  int claim(Peer& peer, const transport::Outgoing& frame);
  bool awaited(Peer& peer, const wire::Header& which, std::uint64_t bytes);  // all of it
  // The next piece of the frame; adds its size to `sent`. Done too when the peer wants no more.
  Progress send_direct(Peer& peer, unsigned slot, const transport::Outgoing& frame,
                       std::size_t& sent);
  void advertised(Peer& peer, const Arrived& arrived);
  Landed landed(Peer& peer, const Arrived& arrived);
  void came(Peer& peer, const wire::Header& header);  // a frame by another way

  bool ready(Peer& peer);  // something is next in order, or the peer has failed
  // Takes back what `arrived` holds and gives the next. look: reads the queue where nothing is.
  bool next(Peer& peer, Arrived& arrived, bool look);
  void take_back(Peer& peer, Arrived& arrived);
  void listen(Peer& peer);  // looks at the control connection
  Status failure(Peer& peer);
  void fail(Peer& peer, Status why);
  void leave(Peer& peer);  // the link is gone

  // Memory that the program has registered, until the matching call.
  Status keep(std::byte* data, std::size_t bytes);
  void keep_no_more(const std::byte* data, std::size_t bytes) noexcept;
  bool reaches_devices() const { return reaches_devices_; }  // all cards do
  Status keep(const DeviceMemory& memory);
  void keep_no_more(const DeviceMemory& memory) noexcept;

  int fd() const { return poller_.get(); }
  bool sleep(Peer& peer);  // false: something has come
  void wake();

 private:
  Fabric() : pool_(rails_), cache_(rails_) {}
  Status open_all(std::vector<Choice> choices);
  Status open_bell();
  void close_all() noexcept;

  void progress();
  void completed(const fi_cq_data_entry& entry);
  void arrived(Immediate what);
  void numbered(Peer& peer, Immediate what);
  void taken(Peer& peer, Arrived& arrived);
  void queue_error(Rail& rail);
  void finished(Op& op);
  bool tell(Op& op);
  bool write_again(Op& op);
  void suspect(Status why);
  void judge();
  Op* sender(std::vector<Op*>& idle);
  Status make_senders(unsigned count, std::size_t bytes, std::vector<Op*>& into);
  bool inject(Peer& peer, Kind kind, std::uint16_t value, unsigned lane);
  Progress write_small(Peer& peer, Kind kind, const iovec* parts, int count);
  Entry* readable(const std::byte* payload, std::size_t bytes);
  void park(Op& op);
  void under_way(Peer& peer, Op& op);
  Status describe(const Block& inbox, Offer& mine);
  void free_grant(Peer& peer, Grant& grant);
  void ask_back(Peer& peer, Grant& grant);
  void reuse(Peer& peer);
  bool is_settled(Peer& peer, const Arrival& next);
  static unsigned come_for(Peer& peer, unsigned slot);
  void read_back(Peer& peer, const Grant& grant);
  Entry* source(const transport::Outgoing& frame, std::size_t from, std::size_t bytes);
  void take_away(Peer& peer, std::span<Grant* const> grants, std::unique_lock<ShortLock>& lock);
  void answer_revoke(Peer& peer, const Note& note);
  void noted_revoked(Peer& peer, const Note& note);
  void settle(Peer& peer);
  void announce_sleep(Peer& peer);
  void ring(Peer& peer);
  Progress posted(Peer& peer, Op* op, ssize_t outcome, const char* what);
  // Nothing is sent to it any more: to write to a peer that is gone makes providers connect anew.
  bool shut(const Peer& peer) const { return ended_ || peer.heard_bye || peer.lost(); }
  bool in_order(Peer& peer) {
    const Arrival& next = peer.slot_of(peer.expected);
    return next.here && (!next.piece || all_pieces(peer));
  }
  static bool all_pieces(Peer& peer);
  static void take_pieces(Peer& peer);
  void listen_to(Peer& peer);
  void noted(Peer& peer, const Note& note);
  void say(Peer& peer, const Note& note);
  void answer_bye(Peer& peer);
  void drop(Peer& peer);
  static void end_all() noexcept;
  void tend() noexcept;
  bool tend_once();

  ShortLock mutex_;  // guards all that follows
  Rails rails_;      // constant once it is open
  UniqueFd poller_, bell_, timer_;
  Pool pool_;
  Cache cache_;
  std::multimap<std::pair<const std::byte*, std::size_t>, Entry*> kept_, device_kept_;
  std::map<std::string, Status> refused_;  // devices whose memory a card has refused, and why
  std::set<std::string> reached_;          // devices of which some has been registered
  Block scratch_;                          // bytes that may be sent
  std::deque<Op> ops_;
  std::vector<Op*> senders_;     // idle
  std::vector<Op*> copiers_;     // idle, with room for a ring slot
  std::vector<Op*> untold_;      // written, but the peer has not been told; has room for all
  bool local_ = false;           // what is sent must lie in registered memory
  bool gathers_ = true;          // header and payload may lie apart
  bool reaches_devices_ = true;  // constant once it is open
  std::map<std::uint32_t, std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> by_id_;
  std::uint32_t next_id_ = 0;
  std::uint64_t polls_ = 0;
  bool asleep_ = false;
  long nap_us_ = 0;
  Status suspicion_;
  Clock::time_point suspected_at_{};
  std::condition_variable_any stir_;       // the keeper has something to do
  bool stopping_ = false, ended_ = false;  // the process ends: libfabric may be gone at any moment
  std::thread keeper_;
};

}  // namespace hccomm::transport::ofi
