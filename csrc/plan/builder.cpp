// SPDX-License-Identifier: Apache-2.0
//
// Every step is added once its slices are known by their canonical name (shape.hpp), so that an
// Input and an Output that are the same memory share one interval map. A step waits for the last
// writer of what it reads, and for that writer's readers, or the writer, of what it writes: each
// interval keeps just those, so the work is near linear in the steps, however many there are.
#include "plan/builder.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "plan/shape.hpp"

namespace hccomm::plan {

Builder::Builder(const Call& call, const Group& group)
    : call_(call),
      group_(group),
      aliased_(aliased(call, group)),
      same_shape_(same_shape(call.collective)),
      output_is_scratch_(call.collective == Collective::Reduce && group.rank != call.root),
      extents_{output_count(call, group), input_count(call, group)} {}

void Builder::send(int peer, Slice src) {
  if (src.count == 0) return;
  add(message(Kind::Send, peer, {}, source(src)));
}

void Builder::recv(int peer, Slice dst) {
  if (dst.count == 0) return;
  add(message(Kind::Recv, peer, place(dst), {}));
}

void Builder::recv_reduce(int peer, Slice dst) { recv_reduce(peer, dst, dst); }

void Builder::recv_reduce(int peer, Slice dst, Slice src) {
  HCCOMM_CHECK(dst.count == src.count, "operands of a reduction have the same length");
  if (dst.count == 0) return;
  const Slice operand = source(src);
  Step step = message(Kind::RecvReduce, peer, place(dst), operand);
  step.received_first = peer < group_.rank;
  add(step);
}

void Builder::copy(Slice dst, Slice src) {
  HCCOMM_CHECK(dst.count == src.count, "a copy keeps its length");
  if (dst.count == 0) return;
  const Slice from = source(src);
  const Slice to = place(dst);
  if (canonical(call_, group_, from) == canonical(call_, group_, to)) return;
  add({.kind = Kind::Copy, .dst = to, .src = from});
}

void Builder::reduce(Slice dst, std::vector<Slice> terms) {
  for (Slice& term : terms) {
    HCCOMM_CHECK(term.count == dst.count, "operands of a reduction have the same length");
    if (term.count != 0) term = source(term);
  }
  if (dst.count == 0) return;
  HCCOMM_CHECK(!terms.empty(), "a reduction has terms");
  Step step{.kind = Kind::Reduce, .dst = place(dst)};
  step.first_term = static_cast<std::uint32_t>(plan_.terms.size());
  step.terms = static_cast<std::uint32_t>(terms.size());
  plan_.terms.insert(plan_.terms.end(), terms.begin(), terms.end());
  add(step);
}

void Builder::premultiply(Slice dst) {
  if (call_.op != dtype::RedOp::PremulSum || dst.count == 0) return;
  const Slice from = source(dst);
  add({.kind = Kind::Multiply, .dst = place(dst), .src = from});
}

Slice Builder::premultiplied(Slice src) {
  if (call_.op != dtype::RedOp::PremulSum || src.count == 0) return src;
  const Slice product = scratch(src.count);
  add({.kind = Kind::Multiply, .dst = product, .src = source(src)});
  return product;
}

void Builder::average(Slice dst) {
  if (call_.op != dtype::RedOp::Avg || dst.count == 0) return;
  const Slice from = source(dst);
  add({.kind = Kind::Divide, .dst = place(dst), .src = from});
}

void Builder::signal(int peer) { add(message(Kind::Send, peer, {}, {})); }

void Builder::await(int peer) { add(message(Kind::Recv, peer, {}, {})); }

// One step that all earlier ones lead to stands for them all: the only one that nothing waits for
// yet, or else a Copy of no elements that waits for each of those.
void Builder::fence() {
  const auto size = static_cast<std::uint32_t>(plan_.steps.size());
  if (size == 0 || (fenced_ && fence_ == size)) return;
  std::vector<std::uint32_t> ends;
  for (std::uint32_t step = fenced_ ? fence_ - 1 : 0; step < size; ++step) {
    if (!awaited_[step]) ends.push_back(step);
  }
  if (ends.size() > 1 || ends[0] != size - 1) {
    now_ = ends;
    add({.kind = Kind::Copy});
  }
  fence_ = static_cast<std::uint32_t>(plan_.steps.size());
  fenced_ = true;
}

Slice Builder::scratch(std::uint64_t count) {
  const Slice range{plan_.scratch_count, count, Space::Scratch};
  plan_.scratch_count += count;
  return range;
}

Step Builder::message(Kind kind, int peer, Slice dst, Slice src) {
  HCCOMM_CHECK(peer != group_.rank, "a plan never sends to its own rank");
  HCCOMM_CHECK(peer >= 0 && peer < group_.size, "a peer is a rank of the group");
  std::uint32_t& count = kind == Kind::Send ? sent_[peer] : received_[peer];
  return {.kind = kind, .peer = peer, .index = count++, .dst = dst, .src = src};
}

// Where a slice is written: an Output that this rank has not got is made of scratch.
Slice Builder::place(Slice slice) {
  if (slice.space != Space::Output || !output_is_scratch_ || slice.count == 0) return slice;
  HCCOMM_CHECK(slice.count <= call_.count && slice.offset <= call_.count - slice.count,
               "a slice lies inside its buffer");
  if (output_.count == 0) output_ = scratch(call_.count);
  return {output_.offset + slice.offset, slice.count, Space::Scratch};
}

// Where a slice is read: what Output does not hold yet is in Input, at the same offset.
Slice Builder::source(Slice slice) {
  if (slice.space != Space::Output || !same_shape_ || aliased_ || extents_[1] == 0) return slice;
  const Slice input{slice.offset, slice.count, Space::Input};
  if (output_is_scratch_ && output_.count == 0) return input;
  const Slice output = place(slice);
  const Hazards& known = hazards_[static_cast<std::size_t>(output.space)];
  const std::uint64_t end = output.offset + output.count;
  switch (known.written(output.offset, end)) {
    case Hazards::Written::All: return output;
    case Hazards::Written::Nothing: return input;
    case Hazards::Written::Partly: break;
  }
  for (const Hazards::Range gap : known.unwritten(output.offset, end)) {
    const std::uint64_t length = gap.end - gap.begin;
    const std::uint64_t offset = slice.offset + (gap.begin - output.offset);
    add({.kind = Kind::Copy,
         .dst = {gap.begin, length, output.space},
         .src = {offset, length, Space::Input}});
  }
  return output;
}

void Builder::touch(Slice slice, bool write, std::uint32_t step) {
  if (slice.count == 0) return;
  const auto space = static_cast<std::size_t>(slice.space);
  const std::uint64_t extent = space < 2 ? extents_[space] : plan_.scratch_count;
  HCCOMM_CHECK(slice.count <= extent && slice.offset <= extent - slice.count,
               "a slice lies inside its buffer");
  const Slice named = aliased_ ? canonical(call_, group_, slice) : slice;
  Hazards& map = hazards_[static_cast<std::size_t>(named.space)];
  if (write) {
    map.write(named.offset, named.offset + named.count, step, now_);
  } else {
    map.read(named.offset, named.offset + named.count, step, now_);
  }
}

std::uint32_t Builder::add(Step step) {
  const auto id = static_cast<std::uint32_t>(plan_.steps.size());
  touch(step.src, false, id);
  for (std::uint32_t k = 0; k < step.terms; ++k) {
    touch(plan_.terms[step.first_term + k], false, id);
  }
  touch(step.dst, true, id);

  std::sort(now_.begin(), now_.end());
  now_.erase(std::unique(now_.begin(), now_.end()), now_.end());
  if (!now_.empty() && now_.back() == id) now_.pop_back();
  if (fenced_ && id >= fence_) {  // the fence's step stands for all before it
    now_.erase(now_.begin(), std::lower_bound(now_.begin(), now_.end(), fence_ - 1));
    if (now_.empty()) now_.push_back(fence_ - 1);
  }
  for (const std::uint32_t wait : now_) awaited_[wait] = 1;
  step.dependencies = static_cast<std::uint32_t>(now_.size());
  waits_.insert(waits_.end(), now_.begin(), now_.end());
  now_.clear();
  awaited_.push_back(0);
  plan_.steps.push_back(step);
  return id;
}

void Builder::copy_untouched() {
  if (!same_shape_ || aliased_ || output_is_scratch_ || extents_[1] == 0) return;
  const auto output = static_cast<std::size_t>(Space::Output);
  for (const Hazards::Range gap : hazards_[output].unwritten(0, extents_[0])) {
    const std::uint64_t length = gap.end - gap.begin;
    add({.kind = Kind::Copy,
         .dst = {gap.begin, length, Space::Output},
         .src = {gap.begin, length, Space::Input}});
  }
}

void Builder::link_edges() {
  for (const std::uint32_t wait : waits_) ++plan_.steps[wait].dependents;
  std::uint32_t first = 0;
  for (Step& step : plan_.steps) {
    step.first_dependent = first;
    first += step.dependents;
    step.dependents = 0;  // counts up again below
  }
  plan_.edges.resize(waits_.size());
  std::size_t next = 0;
  for (std::uint32_t id = 0; id < plan_.steps.size(); ++id) {
    for (std::uint32_t k = 0; k < plan_.steps[id].dependencies; ++k) {
      Step& before = plan_.steps[waits_[next++]];
      plan_.edges[before.first_dependent + before.dependents++] = id;
    }
  }
}

void Builder::link_messages() {
  for (const auto& [peer, count] : sent_) plan_.outlets.push_back(peer);
  std::sort(plan_.outlets.begin(), plan_.outlets.end());
  for (const auto& [peer, count] : received_) plan_.inlets.push_back({peer, 0, count});
  std::sort(plan_.inlets.begin(), plan_.inlets.end(),
            [](const Inlet& a, const Inlet& b) { return a.peer < b.peer; });
  std::uint32_t first = 0;
  for (Inlet& inlet : plan_.inlets) {
    inlet.first = received_[inlet.peer] = first;  // from now on: where its messages begin
    first += inlet.count;
  }
  plan_.recv_steps.resize(first);
  for (std::uint32_t id = 0; id < plan_.steps.size(); ++id) {
    const Step& step = plan_.steps[id];
    if (step.kind != Kind::Recv && step.kind != Kind::RecvReduce) continue;
    plan_.recv_steps[received_[step.peer] + step.index] = id;
  }
}

Plan Builder::take(const char* algorithm) {
  copy_untouched();
  link_edges();
  link_messages();
  plan_.algorithm = algorithm;
  return std::move(plan_);
}

}  // namespace hccomm::plan
