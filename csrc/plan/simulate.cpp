// SPDX-License-Identifier: Apache-2.0
#include "plan/simulate.hpp"

#include <algorithm>
#include <queue>
#include <tuple>

#include "plan/channels.hpp"

namespace hccomm::plan {

namespace {

constexpr double kNotYet = -1;

// An event: a step whose dependencies are met, or that is done, at some time.
struct Event {
  double at;
  std::uint32_t rank, step;
  bool done;
  friend bool operator>(const Event& a, const Event& b) {
    if (a.at != b.at) return a.at > b.at;
    return std::tie(a.rank, a.step, a.done) > std::tie(b.rank, b.step, b.done);
  }
};

class Model {
 public:
  Model(std::span<const Plan> plans, std::span<const int> host_of, std::uint64_t element_bytes,
        const Machine& machine)
      : plans_(plans),
        host_of_(host_of),
        element_bytes_(element_bytes),
        machine_(machine),
        channels_(plans),
        ranks_(plans.size()) {
    int hosts = 1;
    for (const int host : host_of) hosts = std::max(hosts, host + 1);
    hosts_.resize(static_cast<std::size_t>(hosts));
    for (std::size_t rank = 0; rank < plans.size(); ++rank) {
      const auto& steps = plans[rank].steps;
      ranks_[rank].waits.reserve(steps.size());
      for (const Step& step : steps) ranks_[rank].waits.push_back(step.dependencies);
      ranks_[rank].ready.assign(steps.size(), kNotYet);
    }
  }

  Simulation run() {
    result_.finished.assign(plans_.size(), 0);
    std::size_t left = 0;
    for (std::uint32_t rank = 0; rank < plans_.size(); ++rank) {
      left += plans_[rank].steps.size();
      for (std::uint32_t id = 0; id < plans_[rank].steps.size(); ++id) {
        if (ranks_[rank].waits[id] == 0) events_.push({0, rank, id, false});
      }
    }
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      if (!event.done) {
        start(event);
        continue;
      }
      --left;
      finish(event);
    }
    result_.complete = left == 0;
    result_.seconds = *std::max_element(result_.finished.begin(), result_.finished.end());
    account();
    return std::move(result_);
  }

 private:
  struct Ports {
    double sending = 0, receiving = 0;  // busy until
  };
  struct Rank {
    Ports ports;
    double computing = 0;              // busy until
    std::vector<std::uint32_t> waits;  // by step
    std::vector<double> ready;         // by step: of a message, when it could begin
  };

  void later(double at, std::uint32_t rank, std::uint32_t step) {
    events_.push({at, rank, step, true});
  }

  void finish(const Event& event) {
    const Plan& plan = plans_[event.rank];
    const Step& step = plan.steps[event.step];
    result_.finished[event.rank] = std::max(result_.finished[event.rank], event.at);
    for (std::uint32_t k = 0; k < step.dependents; ++k) {
      const std::uint32_t next = plan.edges[step.first_dependent + k];
      if (--ranks_[event.rank].waits[next] == 0) events_.push({event.at, event.rank, next, false});
    }
  }

  double compute(std::uint32_t rank, double from, std::uint64_t elements) {
    if (elements == 0) return from;
    double& busy = ranks_[rank].computing;
    busy = std::max(busy, from) + static_cast<double>(elements * element_bytes_) * machine_.gamma;
    return busy;
  }

  void start(const Event& event) {
    const Step& step = plans_[event.rank].steps[event.step];
    if (step.peer < 0) {
      const std::uint64_t terms = std::max<std::uint32_t>(step.terms, 1);
      return later(compute(event.rank, event.at, step.dst.count * terms), event.rank, event.step);
    }
    ranks_[event.rank].ready[event.step] = event.at;
    const Channel& channel = channels_.all()[channels_.of(static_cast<int>(event.rank), step)];
    if (step.index >= channel.sends.size() || step.index >= channel.receives.size()) return;
    message(channel, step.index, step.kind == Kind::Send);
  }

  // Called when either end becomes ready.
  void message(const Channel& channel, std::size_t index, bool by_sender) {
    const auto from = static_cast<std::uint32_t>(channel.from);
    const auto to = static_cast<std::uint32_t>(channel.to);
    const std::uint32_t send = channel.sends[index], receive = channel.receives[index];
    const std::uint64_t bytes = plans_[from].steps[send].src.count * element_bytes_;
    double& sent = ranks_[from].ready[send];
    double& awaited = ranks_[to].ready[receive];
    if (bytes <= machine_.eager_bytes) {  // `sent` becomes the time of arrival
      if (by_sender) sent = transfer(from, to, send, bytes, sent);
      if (sent != kNotYet && awaited != kNotYet) receive_at(to, receive, std::max(sent, awaited));
    } else if (sent != kNotYet && awaited != kNotYet) {
      receive_at(to, receive, transfer(from, to, send, bytes, std::max(sent, awaited)));
    }
  }

  // Sends at or after `from_time`; the time at which the last byte has arrived.
  double transfer(std::uint32_t from, std::uint32_t to, std::uint32_t send, std::uint64_t bytes,
                  double from_time) {
    const bool inside = host_of_.empty() || host_of_[from] == host_of_[to];
    const Machine::Path path = inside ? machine_.inside : machine_.across;
    Ports& out = inside ? ranks_[from].ports : hosts_[static_cast<std::size_t>(host_of_[from])];
    Ports& in = inside ? ranks_[to].ports : hosts_[static_cast<std::size_t>(host_of_[to])];
    const double begin = std::max({from_time, out.sending, in.receiving});
    const double end = begin + static_cast<double>(bytes) * path.beta;
    out.sending = in.receiving = end;
    later(end, from, send);
    return end + path.alpha;
  }

  void receive_at(std::uint32_t rank, std::uint32_t step, double at) {
    const Step& taken = plans_[rank].steps[step];
    const bool reduces = taken.kind == Kind::RecvReduce;
    later(compute(rank, at, reduces ? taken.dst.count : 0), rank, step);
  }

  void account() {
    for (const Channel& channel : channels_.all()) {
      LinkLoad load{.from = channel.from, .to = channel.to, .messages = channel.sends.size()};
      const auto from = static_cast<std::size_t>(channel.from);
      const auto to = static_cast<std::size_t>(channel.to);
      for (const std::uint32_t send : channel.sends) {
        load.bytes += plans_[from].steps[send].src.count * element_bytes_;
      }
      result_.messages += load.messages;
      result_.bytes += load.bytes;
      const bool across = !host_of_.empty() && host_of_[from] != host_of_[to];
      if (across) result_.bytes_across += load.bytes;
      result_.links.push_back(load);
    }
  }

  std::span<const Plan> plans_;
  std::span<const int> host_of_;
  const std::uint64_t element_bytes_;
  const Machine& machine_;
  Channels channels_;
  std::vector<Rank> ranks_;
  std::vector<Ports> hosts_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  Simulation result_;
};

}  // namespace

Simulation simulate(std::span<const Plan> plans, std::span<const int> host_of,
                    std::uint64_t element_bytes, const Machine& machine) {
  if (plans.empty()) return {.complete = true};
  return Model(plans, host_of, element_bytes, machine).run();
}

}  // namespace hccomm::plan
