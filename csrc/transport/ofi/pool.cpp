// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/pool.hpp"

#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace hccomm::transport::ofi {

static constexpr std::size_t kRegionBytes = std::size_t{4} << 20;

void Pool::set(const Library* library, fid_domain* domain, fid_ep* endpoint, int mr_mode) {
  library_ = library;
  domain_ = domain;
  endpoint_ = endpoint;
  mr_mode_ = mr_mode;
}

// Tests stand in for the limit, which providers without a card never meet.
static int refused_by_test(std::size_t bytes) {
  const char* most = std::getenv("HCCOMM_TEST_OFI_MEMLOCK");
  return most != nullptr && bytes > std::strtoull(most, nullptr, 10) ? ENOMEM : 0;
}

static std::string memlock_advice() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return text("; this process may lock ", limit.rlim_cur / 1024,
              " KiB of memory, which a card needs for its buffers: raise `ulimit -l` (limits.conf, "
              "LimitMEMLOCK=, docker --ulimit memlock=-1)");
}

Status Pool::enroll(Region& region) {
  constexpr std::uint64_t kAccess = FI_SEND | FI_RECV | FI_WRITE | FI_REMOTE_WRITE;
  int err = refused_by_test(registered_ + region.bytes);
  if (err == 0) {
    const std::uint64_t key = (mr_mode_ & FI_MR_PROV_KEY) != 0 ? 0 : next_key_++;
    err = -fi_mr_reg(domain_, region.data, region.bytes, kAccess, 0, key, 0, &region.registration,
                     nullptr);
  }
  if (err == 0 && (mr_mode_ & FI_MR_ENDPOINT) != 0) {
    err = -fi_mr_bind(region.registration, &endpoint_->fid, 0);
    if (err == 0) err = -fi_mr_enable(region.registration);
  }
  if (err != 0) {
    return library_->failure(Code::System, text("register ", region.bytes, " bytes of memory"),
                             err);
  }
  // Not before it is enabled: then only is the key known.
  region.key = fi_mr_key(region.registration);
  region.descriptor = fi_mr_desc(region.registration);
  return {};
}

Status Pool::grow(std::size_t bytes) {
  Region region;
  region.bytes = std::max(bytes, kRegionBytes);
  void* const data = mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) return Status::from_errno(errno, "ofi: memory for the fabric");
  region.data = static_cast<std::byte*>(data);
  // A child would make the card's pages copies of ours: it gets none of them.
  madvise(data, region.bytes, MADV_DONTFORK);
  Status status = enroll(region);
  if (!status.ok()) {
    if (region.registration != nullptr) fi_close(&region.registration->fid);
    munmap(data, region.bytes);
    return {status.code(), status.text() + memlock_advice()};
  }
  registered_ += region.bytes;
  regions_.push_back(region);
  return {};
}

Result<Block> Pool::take(std::size_t bytes) {
  if (auto& spare = free_[bytes]; !spare.empty()) {
    const Block block = spare.back();
    spare.pop_back();
    return block;
  }
  const auto fits = [bytes](const Region& each) { return each.bytes - each.used >= bytes; };
  auto found = std::ranges::find_if(regions_, fits);
  if (found == regions_.end()) {
    if (Status status = grow(bytes); !status.ok()) return status;
    found = std::prev(regions_.end());
  }
  Block block;
  block.data = found->data + found->used;
  block.bytes = bytes;
  block.descriptor = found->descriptor;
  block.key = found->key;
  block.remote_address = (mr_mode_ & FI_MR_VIRT_ADDR) != 0
                             ? reinterpret_cast<std::uintptr_t>(block.data)
                             : found->used;
  found->used += bytes;
  return block;
}

void Pool::clear() noexcept {
  for (const Region& each : regions_) {
    fi_close(&each.registration->fid);
    munmap(each.data, each.bytes);
  }
  regions_.clear();
  free_.clear();
}

}  // namespace hccomm::transport::ofi
