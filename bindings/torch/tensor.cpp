// SPDX-License-Identifier: Apache-2.0
//
// Layouts, element types and the checks of tensor lists.
#include "tensor.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "device.hpp"
#include "errors.hpp"

namespace hccomm::glue {

static int32_t dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kBool: return HCCOMM_BOOL;
    case at::kChar: return HCCOMM_I8;
    case at::kShort: return HCCOMM_I16;
    case at::kInt: return HCCOMM_I32;
    case at::kLong: return HCCOMM_I64;
    case at::kByte: return HCCOMM_U8;
    case at::kUInt16: return HCCOMM_U16;
    case at::kUInt32: return HCCOMM_U32;
    case at::kUInt64: return HCCOMM_U64;
    case at::kHalf: return HCCOMM_F16;
    case at::kBFloat16: return HCCOMM_BF16;
    case at::kFloat8_e4m3fn: return HCCOMM_F8E4M3FN;
    case at::kFloat8_e5m2: return HCCOMM_F8E5M2;
    case at::kFloat: return HCCOMM_F32;
    case at::kDouble: return HCCOMM_F64;
    case at::kComplexFloat: return HCCOMM_C64;
    case at::kComplexDouble: return HCCOMM_C128;
    default: return -1;
  }
}

Element element_of(at::ScalarType type, bool reduces, const char* operation) {
  const int32_t dtype = dtype_of(type);
  if (dtype >= 0) return {dtype, 1};
  if (reduces) {
    invalid(operation, c10::str("Invalid scalar type ", c10::toString(type),
                                ": it has no reductions; convert the tensor first"));
  }
  return {HCCOMM_U8, c10::elementSize(type)};
}

hccomm_buffer buffer_of(const at::Tensor& tensor, const Element& element) {
  hccomm_buffer buffer{};
  if (!tensor.defined()) return buffer;
  buffer.data = tensor.data_ptr();
  buffer.count = static_cast<uint64_t>(tensor.numel()) * element.units;
  if (!tensor.is_cpu()) place(buffer, tensor);
  return buffer;
}

static at::Tensor plain_empty(const at::Tensor& like) {
  return at::empty(like.sizes(), like.options().memory_format(at::MemoryFormat::Contiguous));
}

static at::Tensor plain_copy(const at::Tensor& tensor) {
  at::Tensor copy = plain_empty(tensor);
  copy.copy_(tensor);
  return copy;
}

at::Tensor input_of(const at::Tensor& tensor) {
  if (plain(tensor)) return tensor;
  const at::AutoDispatchBelowADInplaceOrView guard;
  return plain_copy(tensor);
}

at::Tensor output_of(const at::Tensor& tensor, Keep& keep) {
  if (plain(tensor)) return tensor;
  const at::AutoDispatchBelowADInplaceOrView guard;
  keep.copies.emplace_back(tensor, plain_empty(tensor));
  return keep.copies.back().second;
}

at::Tensor inout_of(const at::Tensor& tensor, Keep& keep) {
  if (plain(tensor)) return tensor;
  const at::AutoDispatchBelowADInplaceOrView guard;
  keep.copies.emplace_back(tensor, plain_copy(tensor));
  return keep.copies.back().second;
}

// The tensors as one view when each begins where the one before ends, else undefined.
static at::Tensor adjacent(at::TensorList tensors) {
  int64_t count = 0;
  const at::Tensor& first = tensors[0];
  if (!first.has_storage()) return {};
  const auto* storage = first.storage().unsafeGetStorageImpl();
  for (const at::Tensor& tensor : tensors) {
    if (!plain(tensor) || tensor.scalar_type() != first.scalar_type() ||
        tensor.storage().unsafeGetStorageImpl() != storage ||
        tensor.storage_offset() != first.storage_offset() + count) {
      return {};
    }
    count += tensor.numel();
  }
  return first.as_strided({count}, {1}, first.storage_offset());
}

static at::Tensor flat_empty(at::TensorList tensors) {
  int64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += tensor.numel();
  return at::empty({count}, tensors[0].options().memory_format(at::MemoryFormat::Contiguous));
}

// The part of `flat` that stands for tensors[i], shaped like it.
template <typename Function>
static void each_part(at::TensorList tensors, const at::Tensor& flat, const Function& function) {
  int64_t offset = 0;
  for (const at::Tensor& tensor : tensors) {
    function(tensor, flat.narrow(0, offset, tensor.numel()).view(tensor.sizes()));
    offset += tensor.numel();
  }
}

at::Tensor flat_input(at::TensorList tensors) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (at::Tensor view = adjacent(tensors); view.defined()) return view;
  at::Tensor flat = flat_empty(tensors);
  each_part(tensors, flat, [](const at::Tensor& tensor, at::Tensor part) { part.copy_(tensor); });
  return flat;
}

at::Tensor flat_output(at::TensorList tensors, Keep& keep) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (at::Tensor view = adjacent(tensors); view.defined()) return view;
  at::Tensor flat = flat_empty(tensors);
  each_part(tensors, flat, [&](const at::Tensor& tensor, at::Tensor part) {
    keep.copies.emplace_back(tensor, std::move(part));
  });
  return flat;
}

at::Tensor flat_inout(at::TensorList tensors, Keep& keep) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (at::Tensor view = adjacent(tensors); view.defined()) return view;
  at::Tensor flat = flat_output(tensors, keep);
  each_part(tensors, flat, [](const at::Tensor& tensor, at::Tensor part) { part.copy_(tensor); });
  return flat;
}

void copy_out(Keep& keep) {
  if (keep.copies.empty()) return;
  const at::AutoDispatchBelowADInplaceOrView guard;
  for (auto& [to, from] : keep.copies) {
    to.copy_(from, /*non_blocking=*/true);
    if (to.is_cpu()) continue;
    const c10::impl::VirtualGuardImpl device(to.device().type());
    for (const at::Tensor& used : {to, from}) {
      device.recordDataPtrOnStream(used.storage().data_ptr(), device.getStream(used.device()));
    }
  }
  keep.copies.clear();
}

void check_dense(const char* operation, const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided) invalid(operation, "only supports dense tensors");
}

void check_single(const char* operation, at::TensorList tensors, const char* which) {
  if (tensors.size() != 1) {
    invalid(operation, c10::str("requires a single-element ", which, "tensor list, got ",
                                tensors.size(), " tensors"));
  }
  check_dense(operation, tensors[0]);
}

void check_dtypes(const char* operation, at::TensorList tensors, const at::Tensor& model) {
  for (const auto i : c10::irange(tensors.size())) {
    check_dense(operation, tensors[i]);
    if (tensors[i].scalar_type() != model.scalar_type()) {
      invalid(operation, c10::str("invalid tensor type at index ", i, " (expected ",
                                  model.toString(), ", got ", tensors[i].toString(), ")"));
    }
    if (tensors[i].device() != model.device()) {
      invalid(operation, c10::str("tensors should be on the same device, but index ", i, " is on ",
                                  tensors[i].device(), " and not on ", model.device()));
    }
  }
}

void check_like(const char* operation, at::TensorList tensors, const at::Tensor& model) {
  check_dtypes(operation, tensors, model);
  for (const auto i : c10::irange(tensors.size())) {
    if (tensors[i].numel() != model.numel()) {
      invalid(operation, c10::str("invalid tensor size at index ", i, " (expected ", model.sizes(),
                                  ", got ", tensors[i].sizes(), ")"));
    }
  }
}

void check_root(const char* operation, int64_t root, int size) {
  if (root < 0 || root >= size) {
    invalid(operation,
            c10::str("invalid root rank: ", root, " (the group has ranks 0..", size - 1, ")"));
  }
}

}  // namespace hccomm::glue
