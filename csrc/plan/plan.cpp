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

}  // namespace hccomm::plan
