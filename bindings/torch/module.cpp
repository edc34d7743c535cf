// SPDX-License-Identifier: Apache-2.0
//
// How torch gets at the backend without Python or pybind11 in between: operators in torch's
// dispatcher. hccomm/torch_backend.py makes an empty ProcessGroup, has attach() put a backend into
// it and takes the backend out again as torch's own Backend class.
#include <torch/library.h>

#include <map>
#include <mutex>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "backend.hpp"
#include "device.hpp"
#include "errors.hpp"
#include "flight_recorder.hpp"

namespace hccomm::glue {

using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

// torch asks once per device type of a group; all of them share one backend. A group is known by
// its store, which the backend's entry keeps alive.
static c10::intrusive_ptr<HccommBackend> backend_of(const ProcessGroupPtr& group,
                                                    const std::vector<int64_t>& global_ranks,
                                                    const std::string& name,
                                                    const std::string& alias, double timeout,
                                                    const std::vector<std::string>& settings,
                                                    std::optional<c10::Device> islands) {
  struct Entry {
    c10::weak_intrusive_ptr<HccommBackend> backend;
    c10::weak_intrusive_ptr<c10d::Store> store;
  };
  static std::mutex mutex;
  static auto* const known = new std::map<c10d::Store*, Entry>;

  TORCH_CHECK(hccomm_abi_version() == HCCOMM_ABI_VERSION, "hccomm: libhccomm.so speaks version ",
              hccomm_abi_version(), " of the C ABI, the torch glue version ", HCCOMM_ABI_VERSION,
              "; install both from one release");
  const c10::intrusive_ptr<c10d::Store> store = group->getStore();
  const std::lock_guard lock(mutex);
  std::erase_if(*known, [](const auto& item) { return item.second.store.expired(); });
  if (const auto found = known->find(store.get()); found != known->end()) {
    auto backend = found->second.backend.lock();
    if (backend && backend->group()) return backend;
  }

  const std::shared_ptr<Group> world = Group::world();
  std::shared_ptr<Group> own;
  if (!global_ranks.empty() && world) {
    own = world->subgroup(std::vector<int32_t>(global_ranks.begin(), global_ranks.end()), timeout);
  } else {
    own = Group::meet(store, group->getRank(), group->getSize(), timeout);
    if (global_ranks.empty()) Group::set_world(own);
  }
  own->set(settings, islands);
  auto options = c10::make_intrusive<c10d::Backend::Options>(
      alias, std::chrono::milliseconds(static_cast<int64_t>(timeout * 1e3)));
  options->group_name = name;
  options->global_ranks_in_group.assign(global_ranks.begin(), global_ranks.end());
  auto backend = c10::make_intrusive<HccommBackend>(std::move(own), options);
  known->insert_or_assign(store.get(), Entry{c10::weak_intrusive_ptr<HccommBackend>(backend),
                                             c10::weak_intrusive_ptr<c10d::Store>(store)});
  return backend;
}

static void attach(const ProcessGroupPtr& group, std::vector<int64_t> global_ranks,
                   std::string name, std::string alias, double timeout,
                   std::vector<std::string> settings, std::optional<c10::Device> islands) {
  group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::CUSTOM,
                    c10::intrusive_ptr<c10d::Backend>(
                        backend_of(group, global_ranks, name, alias, timeout, settings, islands)));
}

static std::string describe(const ProcessGroupPtr& group) {
  const auto backend = group->getBackend(c10d::ProcessGroup::BackendType::CUSTOM);
  const auto* ours = dynamic_cast<const HccommBackend*>(backend.get());
  if (!ours) invalid("describe", "this process group does not use hccomm");
  return ours->describe();
}

}  // namespace hccomm::glue

TORCH_LIBRARY(hccomm, library) {
  library.def(
      "attach(__torch__.torch.classes.c10d.ProcessGroup group, int[] global_ranks, str name, "
      "str alias, float timeout, str[] settings, Device? islands) -> ()",
      hccomm::glue::attach);
  library.def("flight_recorder(bool only_active) -> str", [](bool only_active) {
    return hccomm::glue::FlightRecorder::get().json(only_active);
  });
  library.def("devices() -> str", hccomm::glue::describe_devices);
  library.def("describe(__torch__.torch.classes.c10d.ProcessGroup group) -> str",
              hccomm::glue::describe);
}
