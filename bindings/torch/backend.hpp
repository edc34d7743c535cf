// SPDX-License-Identifier: Apache-2.0
//
// The c10d backend "hccomm". Torch calls the virtual methods; each fills in an Operation and
// issues it. Everything that c10d knows is here: collectives.cpp has the single-tensor calls,
// lists.cpp the tensor lists, point_to_point.cpp the rest of the traffic, backend.cpp the life.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "group.hpp"
#include "operation.hpp"
#include "work.hpp"

namespace hccomm::glue {

using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<std::vector<at::Tensor>>;

// One process group, whatever device types its tensors are on.
//
// Owns:   its Group until shutdown().
// Thread: as c10d asks: calls of one group come from one thread at a time; abort() from any.
// Fails:  wrong arguments raise at once, as RuntimeError; everything else at wait().
class HccommBackend final : public c10d::Backend {
 public:
  HccommBackend(std::shared_ptr<Group> group, const c10::intrusive_ptr<Options>& options);

  // ---- life (backend.cpp)
  const std::string getBackendName() const override { return "hccomm"; }  // options_ has the alias
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  bool supportsSplitting() const override { return true; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(std::chrono::milliseconds timeout) override;
  void startCoalescing() override;
  WorkPtr endCoalescing() override;
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }
  void enableCollectivesTiming() override { timed_ = true; }
  c10::intrusive_ptr<c10d::Backend> split(const c10::intrusive_ptr<c10d::Store>& store,
                                          const std::vector<int>& ranks,
                                          const c10::intrusive_ptr<Options>& options) override;
  c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;
  // JSON about the group: peers, hosts, transports.
  std::string describe() const;
  // The group, for those that make subgroups of it; nullptr after shutdown().
  const std::shared_ptr<Group>& group() const { return group_; }

  // ---- one tensor per rank (collectives.cpp)
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits,
                        const c10d::AllToAllOptions& options) override;
  WorkPtr barrier(const c10d::BarrierOptions& options) override;
  WorkPtr allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) override;

  // ---- lists of tensors (lists.cpp)
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options) override;
  WorkPtr gather(TensorLists& outputs, Tensors& inputs,
                 const c10d::GatherOptions& options) override;
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs,
                  const c10d::ScatterOptions& options) override;
  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const c10d::ReduceScatterOptions& options) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs,
                   const c10d::AllToAllOptions& options) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override;
  WorkPtr allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override;

  // ---- between two ranks (point_to_point.cpp)
  WorkPtr send(Tensors& tensors, int to, int tag) override;
  WorkPtr recv(Tensors& tensors, int from, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;
  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override;

 private:
  // Sends the operation off. `results` are what the Work answers with.
  WorkPtr issue(Operation& operation);
  WorkPtr issue_recorded(Operation& operation);
  WorkPtr launch(Operation& operation, const char* title);
  Ticket ticket(const Operation& operation, const char* title) const;
  // Runs an operation to its end in the caller.
  void run(Operation& operation);
  hccomm_comm* open(const char* operation) const;
  // One Work of several, none of which the batch of startCoalescing() counts by itself.
  template <typename Each>
  WorkPtr together(c10d::OpType type, const char* name, const Tensors& shown, bool async,
                   const Each& each);
  uint64_t note(const Operation& operation);  // in the flight recorder

  std::shared_ptr<Group> group_;
  const Health health_;
  const c10::intrusive_ptr<Options> options_;
  uint64_t sequence_ = 0;
  bool timed_ = false;
  std::optional<std::size_t> recorded_as_;     // our number in the flight recorder
  std::optional<std::vector<WorkPtr>> batch_;  // between start- and endCoalescing()
  bool part_of_one_ = false;                   // inside together(), which records the whole
  // split() is asked once per device type: the last child and the name it was made under.
  std::string last_split_;
  c10::weak_intrusive_ptr<c10d::Backend> last_child_;
};

// Fills in op and factor. Raises for what has no meaning here.
void set_reduction(Operation& operation, const c10d::ReduceOp& op);

}  // namespace hccomm::glue
