// SPDX-License-Identifier: Apache-2.0
//
// How the tcp store lets somebody in: at most kMaxPending at its door, each of whom proves the job
// key where there is one, and agrees on TLS where the job is encrypted.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "rendezvous/tcp_server.hpp"
#include "transport/handshake_io.hpp"

namespace hccomm::rendezvous {

static constexpr std::size_t kMaxPending = 64;                  // that have not said Hello
static constexpr auto kGrace = std::chrono::milliseconds(100);  // before others push in

// With all places taken, the guest who has been silent for longest leaves, unless it has only just
// come: then who is at the door waits there.
bool TcpServer::make_room() {
  if (unproven_ < kMaxPending) return true;
  Guest* oldest = nullptr;
  for (auto& [fd, guest] : guests_) {
    if (!guest.proven && (oldest == nullptr || guest.since < oldest->since)) oldest = &guest;
  }
  if (oldest == nullptr || Clock::now() - oldest->since < kGrace) return false;
  complain(*oldest, "it said nothing, and others wait");
  drop(oldest->stream.fd());
  return true;
}

std::unique_ptr<wire::Handshake> TcpServer::await_proof() const {
  wire::Terms terms{kStoreJob, with_.key, kStoreUuid, {}, kStoreTransport, {}};
  terms.encrypts = with_.encrypts;
  terms.kernel_tls = with_.encrypts && transport::kernel_tls();
  return std::make_unique<wire::Handshake>(wire::Role::Acceptor, std::move(terms));
}

// One who does not talk as it should: told why in a tongue that it speaks, once.
TcpServer::Fate TcpServer::refuse(Guest& guest, std::string_view first, const std::string& why) {
  std::string answer = guest.shaking ? guest.shaking->output() : std::string();
  const std::string_view magic(reinterpret_cast<const char*>(&kStoreMagic), sizeof kStoreMagic);
  if (guest.shaking && first.starts_with(magic)) {
    const std::string reason =
        "it has a job key and this rank has none; give all ranks the same "
        "HCCOMM_KEY_FILE or HCCOMM_KEY, or none";
    Reply head;
    head.answer = Answer::Refused;
    head.id = 1;  // of a client's first request
    head.value_bytes = static_cast<std::uint32_t>(reason.size());
    answer.assign(reinterpret_cast<const char*>(&head), sizeof head).append(reason);
  }
  if (!guest.shaking && wire::begins_handshake(first) && first.size() >= sizeof kStoreMagic) {
    answer = wire::refusal(
        "rank 0, which serves the store, has no job key and this rank has one; "
        "give all ranks the same HCCOMM_KEY_FILE or HCCOMM_KEY, or none");
  }
  const iovec bytes{answer.data(), answer.size()};
  if (!answer.empty()) static_cast<void>(guest.stream.send(&bytes, 1));
  complain(guest, why);
  return Fate::Leaves;
}

TcpServer::Fate TcpServer::shake(Guest& guest) {
  wire::Handshake& hands = *guest.shaking;
  char bytes[1024];
  while (hands.wants() > 0) {
    const iovec room{bytes, std::min(hands.wants(), sizeof bytes)};
    const ssize_t got = guest.stream.receive(&room, 1);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? Fate::Stays : Fate::Leaves;
    if (got == 0) return Fate::Leaves;
    const std::string_view came(bytes, static_cast<std::size_t>(got));
    std::size_t used = 0;
    if (Status status = hands.feed(came, used); !status.ok()) {
      return refuse(guest, came, status.text());
    }
    if (hands.proven()) hands.decide(wire::Verdict::Accepted);
    guest.head += hands.output();
    guest.sent = 0;
    if (!guest.head.empty() && flush(guest) == Fate::Leaves) return Fate::Leaves;
    if (!guest.head.empty() && !hands.done()) return Fate::Stays;
  }
  if (with_.encrypts) {
    wire::Terms terms;
    terms.kernel_tls = transport::kernel_tls();
    auto tls =
        transport::Tls::make(guest.stream.fd(), wire::Role::Acceptor, transport::tls_secret(hands),
                             transport::tls_options(terms, hands));
    if (!tls) return refuse(guest, {}, tls.status().text());
    guest.stream.encrypt(std::move(tls).value());
    guest.securing = true;
  }
  guest.shaking.reset();
  return Fate::Stays;
}

TcpServer::Fate TcpServer::secure(Guest& guest) {
  const transport::Tls::Step step = guest.stream.tls()->shake();
  if (step == transport::Tls::Step::Failed) {
    complain(guest, "tls: " + guest.stream.tls()->why());
    return Fate::Leaves;
  }
  guest.securing = step != transport::Tls::Step::Done;
  guest.wants_write = step == transport::Tls::Step::WantsWrite;
  watch(guest, false);
  return guest.securing ? Fate::Stays : receive(guest);
}

}  // namespace hccomm::rendezvous
