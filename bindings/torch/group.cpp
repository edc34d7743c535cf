// SPDX-License-Identifier: Apache-2.0
//
// Meeting, splitting and closing.
#include "group.hpp"

#include <algorithm>
#include <mutex>

#include "device.hpp"
#include "errors.hpp"
#include "flight_recorder.hpp"

namespace hccomm::glue {

static std::mutex world_mutex;  // guards world_group
static std::weak_ptr<Group> world_group;

void note_failure(const Health& health, int code) {
  int healthy = HCCOMM_OK;
  if (health->compare_exchange_strong(healthy, code)) FlightRecorder::get().write();
}

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

void Group::set(const std::vector<std::string>& settings, std::optional<c10::Device> islands) {
  hccomm_error error{};
  for (const std::string& each : settings) {
    const std::size_t equals = each.find('=');
    TORCH_CHECK(equals != std::string::npos, "hccomm InvalidArgument: setting ", each, " has no =");
    const std::string name = each.substr(0, equals), value = each.substr(equals + 1);
    if (hccomm_set(handle_, name.c_str(), value.c_str(), &error) != HCCOMM_OK) raise(error, 0);
  }
  if (islands) {
    const int32_t kind = islands->is_cpu() ? HCCOMM_DEVICE_HOST : route_of(islands->type()).kind;
    const int32_t index = std::max<int32_t>(islands->index(), 0);
    const int code = hccomm_use_islands(handle_, kind, index, &error);
    const bool none = code == HCCOMM_UNAVAILABLE;  // alike on all ranks: described, no failure
    if (code != HCCOMM_OK && !none) raise(error, 0);
  }
  settings_ = settings;
  islands_ = islands;
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
