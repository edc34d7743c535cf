// SPDX-License-Identifier: Apache-2.0
//
// The settings that one communicator may have of its own, and what it says of itself.
#include <algorithm>

#include "base/crc32c.hpp"
#include "base/json.hpp"
#include "comm/communicator.hpp"
#include "comm/islands.hpp"
#include "comm/shared_heap.hpp"

namespace hccomm::comm {

using plan::Collective;

// Throws alike on all ranks unless they give the same value.
void Communicator::agree(const char* what, const std::string& value) {
  std::uint32_t mine = crc32c(0, value.data(), value.size());
  std::vector<std::uint32_t> all(static_cast<std::size_t>(size()));
  Request request;
  request.call.collective = Collective::AllGather;
  request.call.type = dtype::DType::U32;
  request.call.count = 1;
  request.input = {reinterpret_cast<std::byte*>(&mine), 1};
  request.output = {reinterpret_cast<std::byte*>(all.data()), all.size()};
  if (const Status status = run(request); !status.ok()) throw Error(status);
  for (int each = 1; each < size(); ++each) {
    if (all[each] == all[0]) continue;
    throw Error(Status(Code::Mismatch,
                       text(what, ": ", context_.who[each], " gives another value than ",
                            context_.who[0], "; give the same on all ranks"),
                       each));
  }
}

void Communicator::set(const std::string& name, const std::string& value) {
  check_usable("set");
  if (name != "HCCOMM_ALGO") {
    throw Error(Code::InvalidArgument,
                text("set: \"", name, "\" is no setting of one communicator; give HCCOMM_ALGO"));
  }
  agree("set HCCOMM_ALGO", value);
  select::Rules rules = select::Rules::parse(value);
  const std::lock_guard lock(mutex_);
  rules_ = std::move(rules);
  algorithms_ = value;
  recipes_.clear();
  last_ = nullptr;
  engine().forget_last(context_);
}

static constexpr const char* kNoLibrary = "no two ranks of one host may share a vendor's library";

static Json no_islands() {
  return Json::object().add("state", "off").add("reason", kNoLibrary).add("islands", Json::array());
}

// How this rank's device buffers have gone so far: "staged by cuda here, over ".
static std::string way_here(const std::vector<engine::Staging::Report>& devices) {
  std::string kinds;
  for (const auto& each : devices) {
    const std::string kind = each.device.substr(0, each.device.find(':'));
    if (kinds.find(kind) == std::string::npos) kinds += (kinds.empty() ? "" : " and ") + kind;
  }
  return kinds.empty() ? "over " : text("staged by ", kinds, " here, over ");
}

// What hccomm_alloc has given.
static Json shared_memory() {
  const SharedHeap::Usage usage = SharedHeap::of_process().usage();
  return Json::object()
      .add("shared_buffers", usage.buffers)
      .add("shared_bytes", usage.bytes)
      .add("refused", usage.refused);
}

std::string Communicator::describe() {
  Json peers = Json::array();
  const auto used = engine().devices();
  const bool direct = std::ranges::any_of(used, &engine::Staging::Report::direct);
  for (int each = 0; each < size(); ++each) {
    if (each == rank()) continue;
    Json refusals = Json::array();
    for (const Refusal& refusal : endpoint_->refusals(cards_[each])) {
      refusals.push(
          Json::object().add("transport", refusal.transport).add("reason", refusal.reason));
    }
    const auto candidates = endpoint_->candidates(cards_[each]);
    const std::string transport = candidates.empty() ? std::string("none") : candidates[0];
    const bool moves = direct && transport == "ofi";
    std::string no_ipc;
    const std::uint64_t across = engine().went_across(context_, each, no_ipc);
    std::string by = transport + (moves ? ", direct where data only move" : "");
    if (across != 0)
      by += text(", direct (IPC) where data only move: ", across, " messages so far");
    std::string why = kNoLibrary;
    if (!used.empty() && !no_ipc.empty()) why += "; no IPC: " + no_ipc;
    Json path = Json::object().add("how", way_here(used) + by).add("why_not_better", why);
    if (islands_ != nullptr) path = islands_->describe_pair(each, way_here(used), by);
    peers.push(Json::object()
                   .add("rank", each)
                   .add("host", cards_[each].host)
                   .add("pid", cards_[each].pid)
                   .add("transport", transport)
                   .add("path", path)
                   .add("link", engine().describe(context_, each))
                   .add("refused", refusals));
  }
  std::string algorithms;
  {
    const std::lock_guard lock(mutex_);
    algorithms = algorithms_;
  }
  Json devices = Json::array();
  for (const engine::Staging::Report& each : used) {
    devices.push(Json::object()
                     .add("device", each.device)
                     .add("how", text("staged by ", each.device.substr(0, each.device.find(':')),
                                      " (", each.library, ")"))
                     .add("figures", each.text));
  }
  return Json::object()
      .add("name", context_.name)
      .add("rank", rank())
      .add("size", size())
      .add("hosts", group_.hosts)
      .add("host", endpoint_->card().host)
      .add("authenticated", endpoint_->authenticated())
      .add("timeout", timeout_.count())
      .add("algorithms", algorithms)
      .add("devices", devices)
      .add("memory", shared_memory())
      .add("peers", peers)
      .add("islands", islands_ != nullptr ? islands_->describe() : no_islands())
      .str();
}

}  // namespace hccomm::comm
