// SPDX-License-Identifier: Apache-2.0
#include "plan/plan.hpp"

namespace hccomm::plan {

const char* name(Collective collective) noexcept {
  switch (collective) {
    case Collective::AllReduce: return "allreduce";
    case Collective::AllGather: return "allgather";
    case Collective::ReduceScatter: return "reducescatter";
    case Collective::Broadcast: return "broadcast";
    case Collective::Reduce: return "reduce";
    case Collective::Gather: return "gather";
    case Collective::Scatter: return "scatter";
    case Collective::AllToAll: return "alltoall";
    case Collective::Barrier: return "barrier";
  }
  return "unknown collective";
}

bool means(std::string_view word, Collective collective) noexcept {
  const char* at = name(collective);
  for (const char each : word) {
    if (each == '_') continue;
    if (*at == '\0' || *at++ != each) return false;
  }
  return *at == '\0';
}

}  // namespace hccomm::plan
