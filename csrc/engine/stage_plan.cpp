// SPDX-License-Identifier: Apache-2.0
#include "engine/stage_plan.hpp"

#include <algorithm>

#include "plan/hazards.hpp"

namespace hccomm::engine {

using plan::Kind;
using plan::Slice;
using plan::Space;
using plan::Step;

static constexpr std::uint64_t kPage = 4096;  // copies are multiples of this where they can

namespace {

// Bytes of a memory that one step reads from the device, or writes.
struct Use {
  std::uint32_t memory;
  std::uint64_t begin, end;
  std::uint32_t step;
};

}  // namespace

// Cuts the union of `uses` into cells of at most `segment` bytes, by memory and offset.
static std::vector<Cell> cut(std::vector<Use> uses, std::uint64_t segment) {
  std::ranges::sort(uses, {}, [](const Use& use) { return std::pair(use.memory, use.begin); });
  std::vector<Use> ranges;
  for (const Use& use : uses) {
    if (ranges.empty() || ranges.back().memory != use.memory || ranges.back().end < use.begin) {
      ranges.push_back(use);
    } else {
      ranges.back().end = std::max(ranges.back().end, use.end);
    }
  }
  std::vector<Cell> cells;
  for (const Use& range : ranges) {
    const std::uint64_t length = range.end - range.begin;
    const std::uint64_t parts = (length + segment - 1) / segment;
    const std::uint64_t even = ((length + parts - 1) / parts + kPage - 1) / kPage * kPage;
    const std::uint64_t step = std::min(segment, even);
    for (std::uint64_t begin = range.begin; begin < range.end; begin += step) {
      const std::uint64_t bytes = std::min(step, range.end - begin);
      cells.push_back({.offset = begin, .bytes = bytes, .memory = range.memory});
    }
  }
  return cells;
}

// Whether the plan does more than move data.
static bool reduces(const Step& step) {
  return step.kind != Kind::Send && step.kind != Kind::Recv && step.kind != Kind::Copy;
}

// Calls visit(cell index, bytes) for the cells that [begin, end) of a memory touches.
template <typename Visit>
static void over(const std::vector<Cell>& cells, const Use& use, Visit&& visit) {
  auto at = std::ranges::upper_bound(cells, std::pair(use.memory, use.begin), {},
                                     [](const Cell& c) { return std::pair(c.memory, c.offset); });
  if (at != cells.begin()) --at;
  for (; at != cells.end() && at->memory == use.memory && at->offset < use.end; ++at) {
    const std::uint64_t from = std::max(at->offset, use.begin);
    const std::uint64_t to = std::min(at->offset + at->bytes, use.end);
    if (from < to) visit(static_cast<std::size_t>(at - cells.begin()), to - from);
  }
}

// Gives each cell its gates, in the order of first use.
static void link(StagePlan& stage, std::vector<Cell> cells, const std::vector<Use>& reads) {
  std::vector<std::vector<std::uint32_t>> readers(cells.size());
  for (const Use& read : reads) {  // in the order of steps
    over(cells, read, [&](std::size_t index, std::uint64_t) {
      if (readers[index].empty()) cells[index].first = read.step;
      if (readers[index].empty() || readers[index].back() != read.step) {
        readers[index].push_back(read.step);
        ++stage.initial[read.step].waiting;
      }
    });
  }
  std::vector<std::uint32_t> order(cells.size());
  for (std::uint32_t k = 0; k < order.size(); ++k) order[k] = k;
  std::ranges::stable_sort(order, {}, [&](std::uint32_t k) { return cells[k].first; });
  for (const std::uint32_t k : order) {
    Cell& cell = cells[k];
    cell.first_gate = static_cast<std::uint32_t>(stage.gates.size());
    cell.gates = static_cast<std::uint32_t>(readers[k].size());
    stage.gates.insert(stage.gates.end(), readers[k].begin(), readers[k].end());
    stage.in.push_back(cell);
  }
}

static constexpr std::size_t kMostSteps = 1024;  // beyond, nobody looks at all pairs of them

static bool meet(const Use& one, const Use& other) {
  return one.memory == other.memory && one.begin < other.end && other.begin < one.end;
}

// Which steps run in place: sends of what is on the device, because it was there from the beginning
// or has come there in place, and receives of what nothing reads but such sends. A step that runs
// over the mirrors makes those stay there that share bytes with it, until nothing changes.
static std::vector<std::uint8_t> steps_in_place(const Recipe& recipe, const StageKey& key,
                                                const std::vector<Use>& sources,
                                                const std::vector<Use>& targets) {
  const std::vector<Step>& steps = recipe.plan.steps;
  std::vector<std::uint8_t> in_place(steps.size(), 0);
  if (!key.places_any() || steps.size() > kMostSteps) return {};
  for (std::uint32_t id = 0; id < steps.size(); ++id) {
    const Use& use = steps[id].kind == Kind::Send ? sources[id] : targets[id];
    const bool moves = steps[id].kind == Kind::Send || steps[id].kind == Kind::Recv;
    in_place[id] = moves && use.end > use.begin &&
                   key.places(steps[id].peer, use.end - use.begin, steps[id].kind == Kind::Send);
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (std::uint32_t id = 0; id < steps.size(); ++id) {
      if (in_place[id] == 0) continue;
      const bool sends = steps[id].kind == Kind::Send;
      const Use& mine = sends ? sources[id] : targets[id];
      for (std::uint32_t other = 0; other < steps.size() && in_place[id] != 0; ++other) {
        if (in_place[other] != 0) continue;
        const bool writes_mine = meet(mine, targets[other]) && (!sends || other < id);
        const bool reads_mine = !sends && other > id && meet(mine, sources[other]);
        if (!writes_mine && !reads_mine) continue;
        in_place[id] = 0;
        changed = true;
      }
    }
  }
  return std::ranges::count(in_place, 1) > 0 ? in_place : std::vector<std::uint8_t>();
}

// Whether no later step reads what the step receives, and no other writes there.
static bool ends_on_device(std::uint32_t id, const std::vector<Use>& sources,
                           const std::vector<Use>& targets, const std::vector<Use>& terms) {
  const Use& mine = targets[id];
  const auto reads_later = [&](const Use& use) { return use.step > id && meet(use, mine); };
  if (mine.end == mine.begin || std::ranges::any_of(terms, reads_later)) return false;
  for (std::uint32_t other = 0; other < targets.size(); ++other) {
    if (other == id) continue;
    if (reads_later(sources[other]) || meet(targets[other], mine)) return false;
  }
  return true;
}

// Which receives the device reduces: of what it alone has had and alone will have, so that neither
// operand nor result is wanted on the host.
static std::vector<std::uint8_t> steps_summed(const Recipe& recipe, const StageKey& key,
                                              const std::vector<Use>& sources,
                                              const std::vector<Use>& targets,
                                              const std::vector<Use>& terms) {
  const std::vector<Step>& steps = recipe.plan.steps;
  std::vector<std::uint8_t> summed(steps.size(), 0);
  if (!key.sums || steps.size() > kMostSteps) return {};
  for (std::uint32_t id = 0; id < steps.size(); ++id) {
    const Use& mine = sources[id];
    if (steps[id].kind != Kind::RecvReduce || steps[id].dst.space != Space::Output) continue;
    if (mine.end == mine.begin) continue;  // it is on the host
    const auto writes_mine = [&](const Use& use) { return use.step != id && meet(use, mine); };
    summed[id] =
        std::ranges::none_of(targets, writes_mine) && ends_on_device(id, sources, targets, terms);
  }
  return std::ranges::count(summed, 1) > 0 ? summed : std::vector<std::uint8_t>();
}

// Which receives may come to the device from where the peer has staged them.
static std::vector<std::uint8_t> steps_viewed(const Recipe& recipe, const StagePlan& stage,
                                              const std::vector<Use>& sources,
                                              const std::vector<Use>& targets,
                                              const std::vector<Use>& terms) {
  const std::vector<Step>& steps = recipe.plan.steps;
  std::vector<std::uint8_t> viewed(steps.size(), 0);
  if (stage.key.views.ranks.empty() || steps.size() > kMostSteps) return {};
  for (std::uint32_t id = 0; id < steps.size(); ++id) {
    const Step& step = steps[id];
    const bool stores = step.kind == Kind::Recv || stage.sums(id);
    if (!stores || step.dst.space != Space::Output || stage.runs_in_place(id)) continue;
    viewed[id] = stage.key.views.has(step.peer, targets[id].end - targets[id].begin) &&
                 (stage.sums(id) || ends_on_device(id, sources, targets, terms));
  }
  return std::ranges::count(viewed, 1) > 0 ? viewed : std::vector<std::uint8_t>();
}

// The copies back of what one step receives, which are of nothing else.
static void add_own(StagePlan& stage, const Step& step, const Use& source, const Use& target) {
  for (Cell cell : cut({target}, stage.key.segment)) {
    cell.writes = cell.bytes;
    cell.first = target.step;
    cell.sums = stage.sums(target.step);
    if (cell.sums) {
      cell.mirror_first = step.received_first;
      cell.source_memory = source.memory;
      cell.source = source.begin + (cell.offset - target.begin);
    }
    stage.out.push_back(cell);
  }
}

static void size_memories(StagePlan& stage, const Recipe& recipe) {
  const auto output = static_cast<std::size_t>(Space::Output);
  const auto input = static_cast<std::size_t>(Space::Input);
  const StageKey& key = stage.key;
  if (!key.one) {
    for (const std::size_t each : {output, input}) {
      stage.bytes[each] = key.staged[each] ? recipe.extent[each] : 0;
    }
    return;
  }
  stage.base[output] = key.shift < 0 ? static_cast<std::uint64_t>(-key.shift) : 0;
  stage.base[input] = key.shift < 0 ? 0 : static_cast<std::uint64_t>(key.shift);
  stage.bytes[0] = std::max(stage.base[output] + recipe.extent[output],
                            stage.base[input] + recipe.extent[input]);
}

// AVG and PREMUL_SUM reduce like SUM.
device::Reduction reduction_of(const Recipe& recipe) {
  const bool plain = recipe.op != dtype::RedOp::Avg && recipe.op != dtype::RedOp::PremulSum;
  return {static_cast<std::int32_t>(recipe.type),
          static_cast<std::int32_t>(plain ? recipe.op : dtype::RedOp::Sum)};
}

std::shared_ptr<const StagePlan> make_stage_plan(const Recipe& recipe, const StageKey& key) {
  auto stage = std::make_shared<StagePlan>();
  stage->key = key;
  stage->initial = recipe.initial;
  size_memories(*stage, recipe);
  const auto use_of = [&](const Slice& slice, std::uint32_t step) -> Use {
    const std::uint64_t begin =
        stage->base[static_cast<int>(slice.space)] + slice.offset * recipe.element_bytes;
    return {stage->memory_of(slice.space), begin, begin + slice.count * recipe.element_bytes, step};
  };
  const auto staged = [&](const Slice& slice) {
    return slice.count != 0 && slice.space != Space::Scratch &&
           key.staged[stage->memory_of(slice.space)];
  };

  std::vector<Use> reads, writes;
  plan::Hazards written[2];  // by memory: what earlier steps have written
  std::vector<std::uint32_t> ignored;
  std::vector<Use> sources(recipe.plan.steps.size()), targets(recipe.plan.steps.size()), terms;
  for (std::uint32_t id = 0; id < recipe.plan.steps.size(); ++id) {
    const Step& step = recipe.plan.steps[id];
    if (staged(step.src)) sources[id] = use_of(step.src, id);
    if (staged(step.dst)) targets[id] = use_of(step.dst, id);
    for (std::uint32_t k = 0; k < step.terms; ++k) {
      const Slice& term = recipe.plan.terms[step.first_term + k];
      if (staged(term)) terms.push_back(use_of(term, id));
    }
  }
  if (std::ranges::none_of(recipe.plan.steps, reduces)) {
    stage->in_place = steps_in_place(recipe, key, sources, targets);
  }
  stage->summed = steps_summed(recipe, key, sources, targets, terms);
  stage->viewed = steps_viewed(recipe, *stage, sources, targets, terms);
  const auto apart = [&](std::uint32_t id) { return stage->sums(id) || stage->may_view(id); };
  stage->element_bytes = recipe.element_bytes;
  stage->reduction = reduction_of(recipe);
  const auto read = [&](const Slice& slice, std::uint32_t id) {
    if (!staged(slice)) return;
    const Use use = use_of(slice, id);
    for (const plan::Hazards::Range gap : written[use.memory].unwritten(use.begin, use.end)) {
      reads.push_back({use.memory, gap.begin, gap.end, id});
    }
  };
  for (std::uint32_t id = 0; id < recipe.plan.steps.size(); ++id) {
    const Step& step = recipe.plan.steps[id];
    const bool placed = stage->runs_in_place(id);
    if (placed) {
      stage->placed.push_back(id);
      ++stage->initial[id].waiting;
    }
    if (!placed && !stage->sums(id)) read(step.src, id);
    for (std::uint32_t k = 0; k < step.terms; ++k) read(recipe.plan.terms[step.first_term + k], id);
    if (!staged(step.dst)) continue;
    const Use use = use_of(step.dst, id);
    written[use.memory].write(use.begin, use.end, id, ignored);
    ignored.clear();
    if (step.dst.space == Space::Output && !placed && !apart(id)) writes.push_back(use);
  }

  link(*stage, cut(reads, key.segment), reads);
  for (std::uint32_t id = 0; id < recipe.plan.steps.size(); ++id) {
    const Kind kind = recipe.plan.steps[id].kind;
    const bool moves = kind == Kind::Send || kind == Kind::Copy;
    if (!moves || recipe.initial[id].waiting > 0 || stage->runs_in_place(id)) continue;
    if (stage->initial[id].waiting < 2) continue;
    stage->streamed.resize(recipe.plan.steps.size(), 0);
    stage->streamed[id] = 1;
  }
  stage->out = cut(writes, key.segment);
  for (const Use& write : writes) {
    over(stage->out, write,
         [&](std::size_t index, std::uint64_t bytes) { stage->out[index].writes += bytes; });
  }
  for (std::uint32_t id = 0; id < recipe.plan.steps.size(); ++id) {
    if (apart(id)) add_own(*stage, recipe.plan.steps[id], sources[id], targets[id]);
  }
  std::ranges::sort(stage->out, {}, &Cell::offset);
  for (std::uint32_t id = 0; id < recipe.plan.steps.size(); ++id) {
    const Kind kind = recipe.plan.steps[id].kind;
    const bool receives = kind == Kind::Recv || kind == Kind::RecvReduce;
    if (stage->initial[id].waiting == 0 && !receives) stage->roots.push_back(id);
  }
  std::ranges::reverse(stage->roots);
  return stage;
}

void plan_message(StagePlan& plan, std::uint64_t bytes, bool sent, std::uint64_t segment) {
  plan.key = {};
  plan.key.staged[0] = true;
  plan.key.segment = segment;
  plan.bytes[0] = bytes;
  plan.in.clear();
  plan.out.clear();
  plan.in_place.clear();
  std::vector<Cell>& cells = sent ? plan.in : plan.out;
  for (std::uint64_t at = 0; at < bytes; at += segment) {
    const std::uint64_t length = std::min(segment, bytes - at);
    cells.push_back({.offset = at, .bytes = length, .writes = length});
  }
}

}  // namespace hccomm::engine
