// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/exchange.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>

#include "base/config.hpp"
#include "transport/handshake_io.hpp"
#include "transport/shm/peer_memory.hpp"
#include "transport/stream_link.hpp"

namespace hccomm::transport::shm {

// The layout of ring.hpp and of these structs; another version means no shared memory.
static constexpr std::uint32_t kLayout = 7;

// "This is my ring, and this lies in my memory"; the descriptors come along with the first byte: of
// the ring, and of the commons where there are any.
struct Offer {
  std::uint32_t layout;
  std::uint32_t chunk_bytes;
  std::uint64_t area_bytes;     // 0: no memory to offer
  std::uint64_t nonce_address;  // 0: do not read my memory
  Nonce nonce;
  std::uint64_t exports_address;  // of what I share; as readable as the nonce
};
static_assert(sizeof(Offer) == 48);

// "Your ring is mapped; I found your nonce."
struct Answer {
  std::uint32_t mapped;  // 1: the ring; 2: the commons, too
  std::uint32_t found;
};

Wishes configured_wishes() {
  return {area_for(config::bytes("HCCOMM_SHM_BYTES")), config::raw("HCCOMM_CMA") == "auto"};
}

Result<pid_t> checked_peer(int socket) {
  ucred who = {};
  socklen_t bytes = sizeof who;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) {
    return Status::from_errno(errno, "shm: SO_PEERCRED");
  }
  if (who.uid != geteuid()) {
    return Status(Code::Unavailable, text("shm: process ", who.pid, " runs as user ", who.uid,
                                          ", this one as ", geteuid(), "; both must be the same"));
  }
  return who.pid;
}

// An empty socket buffer takes an Offer whole; it was just connected and each side sends one.
static Status send_offer(int socket, const Offer& offer, std::span<const int> memory) {
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  iovec piece = {const_cast<Offer*>(&offer), sizeof offer};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!memory.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(memory.size_bytes());
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(memory.size_bytes());
    std::memcpy(CMSG_DATA(part), memory.data(), memory.size_bytes());
  }
  const ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(sizeof offer)) return {};
  return Status::from_errno(sent < 0 ? errno : EMSGSIZE, "shm: send the ring's descriptor");
}

static Status await(int socket, Deadline deadline) {
  for (;;) {
    pollfd entry = {socket, POLLIN, 0};
    const int ready = ::poll(&entry, 1, deadline.left_ms());
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return Status::from_errno(errno, "shm: poll");
    if (deadline.passed()) {
      return {Code::Timeout, "shm: the peer did not send its ring in time"};
    }
  }
}

// What came with an Offer.
struct Memory {
  UniqueFd ring, commons;
};

// Every descriptor that came is ours to close; we keep two.
static Memory descriptors_in(msghdr& message) {
  Memory memory;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    for (std::size_t at = 0; CMSG_LEN(at + sizeof(int)) <= part->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + at, sizeof fd);
      UniqueFd owned(fd);
      UniqueFd& place = memory.ring ? memory.commons : memory.ring;
      if (!place) place = std::move(owned);
    }
  }
  return memory;
}

static Status receive_offer(int socket, Offer& offer, Memory& memory, Deadline deadline) {
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  iovec piece = {&offer, sizeof offer};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (Status waited = await(socket, deadline); !waited.ok()) return waited;
  const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) return Status::from_errno(errno, "shm: receive the ring's descriptor");
  if (got == 0) return {Code::PeerLost, "shm: the peer closed the connection"};
  memory = descriptors_in(message);
  if (!memory.ring &&
      (message.msg_flags & MSG_CTRUNC) != 0) {  // one was sent, but we may have no more
    return Status::from_errno(EMFILE, "shm: receive the ring's descriptor");
  }
  const auto part = static_cast<std::size_t>(got);
  return receive_all(socket, reinterpret_cast<char*>(&offer) + part, sizeof offer - part, deadline);
}

static std::string map_offered(const Offer& offer, const Memory& memory, Exchanged& result) {
  if (offer.layout != kLayout || offer.chunk_bytes != kChunkBytes) {
    return text("the peer's rings have layout ", offer.layout, ", this build's ", kLayout);
  }
  if (offer.area_bytes == 0 || !memory.ring) return "the peer has no memory to share";
  if (!valid_area(offer.area_bytes)) return text("a ring of ", offer.area_bytes, " bytes");
  auto mapped = Segment::map(memory.ring, ring_bytes(offer.area_bytes));
  if (!mapped) return mapped.status().text();
  if (memory.commons) {
    auto commons = Segment::map_as_used(memory.commons, kCommonsBytes);
    if (commons) result.their_commons = std::move(commons).value();
  }
  result.theirs = std::move(mapped).value();
  result.their_area_bytes = offer.area_bytes;
  return {};
}

Result<Exchanged> exchange(int socket, pid_t peer, const Wishes& wishes, Deadline deadline) {
  Exchanged result;
  UniqueFd my_memory;
  auto made = Segment::make(ring_bytes(wishes.area_bytes), my_memory);
  auto nonce = fresh_nonce();
  if (!nonce) return nonce.status();
  Nonce here[2] = {nonce.value(),
                   {}};  // on the stack until the peer has answered: the second is its

  Offer mine = {kLayout, kChunkBytes, 0, 0, here[0], exports_address()};
  if (made) mine.area_bytes = wishes.area_bytes;
  if (wishes.pull) mine.nonce_address = reinterpret_cast<std::uintptr_t>(here);
  const int memory[] = {my_memory.get(), wishes.commons ? wishes.commons->descriptor().get() : -1};
  const std::size_t count = !made ? 0 : wishes.commons ? 2 : 1;
  Status status = send_offer(socket, mine, {memory, count});
  if (!status.ok() && count != 0) {  // descriptors may be forbidden where bytes are not
    mine.area_bytes = 0;
    status = send_offer(socket, mine, {});
  }
  if (!status.ok()) return status;

  Offer theirs;
  Memory their_memory;
  status = receive_offer(socket, theirs, their_memory, deadline);
  if (!status.ok()) return status;
  result.no_memory = map_offered(theirs, their_memory, result);
  const bool found = wishes.pull && theirs.nonce_address != 0 &&
                     probe_peer(peer, theirs.nonce_address, theirs.nonce);

  const bool shared = result.their_commons.data() != nullptr;
  const Answer my_answer = {result.no_memory.empty() ? 1u + shared : 0u, found};
  Answer their_answer = {};
  status = send_all(socket, &my_answer, sizeof my_answer, deadline);
  if (status.ok()) status = receive_all(socket, &their_answer, sizeof their_answer, deadline);
  if (!status.ok()) return status;

  const bool written = std::memcmp(&here[0], &here[1], sizeof here[0]) == 0;
  result.pulls = found && their_answer.found == 1 && written;
  result.exports = theirs.exports_address;
  if (!made) {
    result.no_memory = made.status().text();
  } else {
    result.mine = std::move(made).value();
  }
  if (result.no_memory.empty() && their_answer.mapped == 0) {
    result.no_memory = "the peer could not map this process's memory";
  }
  if (their_answer.mapped == 2) result.my_commons = wishes.commons;
  return result;
}

Result<std::unique_ptr<Link>> make_link(UniqueFd socket, pid_t peer, Exchanged agreed) {
  if (!agreed.no_memory.empty()) {
    return std::unique_ptr<Link>(std::make_unique<StreamLink>(
        std::move(socket), text("shm (stream, as ", agreed.no_memory, ") to process ", peer)));
  }
  auto bell = Bell::make(std::move(socket), peer);
  if (!bell) return bell.status();
  const std::size_t my_area_bytes = agreed.mine.size() - ring_bytes(0);
  return std::unique_ptr<Link>(std::make_unique<ShmLink>(
      Parts{std::move(agreed.mine), std::move(agreed.theirs), my_area_bytes,
            agreed.their_area_bytes, std::move(bell).value(), agreed.pulls, agreed.exports,
            std::move(agreed.my_commons), std::move(agreed.their_commons)}));
}

}  // namespace hccomm::transport::shm
