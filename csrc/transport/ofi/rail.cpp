// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/rail.hpp"

#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "base/log.hpp"
#include "transport/ofi/litter.hpp"

namespace hccomm::transport::ofi {

static constexpr std::size_t kQueueEntries = 4096;
static constexpr std::size_t kNameBytes = 260;  // of an endpoint

Status Rail::check(int err, const char* what) const {
  if (err == 0) return {};
  return choice.library->failure(Code::Unavailable,
                                 text(what, " of ", choice.provider, " on ", choice.domain), -err);
}

bool Rail::has(int mr_bit) const { return (choice.info->domain_attr->mr_mode & mr_bit) != 0; }

// What ofi_rxm has injected has no context, and of what a peer's death cancels it looks at the
// context: it crashed in one of four runs over tcp (1.17).
static bool injects(const std::string& provider) { return !provider.ends_with(";ofi_rxm"); }

// Nor has a write that comes with data for the queue a context: where the tcp provider is cut off
// in its middle, ofi_rxm crashed in one of 80 runs (1.17 and 2.5.1). An empty one has no middle,
// and writes to one peer share a connection, which keeps their order.
static bool tells_apart(const std::string& provider) {
  return provider == "tcp;ofi_rxm" || provider == "net;ofi_rxm";
}

// With the memory of devices where that was offered; a card that breaks its word is used without.
Status Rail::open() {
  if (choice.with_devices == nullptr) return open_as_is();
  Info plain = std::exchange(choice.info, std::move(choice.with_devices));
  Status status = open_as_is();
  if (status.ok()) status = know_itself();
  reaches_devices = status.ok();
  if (status.ok()) return {};
  HCCOMM_LOG(Info, "ofi: the memory of devices is staged: ", status.text());
  close();
  choice.info = std::move(plain);
  return open_as_is();
}

// What is written to a device is read back through the same card.
Status Rail::know_itself() {
  char name[kNameBytes];
  std::size_t bytes = sizeof name;
  Status status = check(fi_getname(&endpoint->fid, name, &bytes), "fi_getname");
  if (status.ok() && fi_av_insert(addresses, name, 1, &self, 0, nullptr) != 1) {
    status = {Code::Unavailable, choice.domain + " cannot make use of its own address"};
  }
  return status;
}

// A queue that can be slept on writes to a descriptor for every entry, which cost 0.6 us a message
// in the software providers; so ours cannot, and sleepers are woken by a timer.
Status Rail::open_as_is() {
  const KeptSignals kept;
  fi_info& info = *choice.info;
  Status status = check(choice.library->fabric(info.fabric_attr, &fabric, nullptr), "fi_fabric");
  if (status.ok()) status = check(fi_domain(fabric, &info, &domain, nullptr), "fi_domain");
  fi_cq_attr wanted{};
  wanted.size = kQueueEntries;
  wanted.format = FI_CQ_FORMAT_DATA;
  wanted.wait_obj = FI_WAIT_NONE;
  if (status.ok()) status = check(fi_cq_open(domain, &wanted, &queue, nullptr), "fi_cq_open");
  fi_av_attr table{};
  table.type = info.domain_attr->av_type == FI_AV_MAP ? FI_AV_MAP : FI_AV_TABLE;
  if (status.ok()) status = check(fi_av_open(domain, &table, &addresses, nullptr), "fi_av_open");
  if (status.ok()) status = open_endpoint();
  inject_bytes = injects(choice.provider) ? info.tx_attr->inject_size : 0;
  tells_apart = ofi::tells_apart(choice.provider);
  return status;
}

// The shm provider names its memory by the process's number and a counter, and what was killed
// leaves its memory behind: what is known to be such litter is swept. Where a name is taken all the
// same the next is free.
Status Rail::open_endpoint() {
  static constexpr int kNames = 16;
  sweep();
  for (int attempt = 1;; ++attempt) {
    Status status =
        check(fi_endpoint(domain, choice.info.get(), &endpoint, nullptr), "fi_endpoint");
    if (status.ok()) {
      status = check(fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    }
    if (status.ok()) status = check(fi_ep_bind(endpoint, &addresses->fid, 0), "fi_ep_bind");
    if (!status.ok()) return status;
    const int code = fi_enable(endpoint);
    if (code == 0 && shares_files()) keep_files();
    if (code != -FI_EBUSY || attempt == kNames) return check(code, "fi_enable");
    close_endpoint();
  }
}

bool Rail::shares_files() const { return choice.provider == "shm"; }

void Rail::sweep() const noexcept {
  if (shares_files()) sweep_shared_memory();
}

void Rail::keep_files() {
  char name[260] = {};
  std::size_t bytes = sizeof name - 1;
  if (fi_getname(&endpoint->fid, name, &bytes) == 0) kept_ = keep_shared_memory(name);
}

template <typename Object>
static void shut(Object*& each) noexcept {
  if (each != nullptr) fi_close(&each->fid);
  each = nullptr;
}

void Rail::close_endpoint() noexcept { shut(endpoint); }

void Rail::close() noexcept {
  const bool was_open = domain != nullptr;
  shut(endpoint);
  kept_.reset();
  shut(queue);
  shut(addresses);
  shut(domain);
  shut(fabric);
  if (was_open) sweep();  // of peers that died meanwhile
}

void Rail::abandon() noexcept {
  endpoint = nullptr;
  queue = nullptr;
  addresses = nullptr;
  domain = nullptr;
  fabric = nullptr;
}

// ---- memory -------------------------------------------------------------------------------------

// Software providers lock no memory: a test has it done as a card does, so that the limit is met.
static bool pins() {
  static const bool test = std::getenv("HCCOMM_TEST_OFI_PIN") != nullptr;
  return test;
}

static std::string memlock_advice() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return text("; this process may lock ", limit.rlim_cur / 1024,
              " KiB of memory, which a card needs for its buffers: raise `ulimit -l` (limits.conf, "
              "LimitMEMLOCK=, docker --ulimit memlock=-1)");
}

std::uint64_t wanted_key(const Rail& rail) {
  static std::atomic<std::uint64_t> next_key{1};
  return rail.has(FI_MR_PROV_KEY) ? 0 : next_key++;
}

int enable(const Rail& rail, unsigned index, Registration& out) {
  fid_mr* const memory = out.memory[index];
  int err = 0;
  if (rail.has(FI_MR_ENDPOINT)) {
    err = -fi_mr_bind(memory, &rail.endpoint->fid, 0);
    if (err == 0) err = -fi_mr_enable(memory);
  }
  if (err != 0) return err;
  // Not before it is enabled: then only is the key known.
  out.key[index] = fi_mr_key(memory);
  out.descriptor[index] = fi_mr_desc(memory);
  out.base[index] =
      rail.has(FI_MR_VIRT_ADDR) ? reinterpret_cast<std::uintptr_t>(out.data) : std::uint64_t{0};
  return 0;
}

static int enroll_on(const Rail& rail, unsigned index, std::uint64_t access, Registration& out) {
  const int err = -fi_mr_reg(rail.domain, out.data, out.bytes, access, 0, wanted_key(rail), 0,
                             &out.memory[index], nullptr);
  return err != 0 ? err : enable(rail, index, out);
}

Result<Registration> enroll(const Rails& rails, std::byte* data, std::size_t bytes, Access access) {
  const std::uint64_t flags =
      access == Access::Read ? FI_SEND | FI_WRITE : FI_SEND | FI_RECV | FI_WRITE | FI_REMOTE_WRITE;
  Registration out;
  out.data = data;
  out.bytes = bytes;
  out.pinned = pins() && mlock(data, bytes) == 0;
  const int refused = pins() && !out.pinned ? ENOMEM : 0;
  for (unsigned index = 0; index < rails.size(); ++index) {
    const Rail& rail = *rails[index];
    const std::uint64_t reads = rail.reaches_devices ? FI_READ : 0;  // what is read back
    const int err = refused != 0 ? refused : enroll_on(rail, index, flags | reads, out);
    if (err == 0) continue;
    strike(out);
    const Status why = rail.choice.library->failure(
        Code::System, text("register ", bytes, " bytes of memory on ", rail.choice.domain), err);
    return Status(why.code(), why.text() + memlock_advice());
  }
  return out;
}

void strike(Registration& registration) noexcept {
  for (fid_mr* each : registration.memory) {
    if (each != nullptr) fi_close(&each->fid);
  }
  if (registration.pinned) munlock(registration.data, registration.bytes);
  registration = {};
}

}  // namespace hccomm::transport::ofi
