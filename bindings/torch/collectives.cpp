// SPDX-License-Identifier: Apache-2.0
//
// The collectives with one tensor per rank.
#include "backend.hpp"
#include "errors.hpp"

namespace hccomm::glue {

void set_reduction(Operation& operation, const c10d::ReduceOp& op) {
  switch (op.op_) {
    case c10d::ReduceOp::SUM: operation.call.op = HCCOMM_SUM; return;
    case c10d::ReduceOp::AVG: operation.call.op = HCCOMM_AVG; return;
    case c10d::ReduceOp::PRODUCT: operation.call.op = HCCOMM_PROD; return;
    case c10d::ReduceOp::MIN: operation.call.op = HCCOMM_MIN; return;
    case c10d::ReduceOp::MAX: operation.call.op = HCCOMM_MAX; return;
    case c10d::ReduceOp::BAND: operation.call.op = HCCOMM_BAND; return;
    case c10d::ReduceOp::BOR: operation.call.op = HCCOMM_BOR; return;
    case c10d::ReduceOp::BXOR: operation.call.op = HCCOMM_BXOR; return;
    case c10d::ReduceOp::PREMUL_SUM: break;
    default: invalid(operation.name, "Unhandled ReduceOp");
  }
  operation.call.op = HCCOMM_PREMUL_SUM;
  const auto* factor = dynamic_cast<const c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
  if (!factor) invalid(operation.name, "PREMUL_SUM needs a factor");
  operation.call.factor = factor->tensor_factor.defined() ? factor->tensor_factor.item<double>()
                                                          : factor->double_factor;
}

// Gloo's words, which scripts match, for what the core would refuse in its own.
static void check_reduction(const Operation& operation, const at::Tensor& tensor) {
  const int32_t op = operation.call.op;
  const bool bitwise = op == HCCOMM_BAND || op == HCCOMM_BOR || op == HCCOMM_BXOR;
  if (bitwise && !c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/true)) {
    static const char* const names[] = {"BAND", "BOR", "BXOR"};
    invalid(operation.name, c10::str("Cannot use ReduceOp.", names[op - HCCOMM_BAND],
                                     " with non-integral dtype ", tensor.scalar_type()));
  }
}

static void reduction_of(Operation& operation, const at::Tensor& model, const c10d::ReduceOp& op) {
  operation.elements(model, /*reduces=*/true);
  set_reduction(operation, op);
  check_reduction(operation, model);
}

WorkPtr HccommBackend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  Operation operation(HCCOMM_ALL_REDUCE, c10d::OpType::ALLREDUCE, "all_reduce");
  if (tensors.size() == 1 && tensors[0].layout() == at::kSparse) {
    return allreduce_sparse(tensors, options);
  }
  check_single(operation.name, tensors);
  operation.take(options);
  reduction_of(operation, tensors[0], options.reduceOp);
  operation.input = operation.output = inout_of(tensors[0], operation.keep);
  operation.count(tensors[0].numel());
  operation.keep.results.push_back(tensors[0]);
  return issue(operation);
}

WorkPtr HccommBackend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  Operation operation(HCCOMM_BROADCAST, c10d::OpType::BROADCAST, "broadcast");
  check_root(operation.name, options.rootRank, size_);
  check_single(operation.name, tensors);
  operation.take(options);
  operation.elements(tensors[0], /*reduces=*/false);
  operation.call.root = static_cast<int32_t>(options.rootRank);
  operation.reads = options.rootRank == rank_;
  operation.writes = !operation.reads;
  operation.input = operation.output =
      operation.reads ? input_of(tensors[0]) : output_of(tensors[0], operation.keep);
  operation.count(tensors[0].numel());
  operation.keep.results.push_back(tensors[0]);
  return issue(operation);
}

WorkPtr HccommBackend::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  Operation operation(HCCOMM_REDUCE, c10d::OpType::REDUCE, "reduce");
  check_root(operation.name, options.rootRank, size_);
  check_single(operation.name, tensors);
  operation.take(options);
  reduction_of(operation, tensors[0], options.reduceOp);
  operation.call.root = static_cast<int32_t>(options.rootRank);
  operation.writes = options.rootRank == rank_;
  if (operation.writes) {
    operation.input = operation.output = inout_of(tensors[0], operation.keep);
  } else {
    operation.input = input_of(tensors[0]);
  }
  operation.count(tensors[0].numel());
  operation.keep.results.push_back(tensors[0]);
  return issue(operation);
}

WorkPtr HccommBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                       const c10d::AllgatherOptions& options) {
  Operation operation(HCCOMM_ALL_GATHER, c10d::OpType::_ALLGATHER_BASE, "all_gather_into_tensor");
  check_dtypes(operation.name, {output, input}, input);
  if (output.numel() != input.numel() * size_) {
    invalid(operation.name,
            c10::str("output tensor size must be equal to world_size times input tensor size: "
                     "output has ",
                     output.numel(), " elements, ", size_, " times input ", input.numel() * size_));
  }
  operation.take(options);
  operation.elements(input, /*reduces=*/false);
  operation.input = input_of(input);
  operation.output = output_of(output, operation.keep);
  operation.count(input.numel());
  operation.keep.results.push_back(output);
  return issue(operation);
}

WorkPtr HccommBackend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                            const c10d::ReduceScatterOptions& options) {
  Operation operation(HCCOMM_REDUCE_SCATTER, c10d::OpType::_REDUCE_SCATTER_BASE,
                      "reduce_scatter_tensor");
  check_dtypes(operation.name, {input, output}, output);
  if (input.numel() != output.numel() * size_) {
    invalid(
        operation.name,
        c10::str("input tensor must be the same size as output size times world size: input "
                 "has ",
                 input.numel(), " elements, ", size_, " times output ", output.numel() * size_));
  }
  operation.take(options);
  reduction_of(operation, output, options.reduceOp);
  operation.input = input_of(input);
  operation.output = output_of(output, operation.keep);
  operation.count(output.numel());
  operation.keep.results.push_back(output);
  return issue(operation);
}

// Elements per peer from rows per peer.
static std::vector<uint64_t> split_counts(const char* operation, const std::vector<int64_t>& splits,
                                          const at::Tensor& tensor, int size, uint64_t units) {
  const int64_t rows = tensor.dim() > 0 ? tensor.size(0) : 0;
  if (splits.empty()) {
    if (rows % size != 0) {
      invalid(operation, c10::str("Tensor's dim 0 (", rows,
                                  ") does not divide equally across group "
                                  "size ",
                                  size));
    }
    return std::vector<uint64_t>(size, static_cast<uint64_t>(tensor.numel() / size) * units);
  }
  if (splits.size() != static_cast<std::size_t>(size)) {
    invalid(operation, c10::str("Number of tensor splits not equal to group size: ", splits.size(),
                                " splits, ", size, " ranks"));
  }
  const int64_t row = rows > 0 ? tensor.numel() / rows : 1;
  std::vector<uint64_t> counts;
  int64_t total = 0;
  for (const int64_t split : splits) {
    if (split < 0) invalid(operation, c10::str("negative split size ", split));
    total += split;
    counts.push_back(static_cast<uint64_t>(split * row) * units);
  }
  if (total != rows) {
    invalid(operation, c10::str("Split sizes doesn't match total dim 0 size: they add up to ",
                                total, ", the tensor has ", rows));
  }
  return counts;
}

WorkPtr HccommBackend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                     std::vector<int64_t>& output_splits,
                                     std::vector<int64_t>& input_splits,
                                     const c10d::AllToAllOptions& options) {
  Operation operation(HCCOMM_ALL_TO_ALL, c10d::OpType::ALLTOALL_BASE, "all_to_all_single");
  check_dtypes(operation.name, {output, input}, input);
  operation.take(options);
  operation.elements(input, /*reduces=*/false);
  const uint64_t units = operation.element.units;
  operation.counts = split_counts(operation.name, input_splits, input, size_, units);
  operation.recv_counts = split_counts(operation.name, output_splits, output, size_, units);
  if (input_splits.empty() && output_splits.empty()) {
    if (input.numel() != output.numel()) {
      invalid(operation.name, c10::str("input and output tensors of equal splits must have equal "
                                       "sizes, got ",
                                       input.numel(), " and ", output.numel()));
    }
    operation.counts.clear();
    operation.recv_counts.clear();
    operation.count(input.numel() / size_);
  }
  operation.input = input_of(input);
  operation.output = output_of(output, operation.keep);
  operation.keep.results.push_back(output);
  return issue(operation);
}

WorkPtr HccommBackend::barrier(const c10d::BarrierOptions& options) {
  Operation operation(HCCOMM_BARRIER, c10d::OpType::BARRIER, "barrier");
  operation.take(options);
  return issue(operation);
}

// ---- sparse ------------------------------------------------------------------------------------

// What each rank's part looks like: dimensions, then the sizes, then the number of values.
static at::Tensor sparse_shape(const at::Tensor& tensor) {
  std::vector<int64_t> shape{tensor.sparse_dim(), tensor.dense_dim()};
  shape.insert(shape.end(), tensor.sizes().begin(), tensor.sizes().end());
  shape.push_back(tensor._nnz());
  return at::tensor(shape, at::kLong);
}

WorkPtr HccommBackend::allreduce_sparse(Tensors& tensors, const c10d::AllreduceOptions& options) {
  Operation shapes(HCCOMM_ALL_GATHER, c10d::OpType::_ALLREDUCE_SPARSE, "all_reduce");
  if (tensors.size() != 1 || tensors[0].layout() != at::kSparse || !tensors[0].is_cpu()) {
    invalid(shapes.name, "requires one sparse COO tensor on the CPU");
  }
  if (options.reduceOp.op_ != c10d::ReduceOp::SUM) {
    invalid(shapes.name, "unsupported reduction operation (sparse tensors can only be summed)");
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor mine = tensors[0].coalesce();
  shapes.take(options);
  shapes.input = sparse_shape(mine);
  shapes.output = at::empty({size_, shapes.input.numel()}, at::kLong);
  shapes.elements(shapes.input, false);
  shapes.count(shapes.input.numel());
  ++sequence_;
  run(shapes);
  const auto* first = shapes.output.const_data_ptr<int64_t>();
  const int64_t fields = shapes.input.numel();
  for (int rank = 0; rank < size_; ++rank) {
    if (!std::equal(first, first + fields - 1, shapes.input.const_data_ptr<int64_t>())) {
      invalid(shapes.name, c10::str("sparse tensors of different shapes: rank ", rank,
                                    " differs from rank ", rank_, ", which has ", mine.sizes()));
    }
    shapes.counts.push_back(static_cast<uint64_t>(first[fields - 1]));
    first += fields;
  }
  // Each rank's entries, one per row, so that the parts of the ranks lie back to back.
  const auto gathered = [&](const at::Tensor& rows) {
    Operation gather(HCCOMM_ALL_GATHER, c10d::OpType::_ALLREDUCE_SPARSE, "all_reduce");
    gather.take(options);
    gather.elements(rows, false);
    gather.input = rows;
    const int64_t row = c10::multiply_integers(rows.sizes().slice(1));
    std::vector<int64_t> sizes = rows.sizes().vec();
    sizes[0] = 0;
    for (const uint64_t count : shapes.counts) {
      gather.counts.push_back(count * static_cast<uint64_t>(row) * gather.element.units);
      sizes[0] += static_cast<int64_t>(count);
    }
    gather.output = at::empty(sizes, rows.options());
    run(gather);
    return gather.output;
  };
  const at::Tensor indices = gathered(mine.indices().t().contiguous()).t();
  const at::Tensor values = gathered(mine.values().contiguous());
  const at::Tensor sum =
      at::sparse_coo_tensor(indices, values, mine.sizes(), mine.options()).coalesce();
  tensors[0].copy_(sum);
  Keep keep;
  keep.results.push_back(tensors[0]);
  return c10::make_intrusive<OperationWork>(ticket(shapes, nullptr), std::move(keep));
}

}  // namespace hccomm::glue
