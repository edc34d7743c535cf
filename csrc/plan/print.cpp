// SPDX-License-Identifier: Apache-2.0
#include "plan/print.hpp"

#include <iomanip>
#include <map>
#include <sstream>

namespace hccomm::plan {

std::vector<Traffic> traffic(const Plan& plan) {
  std::map<int, Traffic> peers;
  for (const Step& step : plan.steps) {
    if (step.peer < 0) continue;
    Traffic& entry = peers[step.peer];
    if (step.kind == Kind::Send) {
      ++entry.sent_messages;
      entry.sent_elements += step.src.count;
    } else {
      ++entry.received_messages;
      entry.received_elements += step.dst.count;
    }
  }
  std::vector<Traffic> sorted;
  for (auto& [peer, entry] : peers) {
    entry.peer = peer;
    sorted.push_back(entry);
  }
  return sorted;
}

static std::ostream& operator<<(std::ostream& out, const Slice& slice) {
  static constexpr const char* kNames[] = {"output", "input", "scratch"};
  if (slice.count == 0) return out << "nothing";
  return out << kNames[static_cast<std::size_t>(slice.space)] << '[' << slice.offset << ".."
             << slice.offset + slice.count << ')';
}

static void print_terms(std::ostream& out, const Plan& plan, const Step& step) {
  for (std::uint32_t k = 0; k < step.terms; ++k) {
    out << (k == 0 ? " = " : " op ") << plan.terms[step.first_term + k];
  }
}

std::string print(const Plan& plan, const Step& step) {
  std::ostringstream out;
  switch (step.kind) {
    case Kind::Send: out << "send " << step.src << " to rank " << step.peer; break;
    case Kind::Recv: out << "receive " << step.dst << " from rank " << step.peer; break;
    case Kind::RecvReduce:
      out << "reduce " << step.dst << " = ";
      if (step.received_first) out << "received op " << step.src;
      if (!step.received_first) out << step.src << " op received";
      out << " from rank " << step.peer;
      break;
    case Kind::Copy:
      if (step.dst.count == 0) out << "join";
      if (step.dst.count != 0) out << "copy " << step.dst << " = " << step.src;
      break;
    case Kind::Reduce:
      out << "reduce " << step.dst;
      print_terms(out, plan, step);
      break;
    case Kind::Multiply: out << "multiply " << step.dst << " = " << step.src << " * factor"; break;
    case Kind::Divide: out << "divide " << step.dst << " = " << step.src << " / ranks"; break;
  }
  if (step.peer >= 0) out << " (message " << step.index << ")";
  return std::move(out).str();
}

std::string print(const Plan& plan) {
  std::ostringstream out;
  out << plan.algorithm << ": " << plan.steps.size() << " steps, " << plan.scratch_count
      << " elements of scratch\n";
  for (std::size_t id = 0; id < plan.steps.size(); ++id) {
    const Step& step = plan.steps[id];
    out << std::setw(6) << id << "  " << print(plan, step);
    for (std::uint32_t k = 0; k < step.dependents; ++k) {
      out << (k == 0 ? "; then " : ", ") << plan.edges[step.first_dependent + k];
    }
    out << '\n';
  }
  for (const Traffic& entry : traffic(plan)) {
    out << "  rank " << entry.peer << ": sends " << entry.sent_messages << " messages of "
        << entry.sent_elements << " elements, receives " << entry.received_messages << " of "
        << entry.received_elements << '\n';
  }
  return std::move(out).str();
}

}  // namespace hccomm::plan
