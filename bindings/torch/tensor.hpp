// SPDX-License-Identifier: Apache-2.0
//
// Tensors as the core sees them: one address, one element type, one count. Whatever is not laid out
// so (strided, conjugated, a list of tensors) goes through a plain copy in the order of its
// elements, so ranks may hold the same tensor in different layouts.
#pragma once

#include <ATen/ATen.h>

#include <utility>
#include <vector>

#include "capi/hccomm.h"
#include "resident.hpp"

namespace hccomm::glue {

// What an operation holds on to until it has ended.
struct Keep {
  std::vector<at::Tensor> results;                        // what result() and the future give
  std::vector<at::Tensor> held;                           // buffers in use besides
  std::vector<Resident> residents;                        // those of them on devices
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // at the end: first = second
};

// One torch element in the core's terms. Types that the core cannot compute with still travel, as
// bytes.
struct Element {
  int32_t dtype;
  uint64_t units;  // of dtype, per torch element
};

// Raises when the operation reduces and the core has no such type.
Element element_of(at::ScalarType type, bool reduces, const char* operation);

hccomm_buffer buffer_of(const at::Tensor& tensor, const Element& element);

// Strided, contiguous and without a pending conjugation or negation.
inline bool plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.is_contiguous() && !tensor.is_conj() &&
         !tensor.is_neg();
}

// A plain tensor of the same elements: itself or a copy.
at::Tensor input_of(const at::Tensor& tensor);
// A plain tensor whose elements reach `tensor` at the end.
at::Tensor output_of(const at::Tensor& tensor, Keep& keep);
// Both at once, for operations that work in place.
at::Tensor inout_of(const at::Tensor& tensor, Keep& keep);

// The elements of all tensors back to back: a view where they already lie so, else a copy.
at::Tensor flat_input(at::TensorList tensors);
at::Tensor flat_output(at::TensorList tensors, Keep& keep);
at::Tensor flat_inout(at::TensorList tensors, Keep& keep);

// Does keep.copies, outside autograd. Of device tensors: on the current stream, behind the host.
void copy_out(Keep& keep);

// ---- checks: they raise in the words of ProcessGroupGloo --------------------------------------

void check_dense(const char* operation, const at::Tensor& tensor);
void check_single(const char* operation, at::TensorList tensors, const char* which = "");
void check_like(const char* operation, at::TensorList tensors, const at::Tensor& model);
void check_dtypes(const char* operation, at::TensorList tensors, const at::Tensor& model);
void check_root(const char* operation, int64_t root, int size);

}  // namespace hccomm::glue
