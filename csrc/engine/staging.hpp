// SPDX-License-Identifier: Apache-2.0
//
// Device buffers in the engine: each has a mirror in pinned host memory, and plans and messages run
// over the mirrors. Copies to and from the device run piece by piece beside the wire, so that one
// piece is copied in while another is on its way and a third is reduced. Nothing of this is seen by
// the peers. stage_plan.hpp says what is copied when; staged.cpp joins it to operations.
//
// A copy is enqueued once the caller's stream has reached the call (an event tells); our streams
// wait for nobody, so no operation holds up another.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "engine/lane.hpp"
#include "engine/parts.hpp"
#include "engine/stage_plan.hpp"
#include "engine/staged.hpp"

namespace hccomm::engine {

// Memory of a device as cards are told of it. Unavailable where handles are no addresses.
Result<transport::DeviceMemory> for_cards(const Where& where, std::uint64_t bytes);

// Where a step's bytes lie in its memory on a device.
Cell cell_of(const Operation& op, std::uint32_t step);
// What a peer is told of exported memory of that device.
std::string offer_of(const Device& device, const device::Export& exported);

// What staging tells the engine; called inside begin() and progress().
class StagingClient {
 public:
  virtual void opened(Staged& staged) = 0;  // the caller's streams have reached the call
  virtual void copied_in(Staged& staged, const Cell& cell) = 0;
  virtual void carried(Staged& staged, bool in, const Cell& cell) = 0;  // a late copy
  virtual void fetched(Staged& staged, const Cell& cell) = 0;           // from a peer's memory
  virtual void copied_out(Staged& staged) = 0;                          // the last one
  virtual void copy_failed(Staged& staged, const Status& why) = 0;
  virtual void copies_over(Staged& staged) = 0;  // the last one in flight of one that is `over`

 protected:
  ~StagingClient() = default;
};

// Owns:   devices, their streams, events and pinned memory, and every Staged.
// Thread: prepare() and recycle() from any, without the engine's lock; the rest under it.
// Fails:  prepare() gives a Status that names device and call; later failures go to copy_failed().
class Staging {
 public:
  Staging(StagingClient& client, Dialer& cards, const Settings& settings)
      : client_(client),
        cards_(cards),
        pool_bytes_(settings.staging_bytes),
        segment_bytes_(settings.staging_segment),
        in_place_bytes_(settings.in_place_bytes),
        sums_(settings.check_copies ? Sums::Host : settings.staging_sums),
        checks_(settings.check_copies),
        ipc_(settings.device_ipc) {}
  ~Staging();  // Requires: no operation is staged.
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  Result<Staged*> prepare(const Recipe& recipe, const Buffers& buffers, const Reaches& reaches);
  Result<Staged*> prepare(const Where& where, std::uint64_t bytes, bool sent,
                          const Reaches& reaches);
  // One that never began, or whose copies are over.
  void recycle(Staged& staged);

  Status begin(Staged& staged, Operation& operation);
  // Bytes of memory 0 have been written, at an offset from the plan's Output.
  void written(Staged& staged, std::uint64_t offset, std::uint64_t bytes);
  // The cells within [begin, begin + bytes) of memory 0, once written, are copied from `data`, in a
  // peer's memory. False: the device's runtime does not copy from there.
  bool fetch(Staged& staged, std::uint64_t begin, std::uint64_t bytes,
             const transport::ViewPtr& view, const std::byte* data);
  // Lets go of memory of peers that no operation uses and no link knows: theirs who have gone.
  void forget_unused();
  bool sees_any();  // memory of peers
  // What peers are told of our devices, in the order of their first use.
  std::vector<std::string> passports();
  // The open device whose memory peers may open, if it is one.
  const Device* exporter(const Where& where);
  // A peer's allocation, opened for the device, and kept so.
  Result<transport::ViewPtr> open_abroad(Device& device, const void* peer,
                                         const std::string& offer);
  // The cell is copied from there, once the caller's stream has left it.
  void take_across(Staged& staged, Cell cell, const transport::ViewPtr& view, std::uint64_t offset);
  // Closes what has long not been used, or all of a peer that `lives` does not know.
  void close_abroad(const std::function<bool(const void*)>& lives);
  // Bytes that were to move in place are copied all the same, to the mirror or back.
  void carry(Staged& staged, bool in, Cell cell);
  // Likewise a whole message: from now on its plan has copies.
  void stage_after_all(Staged& staged, std::uint64_t bytes, bool sent);
  bool copied_back(const Staged& staged) const {
    return staged.landed_out == staged.plan->out.size();
  }
  // Enqueues nothing more of it. True when no copy is in flight; else copies_over() follows.
  bool cancel(Staged& staged);
  // The operation ends although copies are in flight that do not end: nothing of theirs is reused
  // before they do.
  void abandon(Staged& staged) { staged.operation = nullptr; }

  bool progress();  // true when something moved
  bool busy() const { return !gated_.empty() || !active_.empty(); }
  std::chrono::nanoseconds nap();  // how long the driver may sleep while busy()
  // Of each device in use, for describe().
  struct Report {
    std::string device, library, text;
    bool direct = false;  // cards have reached the last buffer that they were told of
  };
  std::vector<Report> report();

 private:
  static constexpr int kShortestNap = 20, kFlyingNap = 100, kLongestNap = 500;  // microseconds

  // staging_prepare.cpp
  Result<Device*> device_of(const Where& where);
  Result<std::unique_ptr<Device>> open(const Where& where) const;
  static void close(Device& device);
  Staged& allocate();
  Status locate(Staged& staged, int memory, const Where& where);
  void mirror(Staged& staged, int memory, std::uint64_t bytes, bool pinned);
  bool worth_placing(const Reach& cards, std::uint64_t bytes) const {
    return in_place_bytes_ != 0 && bytes >= in_place_bytes_ && !cards.ranks.empty();
  }
  bool enroll(Staged& staged, int memory, std::uint64_t bytes);
  void expel(Staged& staged);
  bool export_memory(Staged& staged, int memory, std::uint64_t bytes);
  void issue_passport(Device& device, std::string_view kind) const;
  std::string report_ipc(const Device& device) const;
  std::shared_ptr<const StagePlan> place(Staged& staged, const Recipe& recipe, StageKey& key,
                                         const std::uint64_t* bytes);
  const SumTrial& trial_of(Device& device, const Recipe& recipe, const device::Reduction& how);
  bool sums_pay(const Staged& staged, const Recipe& recipe, const StagePlan& plan);
  std::string report_sums(const Device& device) const;
  std::uint64_t segment_of(const Device& device, std::uint64_t bytes, bool pinned) const;
  std::shared_ptr<const StagePlan> stage_plan_of(const Recipe& recipe, const StageKey& key);
  // staging.cpp
  Device* device_at(std::size_t place);  // nullptr: there are no more
  static bool sees(Device& device, const transport::ViewPtr& view);
  bool gate_open(Staged& staged, bool& moved);
  bool open_gates();
  void activate(Device& device);
  void wait_in(Staged& staged);
  void wait_out(Staged& staged);
  Status enqueue(Device& device, Lane& lane, Staged& staged, std::uint32_t index);
  bool pump(Device& device, Lane& lane);
  bool poll(Device& device, Lane& lane);
  static Status proved(const Device& device, const Lane& lane, const Copy& copy);
  void land(Device& device, Lane& lane, Copy copy, const Status& status);
  static void learn(Lane& lane);

  StagingClient& client_;
  Dialer& cards_;
  const std::uint64_t pool_bytes_, segment_bytes_, in_place_bytes_;
  const Sums sums_;  // on the host where copies are checked: what a sum has read cannot be
  const bool checks_, ipc_;
  std::vector<Staged*> gated_;   // wait for the caller's streams
  std::vector<Device*> active_;  // have copies waiting or in flight
  int nap_us_ = kShortestNap;
  bool progressing_ = false;

  std::mutex opening_;  // a device is being opened; never taken with mutex_ held
  std::mutex mutex_;    // guards the rest; a leaf
  std::vector<std::unique_ptr<Device>> devices_;
  std::deque<Staged> storage_;
  std::vector<Staged*> free_;
};

}  // namespace hccomm::engine
