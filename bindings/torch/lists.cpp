// SPDX-License-Identifier: Apache-2.0
//
// The collectives over lists of tensors. A list travels as one flat tensor, so that ranks with
// lists and ranks with one big tensor meet in the same call. Several tensors per rank become
// several operations behind one Work, unless they are small: then one flat tensor.
#include <ATen/record_function.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "backend.hpp"
#include "errors.hpp"

namespace hccomm::glue {

// Coalesced tensors up to this many bytes in all are packed. The same on every rank, as the shapes
// are.
static constexpr int64_t kPackedBytes = 256 * 1024;

static std::vector<uint64_t> counts_of(at::TensorList tensors, const Element& element) {
  std::vector<uint64_t> counts;
  for (const at::Tensor& tensor : tensors) {
    counts.push_back(static_cast<uint64_t>(tensor.numel()) * element.units);
  }
  return counts;
}

static bool uniform(const std::vector<uint64_t>& counts) {
  return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
}

// The list that holds one tensor per rank, inside the list of lists that c10d hands over.
static Tensors& one_list(const char* operation, TensorLists& lists, const char* which, int size) {
  if (lists.size() != 1) {
    invalid(operation, c10::str("requires a single-element ", which,
                                " list containing a list with ", size, " tensors"));
  }
  if (lists[0].size() != static_cast<std::size_t>(size)) {
    invalid(operation, c10::str("invalid ", which, " tensor list at index 0 (expected length ",
                                size, ", got ", lists[0].size(), ")"));
  }
  return lists[0];
}

WorkPtr HccommBackend::allgather(TensorLists& outputs, Tensors& inputs,
                                 const c10d::AllgatherOptions& options) {
  Operation operation(HCCOMM_ALL_GATHER, c10d::OpType::ALLGATHER, "all_gather");
  check_single(operation.name, inputs, "input ");
  Tensors& list = one_list(operation.name, outputs, "output", size_);
  check_dtypes(operation.name, list, inputs[0]);
  check_like(operation.name, {list[rank_]}, inputs[0]);
  operation.take(options);
  operation.elements(inputs[0], /*reduces=*/false);
  // Ranks may contribute different amounts; every rank's list says how much.
  operation.counts = counts_of(list, operation.element);
  if (uniform(operation.counts)) {
    operation.counts.clear();
    operation.count(inputs[0].numel());
  }
  operation.input = input_of(inputs[0]);
  operation.output = flat_output(list, operation.keep);
  operation.keep.results = list;
  return issue(operation);
}

WorkPtr HccommBackend::gather(TensorLists& outputs, Tensors& inputs,
                              const c10d::GatherOptions& options) {
  Operation operation(HCCOMM_GATHER, c10d::OpType::GATHER, "gather");
  check_root(operation.name, options.rootRank, size_);
  check_single(operation.name, inputs, "input ");
  operation.take(options);
  operation.elements(inputs[0], /*reduces=*/false);
  operation.call.root = static_cast<int32_t>(options.rootRank);
  operation.input = input_of(inputs[0]);
  operation.writes = options.rootRank == rank_;
  operation.count(inputs[0].numel());
  if (operation.writes) {
    Tensors& list = one_list(operation.name, outputs, "output", size_);
    check_like(operation.name, list, inputs[0]);
    operation.output = flat_output(list, operation.keep);
    operation.keep.results = list;
  } else if (!outputs.empty() && !outputs[0].empty()) {
    invalid(operation.name, "requires empty output on non-root");
  }
  return issue(operation);
}

WorkPtr HccommBackend::scatter(Tensors& outputs, TensorLists& inputs,
                               const c10d::ScatterOptions& options) {
  Operation operation(HCCOMM_SCATTER, c10d::OpType::SCATTER, "scatter");
  check_root(operation.name, options.rootRank, size_);
  check_single(operation.name, outputs, "output ");
  operation.take(options);
  operation.elements(outputs[0], /*reduces=*/false);
  operation.call.root = static_cast<int32_t>(options.rootRank);
  operation.reads = options.rootRank == rank_;
  if (operation.reads) {
    Tensors& list = one_list(operation.name, inputs, "input", size_);
    check_like(operation.name, list, outputs[0]);
    operation.input = flat_input(list);
  } else if (!inputs.empty() && !inputs[0].empty()) {
    invalid(operation.name, "requires empty input on non-root");
  }
  operation.output = output_of(outputs[0], operation.keep);
  operation.count(outputs[0].numel());
  operation.keep.results.push_back(outputs[0]);
  return issue(operation);
}

WorkPtr HccommBackend::reduce_scatter(Tensors& outputs, TensorLists& inputs,
                                      const c10d::ReduceScatterOptions& options) {
  Operation operation(HCCOMM_REDUCE_SCATTER, c10d::OpType::REDUCE_SCATTER, "reduce_scatter");
  check_single(operation.name, outputs, "output ");
  Tensors& list = one_list(operation.name, inputs, "input", size_);
  check_dtypes(operation.name, list, outputs[0]);
  check_like(operation.name, {list[rank_]}, outputs[0]);
  operation.take(options);
  operation.elements(outputs[0], /*reduces=*/true);
  set_reduction(operation, options.reduceOp);
  operation.counts = counts_of(list, operation.element);
  if (uniform(operation.counts)) {
    operation.counts.clear();
    operation.count(outputs[0].numel());
  }
  operation.input = flat_input(list);
  operation.output = output_of(outputs[0], operation.keep);
  operation.keep.results.push_back(outputs[0]);
  return issue(operation);
}

WorkPtr HccommBackend::alltoall(Tensors& outputs, Tensors& inputs,
                                const c10d::AllToAllOptions& options) {
  Operation operation(HCCOMM_ALL_TO_ALL, c10d::OpType::ALLTOALL, "all_to_all");
  const auto ranks = static_cast<std::size_t>(size_);
  if (inputs.size() != ranks) {
    invalid(operation.name, c10::str("input tensor list size ", inputs.size(),
                                     " does not match world size ", size_));
  }
  if (outputs.size() != ranks) {
    invalid(operation.name, c10::str("output tensor list size ", outputs.size(),
                                     " does not match world size ", size_));
  }
  check_dtypes(operation.name, inputs, inputs[0]);
  check_dtypes(operation.name, outputs, inputs[0]);
  operation.take(options);
  operation.elements(inputs[0], /*reduces=*/false);
  operation.counts = counts_of(inputs, operation.element);
  operation.recv_counts = counts_of(outputs, operation.element);
  operation.input = flat_input(inputs);
  operation.output = flat_output(outputs, operation.keep);
  operation.keep.results = outputs;
  return issue(operation);
}

// ---- several tensors per rank ------------------------------------------------------------------

template <typename Each>
WorkPtr HccommBackend::together(c10d::OpType type, const char* name, const Tensors& shown,
                                bool async, const Each& each) {
  // The parts start one after the other and are waited for as one, also by startCoalescing(); the
  // profiler sees the whole.
  std::string title;
  if (at::hasCallbacks() && !part_of_one_) title = options_->backend + ':' + name;
  const Ticket ticket{rank_, type, title.empty() ? nullptr : title.c_str(), &shown, sequence_ + 1,
                      0,     false};
  auto whole = c10::make_intrusive<BatchWork>(ticket);
  std::optional<std::vector<WorkPtr>> outer = std::exchange(batch_, std::vector<WorkPtr>());
  const bool part_of_outer = std::exchange(part_of_one_, true);
  std::vector<WorkPtr> works;
  const auto leave = [&] {
    batch_ = std::move(outer);
    part_of_one_ = part_of_outer;
  };
  try {
    for (std::size_t part = 0; part < shown.size(); ++part) works.push_back(each(part));
  } catch (...) {
    leave();
    throw;
  }
  leave();
  whole->take(std::move(works));
  if (batch_) {
    batch_->push_back(whole);
  } else if (!async) {
    whole->wait(kNoTimeout);
  }
  return whole;
}

static int64_t bytes_of(at::TensorList tensors) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

static bool same_kind(at::TensorList tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return tensor.scalar_type() == tensors[0].scalar_type() &&
           tensor.device() == tensors[0].device();
  });
}

WorkPtr HccommBackend::allreduce_coalesced(Tensors& tensors,
                                           const c10d::AllreduceCoalescedOptions& options) {
  if (tensors.empty()) invalid("all_reduce_coalesced", "requires non-empty tensor list");
  for (const at::Tensor& tensor : tensors) check_dense("all_reduce_coalesced", tensor);
  if (!same_kind(tensors) || bytes_of(tensors) > kPackedBytes) {
    return together(c10d::OpType::ALLREDUCE_COALESCED, "all_reduce_coalesced", tensors,
                    options.asyncOp, [&](std::size_t part) {
                      Tensors one{tensors[part]};
                      return allreduce(one, options);
                    });
  }
  Operation operation(HCCOMM_ALL_REDUCE, c10d::OpType::ALLREDUCE_COALESCED, "all_reduce_coalesced");
  operation.take(options);
  operation.elements(tensors[0], /*reduces=*/true);
  set_reduction(operation, options.reduceOp);
  operation.input = operation.output = flat_inout(tensors, operation.keep);
  operation.count(operation.input.numel());
  operation.keep.results = tensors;
  return issue(operation);
}

static void check_pairs(const char* operation, const Tensors& outputs, const Tensors& inputs) {
  if (outputs.empty() || outputs.size() != inputs.size()) {
    invalid(operation, c10::str("requires input/output tensor lists to have the same length, got ",
                                inputs.size(), " and ", outputs.size()));
  }
}

WorkPtr HccommBackend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                       const c10d::AllgatherOptions& options) {
  check_pairs("all_gather_into_tensor_coalesced", outputs, inputs);
  if (outputs.size() == 1) return _allgather_base(outputs[0], inputs[0], options);
  return together(c10d::OpType::ALLGATHER_COALESCED, "all_gather_into_tensor_coalesced", inputs,
                  options.asyncOp, [&](std::size_t part) {
                    return _allgather_base(outputs[part], inputs[part], options);
                  });
}

WorkPtr HccommBackend::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                       const c10d::ReduceScatterOptions& options) {
  check_pairs("reduce_scatter_tensor_coalesced", outputs, inputs);
  if (outputs.size() == 1) return _reduce_scatter_base(outputs[0], inputs[0], options);
  return together(
      c10d::OpType::COALESCED, "reduce_scatter_tensor_coalesced", inputs, options.asyncOp,
      [&](std::size_t part) { return _reduce_scatter_base(outputs[part], inputs[part], options); });
}

WorkPtr HccommBackend::allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                                           const c10d::AllgatherOptions& options) {
  static constexpr const char* kName = "all_gather_coalesced";
  if (inputs.empty()) invalid(kName, "requires non-empty input tensor list");
  if (outputs.size() != static_cast<std::size_t>(size_)) {
    invalid(kName, c10::str("output lists should be equal to world size ", size_, ", got ",
                            outputs.size()));
  }
  for (const Tensors& list : outputs) {
    if (list.size() != inputs.size()) {
      invalid(kName, c10::str("invalid output size: (expected length ", inputs.size(), ", got ",
                              list.size(), ")"));
    }
  }
  return together(c10d::OpType::ALLGATHER_COALESCED, kName, inputs, options.asyncOp,
                  [&](std::size_t part) {
                    TensorLists column(1);
                    for (const Tensors& list : outputs) column[0].push_back(list[part]);
                    Tensors one{inputs[part]};
                    return allgather(column, one, options);
                  });
}

}  // namespace hccomm::glue
