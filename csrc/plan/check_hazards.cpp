// SPDX-License-Identifier: Apache-2.0
//
// The proof of one rank's edges. It knows nothing of the builder's interval maps: it remembers, for
// every single element, who wrote it last and who has read it since, and looks for a path of edges
// from each of those to the step that touches the element next.
#include <algorithm>
#include <array>

#include "base/text.hpp"
#include "plan/check.hpp"
#include "plan/print.hpp"
#include "plan/shape.hpp"

namespace hccomm::plan::proof {

namespace {

constexpr std::uint32_t kNobody = ~std::uint32_t{0};

// What has touched each element of one buffer; the readers of an element are a list in `nodes`.
struct Touched {
  struct Node {
    std::uint32_t step, next;
  };
  std::vector<std::uint32_t> writer, readers;
  std::vector<Node> nodes;

  explicit Touched(std::uint64_t count = 0) : writer(count, kNobody), readers(count, kNobody) {}
};

class Races {
 public:
  Races(const Call& call, const Group& group, const Plan& plan, Violations& wrong)
      : call_(call),
        group_(group),
        plan_(plan),
        wrong_(wrong),
        seen_(plan.steps.size(), kNobody),
        wanted_(plan.steps.size(), kNobody) {
    touched_[0] = Touched(output_count(call, group));
    touched_[1] = Touched(input_count(call, group));
    touched_[2] = Touched(plan.scratch_count);
    reverse_edges();
  }

  void run() {
    for (std::uint32_t id = 0; id < plan_.steps.size() && wrong_.size() < kMostViolations; ++id) {
      const Step& step = plan_.steps[id];
      before_.clear();
      read(step.src, id);
      for (std::uint32_t k = 0; k < step.terms; ++k) read(plan_.terms[step.first_term + k], id);
      write(step.dst, id);
      prove_ordered(id);
    }
  }

 private:
  void reverse_edges() {
    first_.assign(plan_.steps.size() + 1, 0);
    for (const std::uint32_t to : plan_.edges) ++first_[to + 1];
    for (std::size_t id = 0; id < plan_.steps.size(); ++id) first_[id + 1] += first_[id];
    std::vector<std::uint32_t> next(first_.begin(), first_.end() - 1);
    predecessors_.resize(plan_.edges.size());
    for (std::uint32_t id = 0; id < plan_.steps.size(); ++id) {
      const Step& step = plan_.steps[id];
      for (std::uint32_t k = 0; k < step.dependents; ++k) {
        predecessors_[next[plan_.edges[step.first_dependent + k]]++] = id;
      }
    }
  }

  void must_follow(std::uint32_t earlier, std::uint32_t id) {
    if (earlier == kNobody || earlier == id) return;
    if (before_.empty() || before_.back() != earlier) before_.push_back(earlier);
  }

  void read(const Slice& slice, std::uint32_t id) {
    const Slice named = canonical(call_, group_, slice);
    Touched& memory = touched_[static_cast<std::size_t>(named.space)];
    for (std::uint64_t i = named.offset; i < named.offset + named.count; ++i) {
      must_follow(memory.writer[i], id);
      memory.nodes.push_back({id, memory.readers[i]});
      memory.readers[i] = static_cast<std::uint32_t>(memory.nodes.size() - 1);
    }
  }

  void write(const Slice& slice, std::uint32_t id) {
    const Slice named = canonical(call_, group_, slice);
    Touched& memory = touched_[static_cast<std::size_t>(named.space)];
    for (std::uint64_t i = named.offset; i < named.offset + named.count; ++i) {
      must_follow(memory.writer[i], id);
      for (std::uint32_t n = memory.readers[i]; n != kNobody; n = memory.nodes[n].next) {
        must_follow(memory.nodes[n].step, id);
      }
      memory.writer[i] = id;
      memory.readers[i] = kNobody;
    }
  }

  // A search backwards along the edges from `id`, until all that is wanted has been met.
  void prove_ordered(std::uint32_t id) {
    if (before_.empty()) return;
    std::sort(before_.begin(), before_.end());
    before_.erase(std::unique(before_.begin(), before_.end()), before_.end());
    for (const std::uint32_t earlier : before_) wanted_[earlier] = id;
    std::size_t left = before_.size();
    std::vector<std::uint32_t> reached{id};
    for (std::size_t at = 0; at < reached.size() && left != 0; ++at) {
      for (std::uint32_t k = first_[reached[at]]; k < first_[reached[at] + 1]; ++k) {
        const std::uint32_t earlier = predecessors_[k];
        if (earlier < before_.front() || seen_[earlier] == id) continue;
        seen_[earlier] = id;
        left -= wanted_[earlier] == id ? 1 : 0;
        reached.push_back(earlier);
      }
    }
    for (const std::uint32_t earlier : before_) {
      if (seen_[earlier] == id) continue;
      wrong_.push_back(text("rank ", group_.rank, ": ", print(plan_, plan_.steps[id]),
                            " does not wait for: ", print(plan_, plan_.steps[earlier])));
    }
  }

  const Call& call_;
  const Group& group_;
  const Plan& plan_;
  Violations& wrong_;
  std::array<Touched, 3> touched_;
  std::vector<std::uint32_t> before_;                // steps that must precede the one at hand
  std::vector<std::uint32_t> first_, predecessors_;  // the edges, backwards
  std::vector<std::uint32_t> seen_, wanted_;         // by step: the last search that met, sought it
};

}  // namespace

void hazards(const Call& call, const Group& group, const Plan& plan, Violations& wrong) {
  Races(call, group, plan, wrong).run();
}

}  // namespace hccomm::plan::proof
