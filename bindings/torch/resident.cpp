// SPDX-License-Identifier: Apache-2.0
#include "resident.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace hccomm::glue {

namespace {

struct Entry {
  uint64_t id;
  c10::Device device;
  uintptr_t begin, end;
  at::Tensor bytes;                     // a flat view
  std::vector<c10::StreamId> recorded;  // streams that the allocator has been told of
};

struct Book {
  std::mutex mutex;  // guards the rest
  uint64_t last_id = 0;
  std::vector<Entry> entries;  // a few: those of operations in flight
};

Book& book() {
  static auto* const one = new Book;  // operations may outlive static destructors
  return *one;
}

}  // namespace

Resident::Resident(const at::Tensor& tensor) {
  const at::AutoDispatchBelowADInplaceOrView below;
  at::Tensor bytes = tensor.view({-1}).view(at::kByte);
  const auto begin = reinterpret_cast<uintptr_t>(bytes.const_data_ptr());
  const std::lock_guard lock(book().mutex);
  id_ = ++book().last_id;
  book().entries.push_back(
      {id_, tensor.device(), begin, begin + bytes.nbytes(), std::move(bytes), {}});
}

Resident::~Resident() {
  if (id_ == 0) return;
  at::Tensor dropped;  // without the lock: it may free memory
  const std::lock_guard lock(book().mutex);
  auto& entries = book().entries;
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& each) { return each.id == id_; });
  dropped = std::move(found->bytes);
  entries.erase(found);
}

at::Tensor resident_bytes(const c10::Stream& stream, const void* address, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  at::Tensor found;
  bool known = false;  // to the allocator
  {
    const std::lock_guard lock(book().mutex);
    for (Entry& entry : book().entries) {
      if (entry.device != stream.device() || begin < entry.begin ||
          begin + static_cast<uintptr_t>(bytes) > entry.end) {
        continue;
      }
      found = entry.bytes.narrow(0, static_cast<int64_t>(begin - entry.begin), bytes);
      known = std::count(entry.recorded.begin(), entry.recorded.end(), stream.id()) > 0;
      if (!known) entry.recorded.push_back(stream.id());
      break;
    }
  }
  TORCH_CHECK(found.defined(), "no tensor in use has these ", bytes, " bytes of ", stream.device());
  if (!known) {
    const c10::impl::VirtualGuardImpl device(stream.device_type());
    device.recordDataPtrOnStream(found.storage().data_ptr(), stream);
  }
  return found;
}

}  // namespace hccomm::glue
