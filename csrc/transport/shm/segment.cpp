// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace hccomm::transport::shm {

static constexpr unsigned kNoExecSeal = 8;  // MFD_NOEXEC_SEAL, Linux 6.3
static constexpr int kPopulateWrite = 23;   // MADV_POPULATE_WRITE, Linux 5.14
static constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
static constexpr std::size_t kHuge = std::size_t{2} << 20;  // bytes of a huge page
// Page tables of what a peer shares are filled in one go up to here: milliseconds.
static constexpr std::size_t kPopulated = std::size_t{64} << 20;

Segment::Segment(Segment&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Segment& Segment::operator=(Segment&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Segment::~Segment() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

static Status refused(const char* call) {
  const int err = errno;  // before text() may change it
  return Status::from_errno(err, text("shared memory: ", call));
}

static UniqueFd new_memfd() {
  UniqueFd fd(memfd_create("hccomm", MFD_CLOEXEC | MFD_ALLOW_SEALING | kNoExecSeal));
  if (!fd && errno == EINVAL) fd.reset(memfd_create("hccomm", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  return fd;
}

Result<Segment> Segment::make(std::size_t bytes, UniqueFd& fd) {
  if (std::getenv("HCCOMM_TEST_NO_MEMFD") != nullptr) {
    return Status(Code::Unavailable, "shared memory: refused by HCCOMM_TEST_NO_MEMFD");
  }
  fd = new_memfd();
  if (!fd) return refused("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return refused("ftruncate");
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return refused("F_ADD_SEALS");
  auto made = map(fd, bytes, ~std::size_t{0});
  // What the mapping's advice has not brought: missing memory is an error here, no SIGBUS later.
  if (made.ok() && fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    return refused("fallocate");
  }
  return made;
}

Result<Segment> Segment::map(const UniqueFd& fd, std::size_t bytes) {
  return map(fd, bytes, kPopulated);
}

// Where a huge page could begin, if there is room for one.
static void* place(const UniqueFd& fd, std::size_t bytes) {
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  if (bytes < kHuge) return mmap(nullptr, bytes, kAccess, MAP_SHARED, fd.get(), 0);
  constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const std::size_t room = bytes + kHuge;
  void* const reserved = mmap(nullptr, room, PROT_NONE, kReserve, -1, 0);
  if (reserved == MAP_FAILED) return mmap(nullptr, bytes, kAccess, MAP_SHARED, fd.get(), 0);
  auto* const begin = static_cast<std::byte*>(reserved);
  const std::size_t before = (kHuge - reinterpret_cast<std::uintptr_t>(begin) % kHuge) % kHuge;
  void* const data = mmap(begin + before, bytes, kAccess, MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (data == MAP_FAILED) {
    const int err = errno;  // before munmap() may change it
    munmap(reserved, room);
    errno = err;
    return data;
  }
  const std::size_t pages = (bytes + 4095) / 4096 * 4096;
  if (before != 0) munmap(reserved, before);
  if (before + pages < room) munmap(begin + before + pages, room - before - pages);
  madvise(data, bytes, MADV_HUGEPAGE);  // where shmem_enabled allows it
  return data;
}

Result<Segment> Segment::map(const UniqueFd& fd, std::size_t bytes, std::size_t populated) {
  struct stat about = {};
  if (fstat(fd.get(), &about) != 0) return refused("fstat");
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return refused("F_GET_SEALS");
  if ((seals & kSeals) != kSeals || static_cast<std::size_t>(about.st_size) != bytes) {
    return Status(Code::Integrity,
                  text("shared memory: the peer sent ", about.st_size, " bytes with seals ", seals,
                       "; ", bytes, " with a sealed size were agreed"));
  }
  void* data = place(fd, bytes);
  if (data == MAP_FAILED) return refused("mmap");
  Segment segment;
  segment.data_ = static_cast<std::byte*>(data);
  segment.bytes_ = bytes;
  // First touch now, not inside a collective. Older kernels touch later; nothing else differs.
  if (bytes <= populated) madvise(data, bytes, kPopulateWrite);
  return segment;
}

}  // namespace hccomm::transport::shm
