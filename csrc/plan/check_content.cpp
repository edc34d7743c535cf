// SPDX-License-Identifier: Apache-2.0
//
// The proof by execution. A message moves when its send and its receive are both ready and all
// earlier ones between the two ranks have moved: nothing is buffered and nothing overtakes, so what
// ends here ends on every link. Which order is taken does not matter, as hazards() has shown.
#include <algorithm>
#include <array>

#include "base/text.hpp"
#include "plan/channels.hpp"
#include "plan/check.hpp"
#include "plan/print.hpp"
#include "plan/shape.hpp"

namespace hccomm::plan::proof {

namespace {

// One element: which inputs it is made of (they add up, each times the factor and divided as they
// are) and by which expression. Nothing is there while `expression` is 0.
struct Value {
  std::uint64_t sum = 0, expression = 0;
  friend bool operator==(const Value&, const Value&) = default;
};

constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15, kDivisor = 0xd1342543de82ef95;  // both odd

std::uint64_t mix(std::uint64_t x) noexcept {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t input_symbol(int rank, std::uint64_t offset) noexcept {
  return mix(mix(static_cast<std::uint64_t>(rank) + 0x5851f42d4c957f2d) ^ offset);
}

Value combine(const Value& left, const Value& right) noexcept {
  if (left.expression == 0 || right.expression == 0) return {};
  return {left.sum + right.sum, mix(mix(left.expression) + 3 * right.expression) | 1};
}

bool reduces(Collective collective) noexcept {
  return collective == Collective::AllReduce || collective == Collective::Reduce ||
         collective == Collective::ReduceScatter;
}

class Execution {
 public:
  Execution(std::span<const Call> calls, std::span<const Group> groups, std::span<const Plan> plans,
            Violations& wrong)
      : calls_(calls),
        groups_(groups),
        plans_(plans),
        wrong_(wrong),
        channels_(plans),
        moved_(channels_.all().size()),
        ranks_(plans.size()) {
    for (std::size_t rank = 0; rank < plans.size(); ++rank) fill(rank);
    if (!calls.empty() && calls[0].collective == Collective::Barrier) begin_hearing();
  }

  void run() {
    for (std::size_t rank = 0; rank < plans_.size(); ++rank) {
      for (std::uint32_t id = 0; id < plans_[rank].steps.size(); ++id) {
        if (ranks_[rank].waits[id] == 0) ready_.push_back({static_cast<std::uint32_t>(rank), id});
      }
    }
    while (!ready_.empty() && wrong_.size() < kMostViolations) {
      const At at = ready_.back();
      ready_.pop_back();
      start(at);
    }
    if (wrong_.empty()) stuck();
  }

  void compare(Reference reference) {
    compare_heard();
    for (std::size_t rank = 0; rank < plans_.size() && wrong_.size() < kMostViolations; ++rank) {
      for (const Piece& piece : reference(calls_, groups_[rank])) compare(rank, piece);
    }
  }

 private:
  struct At {
    std::uint32_t rank, step;
  };
  struct Rank {
    std::array<std::vector<Value>, 3> memory;  // by Space, in canonical slices
    std::vector<std::uint32_t> waits;          // by step: how many it still waits for
    std::vector<char> started;                 // by step
    std::vector<std::vector<bool>> heard;      // barrier: by step, ranks known to have entered
  };

  void fill(std::size_t rank) {
    Rank& state = ranks_[rank];
    const std::uint64_t inputs = input_count(calls_[rank], groups_[rank]);
    state.memory[0].resize(output_count(calls_[rank], groups_[rank]));
    state.memory[1].resize(inputs);
    state.memory[2].resize(plans_[rank].scratch_count);
    const Slice input = canonical(calls_[rank], groups_[rank], {0, inputs, Space::Input});
    for (std::uint64_t i = 0; i < inputs; ++i) {
      const std::uint64_t symbol = input_symbol(static_cast<int>(rank), i);
      state.memory[static_cast<std::size_t>(input.space)][input.offset + i] = {symbol, symbol | 1};
    }
    for (const Step& step : plans_[rank].steps) state.waits.push_back(step.dependencies);
    state.started.resize(plans_[rank].steps.size());
  }

  void begin_hearing() {
    for (std::size_t rank = 0; rank < plans_.size(); ++rank) {
      std::vector<bool> self(plans_.size());
      self[rank] = true;
      ranks_[rank].heard.assign(plans_[rank].steps.size(), self);
    }
  }

  static void hear(std::vector<bool>& to, const std::vector<bool>& from) {
    for (std::size_t rank = 0; rank < to.size(); ++rank) {
      if (from[rank]) to[rank] = true;
    }
  }

  void compare_heard() {
    for (std::size_t rank = 0; rank < plans_.size(); ++rank) {
      if (plans_.size() < 2 || calls_[rank].collective != Collective::Barrier) return;
      std::vector<bool> all(plans_.size());
      for (const auto& heard : ranks_[rank].heard) hear(all, heard);
      const auto missing = std::find(all.begin(), all.end(), false);
      if (missing == all.end()) continue;
      wrong_.push_back(
          text("rank ", rank, " may leave before rank ", missing - all.begin(), " has entered"));
    }
  }

  Value* memory(std::size_t rank, const Slice& slice) {
    const Slice named = canonical(calls_[rank], groups_[rank], slice);
    auto& values = ranks_[rank].memory[static_cast<std::size_t>(named.space)];
    return values.empty() ? nullptr : values.data() + named.offset;
  }

  void complain(const At& at, const char* what) {
    if (wrong_.size() >= kMostViolations) return;
    const Plan& plan = plans_[at.rank];
    wrong_.push_back(text("rank ", at.rank, ": ", print(plan, plan.steps[at.step]), " ", what));
  }

  void start(const At& at) {
    const Step& step = plans_[at.rank].steps[at.step];
    ranks_[at.rank].started[at.step] = 1;
    if (step.kind == Kind::Send || step.kind == Kind::Recv || step.kind == Kind::RecvReduce) {
      move(channels_.of(static_cast<int>(at.rank), step));
    } else {
      compute(at);
      complete(at);
    }
  }

  // Lets every message of the channel pass whose turn has come.
  void move(std::size_t index) {
    const Channel& channel = channels_.all()[index];
    for (std::size_t& k = moved_[index]; k < channel.sends.size(); ++k) {
      const At send{static_cast<std::uint32_t>(channel.from), channel.sends[k]};
      const At receive{static_cast<std::uint32_t>(channel.to), channel.receives[k]};
      if (!ranks_[send.rank].started[send.step] || !ranks_[receive.rank].started[receive.step]) {
        return;
      }
      transfer(send, receive);
      complete(send);
      complete(receive);
    }
  }

  void transfer(const At& send, const At& receive) {
    const Step& from = plans_[send.rank].steps[send.step];
    const Step& to = plans_[receive.rank].steps[receive.step];
    const Value* sent = memory(send.rank, from.src);
    Value* dst = memory(receive.rank, to.dst);
    const Value* own = to.kind == Kind::RecvReduce ? memory(receive.rank, to.src) : nullptr;
    if (Rank& state = ranks_[receive.rank]; !state.heard.empty()) {
      hear(state.heard[receive.step], ranks_[send.rank].heard[send.step]);
    }
    for (std::uint64_t i = 0; i < to.dst.count; ++i) {
      if (sent[i].expression == 0) return complain(send, "reads what nothing has written");
      if (own == nullptr) {
        dst[i] = sent[i];
      } else {
        dst[i] = to.received_first ? combine(sent[i], own[i]) : combine(own[i], sent[i]);
      }
      if (dst[i].expression == 0) return complain(receive, "reads what nothing has written");
    }
  }

  void compute(const At& at) {
    const Plan& plan = plans_[at.rank];
    const Step& step = plan.steps[at.step];
    Value* dst = memory(at.rank, step.dst);
    for (std::uint64_t i = 0; i < step.dst.count; ++i) {
      Value value;
      if (step.kind == Kind::Reduce) {
        for (std::uint32_t k = 0; k < step.terms; ++k) {
          const Value term = memory(at.rank, plan.terms[step.first_term + k])[i];
          value = k == 0 ? term : combine(value, term);
        }
        if (value.expression != 0) value.expression = mix(value.expression) | 1;  // rounded once
      } else {
        value = memory(at.rank, step.src)[i];
      }
      if (value.expression == 0) return complain(at, "reads what nothing has written");
      if (step.kind == Kind::Multiply) value = scaled(value, kFactor);
      if (step.kind == Kind::Divide) value = scaled(value, kDivisor);
      dst[i] = value;
    }
  }

  static Value scaled(const Value& value, std::uint64_t by) noexcept {
    return {value.sum * by, mix(value.expression ^ by) | 1};
  }

  void complete(const At& at) {
    const Plan& plan = plans_[at.rank];
    const Step& step = plan.steps[at.step];
    for (std::uint32_t k = 0; k < step.dependents; ++k) {
      const std::uint32_t next = plan.edges[step.first_dependent + k];
      if (auto& heard = ranks_[at.rank].heard; !heard.empty()) hear(heard[next], heard[at.step]);
      if (--ranks_[at.rank].waits[next] == 0) ready_.push_back({at.rank, next});
    }
  }

  // Names what could never move, if anything.
  void stuck() {
    for (std::size_t index = 0; index < moved_.size(); ++index) {
      const Channel& channel = channels_.all()[index];
      if (moved_[index] == channel.sends.size() || wrong_.size() >= kMostViolations) continue;
      const auto from = static_cast<std::size_t>(channel.from);
      const auto to = static_cast<std::size_t>(channel.to);
      const bool sends = ranks_[from].started[channel.sends[moved_[index]]] != 0;
      const bool receives = ranks_[to].started[channel.receives[moved_[index]]] != 0;
      wrong_.push_back(text("deadlock: message ", moved_[index], " from rank ", from, " to rank ",
                            to, " never moves: the sender is ", sends ? "" : "not ",
                            "ready, the receiver is ", receives ? "" : "not ", "ready"));
    }
  }

  void compare(std::size_t rank, const Piece& piece) {
    const Call& call = calls_[rank];
    const bool scaling = reduces(call.collective);
    const bool multiplied = scaling && call.op == dtype::RedOp::PremulSum;
    const bool divided = scaling && call.op == dtype::RedOp::Avg;
    const Slice output{piece.offset, piece.count, Space::Output};
    const Value* found = memory(rank, output);
    const Value* first =
        call.collective == Collective::AllReduce ? memory(0, output) : found;  // the same bits
    for (std::uint64_t i = 0; i < piece.count; ++i) {
      std::uint64_t sum = 0;
      for (const Origin& origin : piece.origins) {
        sum += input_symbol(origin.rank, origin.offset + i);
      }
      sum *= (multiplied ? kFactor : 1) * (divided ? kDivisor : 1);
      const char* what = nullptr;
      if (found[i].sum != sum) what = "is not made of the right inputs, each once";
      if (found[i].expression == 0) what = "is never written";
      if (what == nullptr && found[i] != first[i]) what = "is not computed as on rank 0";
      if (what == nullptr) continue;
      wrong_.push_back(text("rank ", rank, ": output[", piece.offset + i, "] ", what));
      return;
    }
  }

  std::span<const Call> calls_;
  std::span<const Group> groups_;
  std::span<const Plan> plans_;
  Violations& wrong_;
  Channels channels_;
  std::vector<std::size_t> moved_;  // by channel: messages that have moved
  std::vector<Rank> ranks_;
  std::vector<At> ready_;
};

}  // namespace

void content(std::span<const Call> calls, std::span<const Group> groups,
             std::span<const Plan> plans, Reference reference, Violations& wrong) {
  Execution execution(calls, groups, plans, wrong);
  execution.run();
  if (wrong.empty()) execution.compare(reference);
}

}  // namespace hccomm::plan::proof
