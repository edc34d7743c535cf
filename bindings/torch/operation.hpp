// SPDX-License-Identifier: Apache-2.0
//
// One c10d call on its way to the core: the collectives fill it in, backend.cpp sends it
// off. Lives on the caller's stack until then.
#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "capi/hccomm.h"
#include "tensor.hpp"

namespace hccomm::glue {

struct Operation {
  Operation(int32_t collective, c10d::OpType c10d_type, const char* called)
      : type(c10d_type), name(called) {
    call.struct_size = sizeof(call);
    call.collective = collective;
  }

  // Sets how long it may take and whether the caller waits at once.
  template <typename Options>
  void take(const Options& options) {
    limit(options.timeout);
    async = options.asyncOp;
  }
  void limit(std::chrono::milliseconds timeout) {
    if (timeout.count() > 0) call.timeout = static_cast<double>(timeout.count()) / 1e3;
  }
  // The element type and, from it, the units of count. Requires: `model` is defined.
  void elements(const at::Tensor& model, bool reduces) {
    element = element_of(model.scalar_type(), reduces, name);
    call.dtype = element.dtype;
  }
  void count(int64_t elements_count) {
    call.count = static_cast<uint64_t>(elements_count) * element.units;
  }
  // Points the call at the buffers, and has those on devices found until `keep` lets go.
  void point() {
    call.input = buffer_of(input, element);
    call.output = buffer_of(output, element);
    for (const at::Tensor& used : {input, output}) {
      if (!used.defined() || used.is_cpu() || used.numel() == 0) continue;
      if (keep.residents.empty() || !input.is_same(output)) keep.residents.emplace_back(used);
    }
    place(counts, offsets_);
    place(recv_counts, recv_offsets_);
    if (!counts.empty()) {
      call.counts = counts.data();
      call.offsets = offsets_.data();
    }
    if (!recv_counts.empty()) {
      call.recv_counts = recv_counts.data();
      call.recv_offsets = recv_offsets_.data();
    }
  }
  // Notes what the profiler shows as the inputs: the user's tensors where it is in place.
  void note_shown() {
    const bool in_place = !input.defined() || input.is_same(output);
    shown = in_place ? keep.results : std::vector<at::Tensor>{input};
  }
  // A tensor that tells where the call runs, or an undefined one.
  const at::Tensor& model() const { return input.defined() ? input : output; }

  hccomm_call call{};
  c10d::OpType type;
  const char* name;  // as users call it, for messages and the profiler
  Element element{HCCOMM_U8, 1};
  at::Tensor input, output;  // plain; the same tensor when in place; undefined when not used
  bool reads = true;         // whether this rank's input has a meaning before
  bool writes = true;        // whether this rank's output has one afterwards
  std::vector<uint64_t> counts, recv_counts;  // of unequal parts, which lie back to back
  Keep keep;
  std::vector<at::Tensor> shown;  // to the profiler; empty when it does not listen
  bool async = true;
  uint64_t noted = 0;  // its number in the flight recorder

 private:
  static void place(const std::vector<uint64_t>& sizes, std::vector<uint64_t>& places) {
    places.clear();
    uint64_t next = 0;
    for (const uint64_t size : sizes) {
      places.push_back(next);
      next += size;
    }
  }

  std::vector<uint64_t> offsets_, recv_offsets_;
};

}  // namespace hccomm::glue
