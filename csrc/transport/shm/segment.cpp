// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace hccomm::transport::shm {

static constexpr unsigned kNoExecSeal = 8;  // MFD_NOEXEC_SEAL, Linux 6.3
static constexpr int kPopulateWrite = 23;   // MADV_POPULATE_WRITE, Linux 5.14
static constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

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
  // fallocate, not ftruncate: memory that is missing is an error here, not a SIGBUS later.
  if (fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes)) != 0) return refused("fallocate");
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return refused("F_ADD_SEALS");
  return map(fd, bytes);
}

Result<Segment> Segment::map(const UniqueFd& fd, std::size_t bytes) {
  struct stat about = {};
  if (fstat(fd.get(), &about) != 0) return refused("fstat");
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return refused("F_GET_SEALS");
  if ((seals & kSeals) != kSeals || static_cast<std::size_t>(about.st_size) != bytes) {
    return Status(Code::Integrity,
                  text("shared memory: the peer sent ", about.st_size, " bytes with seals ", seals,
                       "; ", bytes, " with a sealed size were agreed"));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return refused("mmap");
  Segment segment;
  segment.data_ = static_cast<std::byte*>(data);
  segment.bytes_ = bytes;
  // First touch now, not inside a collective. Older kernels touch later; nothing else differs.
  madvise(data, bytes, kPopulateWrite);
  return segment;
}

}  // namespace hccomm::transport::shm
