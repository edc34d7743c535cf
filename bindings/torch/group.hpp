// SPDX-License-Identifier: Apache-2.0
//
// The communicator of one process group.
#pragma once

#include <c10/core/Device.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "capi/hccomm.h"
#include "store.hpp"

namespace hccomm::glue {

// Whether the group still works: the code of its first failure. Outlives the group in its works.
using Health = std::shared_ptr<std::atomic<int>>;

// Notes a failure. The first one has the flight recorder written.
void note_failure(const Health& health, int code);

// A communicator with what it stands on.
//
// Owns:   the hccomm_comm, the store it met on, and a share of its parent, which therefore closes
//         after its last child.
// Thread: any; the handle is constant.
// Fails:  meet() and subgroup() raise; the destructor waits at most a second for what is pending.
class Group : public std::enable_shared_from_this<Group> {
 public:
  // Collective: the ranks meet on the store. The default group; also groups without a parent here.
  static std::shared_ptr<Group> meet(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                     int size, double timeout);
  // The group of some ranks of this one, called by its members only; no network traffic.
  std::shared_ptr<Group> subgroup(const std::vector<int32_t>& ranks, double timeout);

  // Collective over the group: settings of its own, "NAME=value"; and the device of this rank's
  // tensors, if islands are to be settled now. Raises alike on all ranks.
  void set(const std::vector<std::string>& settings, std::optional<c10::Device> islands);
  const std::vector<std::string>& settings() const { return settings_; }
  const std::optional<c10::Device>& islands() const { return islands_; }

  Group() = default;
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  hccomm_comm* handle() const { return handle_; }
  int rank() const { return hccomm_rank(handle_); }
  int size() const { return hccomm_size(handle_); }
  const Health& health() const { return health_; }

  // The default group of this process while it lives, else nullptr.
  static std::shared_ptr<Group> world();
  static void set_world(const std::shared_ptr<Group>& group);

 private:
  hccomm_comm* handle_ = nullptr;
  Health health_ = std::make_shared<std::atomic<int>>(HCCOMM_OK);
  std::shared_ptr<Group> parent_;
  std::unique_ptr<StoreAdapter> store_;
  std::vector<std::string> settings_;
  std::optional<c10::Device> islands_;
};

}  // namespace hccomm::glue
