// SPDX-License-Identifier: Apache-2.0
//
// The memory of devices as cards know it. What one is told of is registered for as long as a call
// uses it, or the program wants, since nobody would tell when it is freed; what refuses is
// remembered, and staged. What a
// card writes there passes other ways than the word that it has: before a piece is handed over the
// same card reads a little of it back, behind all that it has written (docs/rdma.md).
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.hpp"
#include "base/worded.hpp"
#include "transport/ofi/fabric.hpp"

namespace hccomm::transport::ofi {

// ---- registration -------------------------------------------------------------------------------

// fi_mr_attr grew at its end after 1.17, and the library reads its own idea of it: what we do not
// know must be there, and 0.
struct Attributes {
  fi_mr_attr known;
  std::uint64_t later[16];
};

// Since 1.20: a dmabuf instead of mr_iov.
static constexpr std::uint64_t kMrDmabuf = std::uint64_t{1} << 40;
static const std::uint32_t kDmabufSince = FI_VERSION(1, 20);
struct Dmabuf {
  int fd;
  std::uint64_t offset;
  std::size_t bytes;
  void* base;
};

static Attributes attributes_of(const Rail& rail, const DeviceMemory& memory) {
  Attributes out = {};
  out.known.access = FI_SEND | FI_RECV | FI_WRITE | FI_READ | FI_REMOTE_WRITE | FI_REMOTE_READ;
  out.known.requested_key = wanted_key(rail);
  out.known.iov_count = 1;
  out.known.iface = static_cast<fi_hmem_iface>(memory.fabric_interface);
  out.known.device.reserved = static_cast<std::uint64_t>(memory.index);
  return out;
}

static int enroll_dmabuf(const Rail& rail, const DeviceMemory& memory, fid_mr** out) {
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<std::uintptr_t>(memory.data);
  const std::uintptr_t begin = at & ~(page - 1);
  const std::uintptr_t end = (at + memory.bytes + page - 1) & ~(page - 1);
  auto exported = memory.dmabuf(reinterpret_cast<std::byte*>(begin), end - begin);
  if (!exported) return FI_ENOSYS;
  const UniqueFd fd(exported.value());
  const Dmabuf dmabuf{fd.get(), at - begin, memory.bytes, reinterpret_cast<void*>(begin)};
  Attributes attributes = attributes_of(rail, memory);
  attributes.known.mr_iov = reinterpret_cast<const iovec*>(&dmabuf);
  return -fi_mr_regattr(rail.domain, &attributes.known, kMrDmabuf, out);
}

static int enroll_address(const Rail& rail, const DeviceMemory& memory, fid_mr** out) {
  const iovec all{memory.data, memory.bytes};
  Attributes attributes = attributes_of(rail, memory);
  attributes.known.mr_iov = &all;
  return -fi_mr_regattr(rail.domain, &attributes.known, 0, out);
}

static int enroll_on(const Rail& rail, unsigned index, const DeviceMemory& memory,
                     Registration& out, std::string& how) {
  const bool dmabufs = rail.choice.library->version >= kDmabufSince && memory.dmabuf != nullptr;
  int err = dmabufs ? enroll_dmabuf(rail, memory, &out.memory[index]) : FI_ENOSYS;
  how = err == 0 ? "dmabuf" : "address";
  if (err != 0) err = enroll_address(rail, memory, &out.memory[index]);
  return err != 0 ? err : enable(rail, index, out);
}

Result<Registration> enroll(const Rails& rails, const DeviceMemory& memory, std::string& how) {
  const std::string what = text("the memory of ", memory.kind, ":", memory.index);
  Registration out;
  out.data = memory.data;
  out.bytes = memory.bytes;
  for (unsigned index = 0; index < rails.size(); ++index) {
    const Rail& rail = *rails[index];
    const int err = rail.reaches_devices ? enroll_on(rail, index, memory, out, how) : FI_ENOSYS;
    if (err == 0) continue;
    strike(out);
    return rail.choice.library->failure(
        Code::System,
        text("register ", memory.bytes, " bytes of ", what, " on ", rail.choice.domain), err);
  }
  return out;
}

// ---- the fabric's -------------------------------------------------------------------------------

Status Fabric::keep(const DeviceMemory& memory) {
  const std::lock_guard lock(mutex_);
  if (ended_ || !reaches_devices_)
    return {Code::System, "no card here reaches devices (no FI_HMEM)"};
  const std::string device = text(memory.kind, ":", memory.index);
  if (memory.fabric_interface == 0) {
    return {Code::System, "libfabric has no name for the memory of " + device};
  }
  if (memory.bytes == 0) return {};  // somebody only asks
  if (const auto found = refused_.find(device); found != refused_.end()) return found->second;
  std::string how;
  auto entry = cache_.keep(memory, how);
  if (!entry) {
    HCCOMM_LOG(Info, "ofi: ", device, " is staged from now on: ", entry.status().text());
    return refused_[device] = entry.status();
  }
  if (reached_.insert(device).second) {
    HCCOMM_LOG(Info, "ofi: ", device, " is read and written in place (", how, ")");
  }
  device_kept_.emplace(std::pair(memory.data, memory.bytes), entry.value());
  return {};
}

void Fabric::keep_no_more(const DeviceMemory& memory) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = device_kept_.find({memory.data, memory.bytes});
  if (found == device_kept_.end()) return;
  if (!ended_) cache_.done(*found->second);
  device_kept_.erase(found);
}

// ---- what has been written is there -------------------------------------------------------------

// Whether the piece that is next may be handed over. If not, the cards read back; that covers all
// pieces that have come by then.
bool Fabric::is_settled(Peer& peer, const Arrival& next) {
  if (next.kind != Kind::Direct || next.slot >= kGrants) return true;
  const Grant& grant = peer.grants[next.slot];
  if (grant.state != Grant::State::Given || !grant.on_device || peer.settled > 0) return true;
  if (peer.reading_back == 0 && peer.read_back != 0) {
    peer.settled = std::exchange(peer.read_back, 0);
    return true;
  }
  if (peer.reading_back == 0 && peer.failure.ok()) read_back(peer, grant);
  return false;
}

// What has come in order by now, but for what lies on another device. Requires: something has.
unsigned Fabric::come_for(Peer& peer, unsigned slot) {
  unsigned come = 0;
  for (; come < kWindow; ++come) {
    const Arrival& next = peer.slot_of(static_cast<std::uint16_t>(peer.expected + come));
    if (!next.here || (next.kind == Kind::Direct && next.slot != slot)) break;
  }
  return come;
}

// One read on each card that may have written. Where one takes it not now, all are made again.
void Fabric::read_back(Peer& peer, const Grant& grant) {
  static constexpr std::size_t kBytes = 8;
  const unsigned come = come_for(peer, grant.advert.slot);
  const std::size_t bytes = std::min<std::uint64_t>(kBytes, grant.advert.bytes - grant.offset);
  for (unsigned lane = 0; lane < grant.advert.lanes; ++lane) {
    const unsigned own = peer.rail_of[lane];
    const Rail& rail = *rails_[own];
    Op* const op = sender(senders_);
    if (op == nullptr) return;
    const auto& at = grant.advert.at[lane];
    const ssize_t said =
        fi_read(rail.endpoint, op->block.data, bytes, op->block.memory->descriptor[own], rail.self,
                at.address + grant.offset, at.key, op);
    if (said != 0) {
      park(*op);
      if (said != -FI_EAGAIN) {
        peer.failure = worded(Code::System, [&] {
          return library().failure(Code::System, text(peer.name, ": fi_read"),
                                   static_cast<int>(-said));
        });
      }
      return;
    }
    under_way(peer, *op);
    op->reads_back = true;
    ++peer.reading_back;
  }
  peer.read_back = come;
}

}  // namespace hccomm::transport::ofi
