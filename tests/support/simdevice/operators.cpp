// SPDX-License-Identifier: Apache-2.0
//
// The operators of the simulated device. Copies and fills run in stream order behind the caller's
// back; everything else falls back to the CPU, which waits for the current stream.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <chrono>
#include <thread>

#include "torch_device.hpp"

namespace simdevice {

using at::Tensor;
using OptionalType = std::optional<c10::ScalarType>;
using OptionalDevice = std::optional<c10::Device>;

static constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

static c10::Device device_or_current(OptionalDevice given) {
  if (given && given->has_index()) return *given;
  return {kType, static_cast<c10::DeviceIndex>(current_device())};
}

// The tensor's elements as the runtime sees them. It owns nothing.
static Tensor view_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  void* const place = device(tensor.device().index()).memory().reach(tensor.const_data_ptr());
  Tensor view = at::from_blob(place, tensor.sizes(), tensor.strides(),
                              tensor.options().device(c10::kCPU).pinned_memory(c10::nullopt));
  view._set_conj(tensor.is_conj());
  view._set_neg(tensor.is_neg());
  return view;
}

// ---- making tensors ----------------------------------------------------------------------------

static Tensor empty(c10::IntArrayRef sizes, OptionalType type, std::optional<c10::Layout>,
                    OptionalDevice where, std::optional<bool>,
                    std::optional<c10::MemoryFormat> format) {
  const c10::DeviceGuard guard(device_or_current(where));
  return at::detail::empty_generic(sizes, &device_allocator(), kKeys, c10::dtype_or_default(type),
                                   format);
}

static Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, OptionalType type,
                            std::optional<c10::Layout>, OptionalDevice where, std::optional<bool>) {
  const c10::DeviceGuard guard(device_or_current(where));
  return at::detail::empty_strided_generic(sizes, strides, &device_allocator(), kKeys,
                                           c10::dtype_or_default(type));
}

static const Tensor& resize(const Tensor& self, c10::SymIntArrayRef wanted,
                            std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!format || *format == c10::MemoryFormat::Contiguous,
              "resize_: only contiguous tensors");
  const auto sizes = C10_AS_INTARRAYREF_SLOW(wanted);
  const size_t bytes = at::detail::computeStorageNbytesContiguous(
      sizes, self.dtype().itemsize(), static_cast<size_t>(self.storage_offset()));
  if (bytes > self.storage().nbytes()) {
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}

// ---- views -------------------------------------------------------------------------------------

static Tensor as_strided(const Tensor& self, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides,
                         std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(sizes),
                                           C10_AS_INTARRAYREF_SLOW(strides), start);
}

static Tensor view(const Tensor& self, c10::SymIntArrayRef sizes) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(sizes));
}

static Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef sizes,
                            c10::SymIntArrayRef strides) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(sizes),
                                    C10_AS_INTARRAYREF_SLOW(strides));
}

static Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::native::set_tensor_(self, source);
}

static Tensor& set_storage(Tensor& self, at::Storage source) {
  return at::native::set_(self, std::move(source));
}

static Tensor& set_storage_offset(Tensor& self, at::Storage source, int64_t offset,
                                  c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  auto* const impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (strides.data()) {
    impl->set_sizes_and_strides(sizes, strides);
  } else {
    impl->set_sizes_contiguous(sizes);
  }
  return self;
}

// ---- copies ------------------------------------------------------------------------------------

static bool same_layout(const Tensor& one, const Tensor& other) {
  return one.scalar_type() == other.scalar_type() && one.sizes() == other.sizes() &&
         one.strides() == other.strides() && one.is_conj() == other.is_conj() &&
         one.is_neg() == other.is_neg() && one.is_non_overlapping_and_dense();
}

// On the source's stream, ordered with the target's where that is another device.
static void copy_inside(const Tensor& source, const Tensor& target) {
  Device& from = device(source.device().index());
  Device& to = device(target.device().index());
  Stream& stream = current(source.device().index());
  Stream& other = current(target.device().index());
  if (&from != &to) {
    auto ready = std::make_shared<Event>(to);
    other.record(ready);
    stream.block(ready);
  }
  stream.enqueue([source_view = view_of(source), target_view = view_of(target)]() mutable {
    const at::AutoDispatchBelowADInplaceOrView below;
    target_view.copy_(source_view);
  });
  if (&from != &to) {
    auto done = std::make_shared<Event>(from);
    stream.record(done);
    other.block(done);
  }
}

static std::shared_ptr<void> holding(const Tensor& tensor) {
  return std::make_shared<Tensor>(tensor);
}

static std::atomic<int64_t> transfers{0};

// One transfer between host and device. Both sides have the same layout.
static void transfer(const Tensor& source, const Tensor& target, bool non_blocking) {
  const bool to_device = source.is_cpu();
  const Tensor& host = to_device ? source : target;
  const int index = (to_device ? target : source).device().index();
  Stream& stream = current(index);
  ++transfers;
  // The device side must be kept alive by its users, as on any device; the host side is kept.
  device(index).copy(stream, target.data_ptr(), source.const_data_ptr(), source.nbytes(), to_device,
                     holding(host));
  if (!non_blocking || !is_pinned(host.const_data_ptr())) stream.synchronize();
}

static Tensor copy_from(const Tensor& given, const Tensor& target, bool non_blocking) {
  if (target.numel() == 0) return target;
  const at::AutoDispatchBelowADInplaceOrView below;
  const Tensor source = given.sizes() == target.sizes() ? given : given.expand(target.sizes());
  const c10::DeviceGuard guard((target.is_cpu() ? source : target).device());
  if (!source.is_cpu() && !target.is_cpu()) {
    copy_inside(source, target);
  } else if (same_layout(source, target)) {
    transfer(source, target, non_blocking);
  } else if (target.is_cpu()) {
    const Tensor plain =
        at::empty(source.sizes(), source.options().memory_format(c10::MemoryFormat::Contiguous));
    copy_inside(source, plain);
    const Tensor host = at::empty(source.sizes(), plain.options().device(c10::kCPU));
    transfer(plain, host, false);
    target.copy_(host);
  } else {
    const Tensor host =
        at::empty(target.sizes(),
                  target.options().device(c10::kCPU).memory_format(c10::MemoryFormat::Contiguous));
    host.copy_(source);
    const Tensor plain = at::empty(target.sizes(), host.options().device(target.device()));
    transfer(host, plain, false);
    copy_inside(plain, target);
  }
  return target;
}

static Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

static at::Scalar local_scalar_dense(const Tensor& self) { return self.cpu().item(); }

static Tensor& fill(Tensor& self, const at::Scalar& value) {
  if (self.numel() == 0) return self;
  current(self.device().index()).enqueue([view = view_of(self), value]() mutable {
    const at::AutoDispatchBelowADInplaceOrView below;
    view.fill_(value);
  });
  return self;
}

static Tensor& zero(Tensor& self) { return fill(self, 0); }

static void record_stream(Tensor& self, c10::Stream stream) {
  c10::impl::VirtualGuardImpl(kType).recordDataPtrOnStream(self.storage().data_ptr(), stream);
}

static void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("fill_.Scalar", fill);
  m.impl("zero_", zero);
  m.impl("record_stream", record_stream);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// ---- what tests ask of the device --------------------------------------------------------------

static void set_up(std::string vendor, int64_t devices, int64_t megabytes, double latency_us,
                   double gigabytes_per_second) {
  configure({std::move(vendor), static_cast<int>(devices),
             static_cast<std::size_t>(megabytes) << 20, latency_us * 1e-6,
             gigabytes_per_second * 1e9});
}

static void sleep(int64_t index, double seconds) {
  current(static_cast<int>(index)).enqueue([seconds] {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  });
}

static void hold(int64_t index) {
  Device& held = device(static_cast<int>(index));
  held.hold(current(static_cast<int>(index)));
}

static void open(int64_t index) { device(static_cast<int>(index)).open(); }

static void order_fault(int64_t index, const std::string& what, double amount) {
  Device& target = device(static_cast<int>(index));
  if (what == "lose") {
    amount > 0 ? target.faults().lose_after_copies.store(static_cast<int64_t>(amount))
               : target.lose();
  } else if (what == "allocation") {
    target.faults().fail_allocation_after.store(static_cast<int64_t>(amount));
  } else if (what == "pinned") {
    fail_pinned_after().store(static_cast<int64_t>(amount));
  } else if (what == "slow") {
    target.faults().slowness.store(amount);
  } else {
    TORCH_CHECK(false, "fault: there is no fault named ", what);
  }
}

static c10::Dict<std::string, int64_t> stats() {
  c10::Dict<std::string, int64_t> all;
  int64_t blocks = 0, bytes = 0;
  for (int index = 0; index < settings().devices; ++index) {
    blocks += static_cast<int64_t>(device(index).memory().blocks());
    bytes += static_cast<int64_t>(device(index).memory().bytes_used());
  }
  all.insert("blocks", blocks);
  all.insert("bytes", bytes);
  all.insert("pinned", live_pinned());
  all.insert("events", live_events());
  all.insert("torch_copies", transfers.load());
  all.insert("native_copies", native_copies());
  all.insert("native_streams", native_streams());
  return all;
}

}  // namespace simdevice

TORCH_LIBRARY(simdevice, m) {
  m.def("configure(str vendor, int devices, int megabytes, float latency_us, float rate) -> ()",
        simdevice::set_up);
  m.def("sleep(int device, float seconds) -> ()", simdevice::sleep);
  m.def("hold(int device) -> ()", simdevice::hold);
  m.def("open(int device) -> ()", simdevice::open);
  m.def("fault(int device, str what, float amount) -> ()", simdevice::order_fault);
  m.def("stats() -> Dict(str, int)", simdevice::stats);
}
