// SPDX-License-Identifier: Apache-2.0
//
// First fit over a sorted map: plain, and quick enough for tests.
#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace simdevice {

static constexpr std::size_t kAlignment = 512;  // as CUDA's caching allocator

Memory::Memory(std::string device, std::size_t bytes) : device_(std::move(device)), bytes_(bytes) {
  const int file = memfd_create("simdevice", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    throw DeviceError(device_ + ": no memory to simulate device memory with");
  }
  void* const user = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, file, 0);
  void* const runtime = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (user == MAP_FAILED || runtime == MAP_FAILED) throw DeviceError(device_ + ": mmap failed");
  user_ = static_cast<std::byte*>(user);
  runtime_ = static_cast<std::byte*>(runtime);
  free_.emplace(0, bytes);
}

Memory::~Memory() {
  munmap(user_, bytes_);
  munmap(runtime_, bytes_);
}

void* Memory::allocate(std::size_t bytes) {
  const std::size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::lock_guard lock(mutex_);
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const auto [offset, room] = *it;
    if (room < size) continue;
    free_.erase(it);
    if (room > size) free_.emplace(offset + size, room - size);
    used_.emplace(offset, size);
    bytes_used_ += size;
    return user_ + offset;
  }
  throw OutOfMemory(device_ + ": out of memory: " + std::to_string(bytes) + " bytes wanted, " +
                    std::to_string(bytes_ - bytes_used_) + " of " + std::to_string(bytes_) +
                    " free");
}

void Memory::release(void* address) {
  const std::size_t offset = static_cast<std::byte*>(address) - user_;
  std::size_t size = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(offset);
    if (found == used_.end()) throw DeviceError(device_ + ": freed what was never allocated");
    size = found->second;
  }
  std::memset(runtime_ + offset, 0xA5, size);
  const std::lock_guard lock(mutex_);
  used_.erase(offset);
  bytes_used_ -= size;
  auto place = free_.emplace(offset, size).first;
  if (const auto after = std::next(place);
      after != free_.end() && place->first + place->second == after->first) {
    place->second += after->second;
    free_.erase(after);
  }
  if (place != free_.begin()) {
    if (const auto before = std::prev(place); before->first + before->second == place->first) {
      before->second += place->second;
      free_.erase(place);
    }
  }
}

bool Memory::holds(const void* address) const {
  const auto* place = static_cast<const std::byte*>(address);
  return place >= user_ && place < user_ + bytes_;
}

std::byte* Memory::reach(const void* address) const {
  if (!holds(address)) throw DeviceError(device_ + ": this address is not of this device");
  return runtime_ + (static_cast<const std::byte*>(address) - user_);
}

std::size_t Memory::blocks() const {
  const std::lock_guard lock(mutex_);
  return used_.size();
}

std::size_t Memory::bytes_used() const {
  const std::lock_guard lock(mutex_);
  return bytes_used_;
}

}  // namespace simdevice
