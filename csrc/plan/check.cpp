// SPDX-License-Identifier: Apache-2.0
#include "plan/check.hpp"

#include <algorithm>
#include <map>

#include "base/text.hpp"
#include "plan/channels.hpp"
#include "plan/print.hpp"
#include "plan/shape.hpp"

namespace hccomm::plan {

std::vector<std::string> check(std::span<const Call> calls, std::span<const Group> groups,
                               std::span<const Plan> plans, Reference reference) {
  proof::Violations wrong;
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    proof::form(calls[rank], groups[rank], plans[rank], wrong);
  }
  if (wrong.empty()) proof::messages(plans, wrong);
  for (std::size_t rank = 0; rank < plans.size() && wrong.empty(); ++rank) {
    proof::hazards(calls[rank], groups[rank], plans[rank], wrong);
  }
  if (wrong.empty()) proof::content(calls, groups, plans, reference, wrong);
  if (wrong.size() > proof::kMostViolations) wrong.resize(proof::kMostViolations);
  return wrong;
}

namespace proof {

// ---- form ---------------------------------------------------------------------------------------

namespace {

class Form {
 public:
  Form(const Call& call, const Group& group, const Plan& plan, Violations& wrong)
      : call_(call), group_(group), plan_(plan), wrong_(wrong) {}

  void run() {
    edges();
    for (const Step& step : plan_.steps) slices(step);
    numbers();
  }

 private:
  template <typename... Parts>
  void complain(const Parts&... parts) {
    if (wrong_.size() < kMostViolations)
      wrong_.push_back(text("rank ", group_.rank, ": ", parts...));
  }

  void edges() {
    std::vector<std::uint32_t> waits(plan_.steps.size());
    for (std::size_t id = 0; id < plan_.steps.size(); ++id) {
      const Step& step = plan_.steps[id];
      for (std::uint32_t k = 0; k < step.dependents; ++k) {
        const std::size_t at = std::size_t{step.first_dependent} + k;
        const std::size_t next = at < plan_.edges.size() ? plan_.edges[at] : 0;
        if (next <= id || next >= plan_.steps.size()) {
          return complain("step ", id, " has an edge that does not lead to a later step");
        }
        ++waits[next];
      }
    }
    for (std::size_t id = 0; id < waits.size(); ++id) {
      if (waits[id] == plan_.steps[id].dependencies) continue;
      complain("step ", id, " waits for ", plan_.steps[id].dependencies, " steps, but ", waits[id],
               " lead to it");
    }
  }

  bool inside(const Slice& slice) const {
    std::uint64_t extent = plan_.scratch_count;
    if (slice.space == Space::Output) extent = output_count(call_, group_);
    if (slice.space == Space::Input) extent = input_count(call_, group_);
    return slice.count == 0 || (slice.count <= extent && slice.offset <= extent - slice.count);
  }

  // The same memory, or none of it in common.
  bool apart(const Slice& one, const Slice& two) const {
    const Slice a = canonical(call_, group_, one), b = canonical(call_, group_, two);
    return a == b || a.space != b.space || a.offset + a.count <= b.offset ||
           b.offset + b.count <= a.offset;
  }

  void slices(const Step& step) {
    if (step.terms > plan_.terms.size() || step.first_term > plan_.terms.size() - step.terms) {
      return complain(print(plan_, step), " has terms that do not exist");
    }
    std::vector<Slice> read(plan_.terms.begin() + step.first_term,
                            plan_.terms.begin() + step.first_term + step.terms);
    if (step.kind != Kind::Recv && step.kind != Kind::Reduce) read.push_back(step.src);
    if (!inside(step.dst)) complain(print(plan_, step), " writes outside the buffer");
    if (step.dst.count != 0 && step.dst.space == Space::Input) {
      complain(print(plan_, step), " writes the caller's input");
    }
    for (const Slice& slice : read) {
      if (!inside(slice)) complain(print(plan_, step), " reads outside the buffer");
      if (step.kind == Kind::Send) continue;
      if (slice.count != step.dst.count) complain(print(plan_, step), " mixes lengths");
      if (!apart(slice, step.dst)) complain(print(plan_, step), " overlaps its operand");
    }
    const bool message =
        step.kind == Kind::Send || step.kind == Kind::Recv || step.kind == Kind::RecvReduce;
    if (message && (step.peer < 0 || step.peer >= group_.size || step.peer == group_.rank)) {
      complain(print(plan_, step), " names no other rank of the group");
    }
  }

  void numbers() {
    std::map<int, std::uint32_t> sent, received;
    std::map<int, const Inlet*> inlets;
    std::uint64_t total = 0;
    for (const Inlet& inlet : plan_.inlets) {
      inlets[inlet.peer] = &inlet;
      total += inlet.count;
      if (inlet.count > plan_.recv_steps.size() ||
          inlet.first > plan_.recv_steps.size() - inlet.count) {
        return complain("the inlet of rank ", inlet.peer, " has steps that do not exist");
      }
    }
    for (std::size_t id = 0; id < plan_.steps.size(); ++id) {
      const Step& step = plan_.steps[id];
      if (step.kind == Kind::Send) {
        if (step.index != sent[step.peer]++) complain(print(plan_, step), " is out of order");
      }
      if (step.kind != Kind::Recv && step.kind != Kind::RecvReduce) continue;
      const std::uint32_t index = received[step.peer]++;
      const Inlet* inlet = inlets[step.peer];
      if (step.index != index || inlet == nullptr || index >= inlet->count ||
          plan_.recv_steps[inlet->first + index] != id) {
        complain(print(plan_, step), " is not where the inlet says");
      }
      --total;
    }
    if (total != 0) complain("the inlets name more receives than there are");
    std::vector<std::int32_t> peers;
    for (const auto& [peer, count] : sent) peers.push_back(peer);
    if (peers != plan_.outlets) complain("the outlets are not the ranks it sends to");
  }

  const Call& call_;
  const Group& group_;
  const Plan& plan_;
  Violations& wrong_;
};

}  // namespace

void form(const Call& call, const Group& group, const Plan& plan, Violations& wrong) {
  Form(call, group, plan, wrong).run();
}

// ---- messages -----------------------------------------------------------------------------------

void messages(std::span<const Plan> plans, Violations& wrong) {
  for (std::size_t rank = 0; rank < plans.size(); ++rank) {
    for (const Inlet& inlet : plans[rank].inlets) {
      const auto& outlets = plans[static_cast<std::size_t>(inlet.peer)].outlets;
      if (std::binary_search(outlets.begin(), outlets.end(), static_cast<int>(rank))) continue;
      wrong.push_back(text("rank ", rank, " receives ", inlet.count, " messages from rank ",
                           inlet.peer, ", which sends it none"));
    }
  }
  if (!wrong.empty()) return;
  const Channels channels(plans);
  for (const Channel& channel : channels.all()) {
    if (wrong.size() >= kMostViolations) return;
    const Plan& from = plans[static_cast<std::size_t>(channel.from)];
    const Plan& to = plans[static_cast<std::size_t>(channel.to)];
    if (channel.sends.size() != channel.receives.size()) {
      wrong.push_back(text("rank ", channel.from, " sends ", channel.sends.size(),
                           " messages to rank ", channel.to, ", which receives ",
                           channel.receives.size()));
      continue;
    }
    for (std::size_t k = 0; k < channel.sends.size(); ++k) {
      const std::uint64_t sent = from.steps[channel.sends[k]].src.count;
      const std::uint64_t received = to.steps[channel.receives[k]].dst.count;
      if (sent == received) continue;
      wrong.push_back(text("message ", k, " from rank ", channel.from, " to rank ", channel.to,
                           " has ", sent, " elements, its receive ", received));
    }
  }
}

}  // namespace proof

}  // namespace hccomm::plan
