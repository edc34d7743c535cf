// SPDX-License-Identifier: Apache-2.0
//
// Meeting, splitting and closing.
#include "group.hpp"

#include <mutex>

#include "errors.hpp"

namespace hccomm::glue {

static std::mutex world_mutex;  // guards world_group
static std::weak_ptr<Group> world_group;

std::shared_ptr<Group> Group::meet(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                   double timeout) {
  auto group = std::make_shared<Group>();
  group->store_ = std::make_unique<StoreAdapter>(store, rank);
  hccomm_config config{};
  config.struct_size = sizeof(config);
  config.rank = rank;
  config.size = size;
  config.store = group->store_->callbacks();
  config.timeout = timeout;
  hccomm_error error{};
  if (hccomm_init(&config, &group->handle_, &error) != HCCOMM_OK) raise(error, timeout);
  return group;
}

std::shared_ptr<Group> Group::subgroup(const std::vector<int32_t>& ranks, double timeout) {
  auto group = std::make_shared<Group>();
  group->parent_ = shared_from_this();
  hccomm_error error{};
  if (hccomm_group(handle_, ranks.data(), ranks.size(), nullptr, timeout, &group->handle_,
                   &error) != HCCOMM_OK) {
    raise(error, timeout);
  }
  return group;
}

Group::~Group() {
  hccomm_error error{};
  if (handle_) hccomm_close(handle_, 0, &error);
}

std::shared_ptr<Group> Group::world() {
  const std::lock_guard lock(world_mutex);
  return world_group.lock();
}

void Group::set_world(const std::shared_ptr<Group>& group) {
  const std::lock_guard lock(world_mutex);
  world_group = group;
}

}  // namespace hccomm::glue
