// SPDX-License-Identifier: Apache-2.0
//
// What runtimes share whose device memory is an address and whose calls act on the device that is
// current on the thread: CUDA's shape, ACL, CNRT. Each call makes the device current, asks the
// vendor, and tells its code.
#pragma once

#include "device/device.hpp"

namespace hccomm::device {

// The vendor, a class derived from this one, has: Guard(vendor, index), which makes the device
// current while it lives, or says in `status` why it cannot; failed(code, call, index), a Status;
// new_host, new_memory (address, bytes) and new_stream (native), which return the vendor's code,
// and their drop_host, drop_memory and drop_stream; enqueue_copy(stream, dst, src, bytes,
// to_device); the vendor's names kHostAllocate, kAllocate and kStreamCreate.
//
// Owns, Thread, Fails: as Runtime.
template <typename Vendor>
class Addressed : public Runtime {
 public:
  Status on_device(int index, const std::function<Status()>& work) override {
    const typename Vendor::Guard guard(vendor(), index);
    return guard.status.ok() ? work() : guard.status;
  }

  Result<void*> host_allocate(int index, std::size_t bytes) noexcept override {
    return made(index, Vendor::kHostAllocate,
                [&](void** address) { return vendor().new_host(address, bytes); });
  }
  void host_free(int index, void* address) noexcept override {
    const typename Vendor::Guard guard(vendor(), index);
    vendor().drop_host(address);
  }

  Result<Place> allocate(int index, std::size_t bytes) noexcept override {
    auto address =
        made(index, Vendor::kAllocate, [&](void** at) { return vendor().new_memory(at, bytes); });
    if (!address.ok()) return address.status();
    return Place{address.value(), 0};
  }
  void release(int index, Place place) noexcept override {
    const typename Vendor::Guard guard(vendor(), index);
    vendor().drop_memory(address_of(place));
  }

  Result<Stream> stream_create(int index) noexcept override {
    auto native = made(index, Vendor::kStreamCreate,
                       [&](void** stream) { return vendor().new_stream(stream); });
    if (!native.ok()) return native.status();
    return Stream{index, 1, native.value()};
  }
  void stream_destroy(Stream stream) noexcept override {
    const typename Vendor::Guard guard(vendor(), stream.index);
    vendor().drop_stream(stream.native);
  }

  Status copy_in(Stream stream, Place dst, const void* host, std::size_t bytes) noexcept override {
    return copy(stream, address_of(dst), host, bytes, true);
  }
  Status copy_out(Stream stream, void* host, Place src, std::size_t bytes) noexcept override {
    return copy(stream, host, address_of(src), bytes, false);
  }

 protected:
  static char* address_of(Place place) { return static_cast<char*>(place.handle) + place.offset; }

  Status told(int code, const char* call, int index) noexcept {
    return code == 0 ? Status() : vendor().failed(code, call, index);
  }

  // What the vendor makes on that device: make(&native) returns its code.
  template <typename Make>
  Result<void*> made(int index, const char* call, const Make& make) noexcept {
    const typename Vendor::Guard guard(vendor(), index);
    if (!guard.status.ok()) return guard.status;
    void* native = nullptr;
    if (const int code = make(&native); code != 0) return vendor().failed(code, call, index);
    return native;
  }

 private:
  Vendor& vendor() noexcept { return static_cast<Vendor&>(*this); }

  Status copy(Stream stream, void* dst, const void* src, std::size_t bytes,
              bool to_device) noexcept {
    const typename Vendor::Guard guard(vendor(), stream.index);
    return guard.status.ok() ? vendor().enqueue_copy(stream, dst, src, bytes, to_device)
                             : guard.status;
  }
};

}  // namespace hccomm::device
