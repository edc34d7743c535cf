// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the handshake from both sides. The first byte chooses: a stranger's bytes fed to one end
// in pieces, or an honest exchange in which the input alters some bytes on the way. Found would be:
// more bytes taken than given or asked for, or a stranger, or an altered exchange, that is
// accepted.
#include "wire/handshake.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.hpp"

using namespace hccomm;
using wire::Handshake;
using wire::Role;

namespace {

wire::Terms terms(Role role, bool keyed) {
  const std::string dialer(16, 'd'), server(16, 's');
  wire::Terms made{.job = std::string(16, 'j'),
                   .key = std::string(keyed ? 32 : 0, 'k'),
                   .uuid = role == Role::Initiator ? dialer : server,
                   .peer_uuid = role == Role::Initiator ? server : std::string(),
                   .transport = "tcp",
                   .extra = "extra"};
  if (!wire::usable(made).ok()) made.key.clear();  // no libcrypto here
  return made;
}

// Feeds in pieces of at most `step`; false once the end refuses.
bool feed(Handshake& end, std::string_view bytes, std::size_t step) {
  while (!bytes.empty() && end.wants() > 0) {
    const std::string_view piece = bytes.substr(0, std::min({step, end.wants(), bytes.size()}));
    std::size_t used = 0;
    const Status status = end.feed(piece, used);
    HCCOMM_CHECK(used <= piece.size(), "a handshake takes no more than it is given");
    if (!status.ok()) return false;
    if (used == 0) break;
    bytes.remove_prefix(used);
  }
  return true;
}

void stranger(std::string_view input, Role role, bool keyed, std::size_t step) {
  Handshake end(role, terms(role, keyed));
  (void)end.output();
  if (!feed(end, input, step)) return;
  if (keyed) HCCOMM_CHECK(!end.proven(), "without the key nobody is proven");
  (void)end.output();
}

// The way between the two ends. `edits` are (position / 8, position % 8, mask) triples.
struct Wire {
  std::string_view edits;
  std::size_t sent = 0;
  bool altered = false;

  std::string carry(std::string bytes) {
    const std::string before = bytes;
    for (std::size_t each = 0; each + 2 < edits.size(); each += 3) {
      const std::size_t at = static_cast<unsigned char>(edits[each]) * 8u +
                             static_cast<unsigned char>(edits[each + 1]) % 8u;
      if (at < sent || at - sent >= bytes.size()) continue;
      bytes[at - sent] = static_cast<char>(bytes[at - sent] ^ edits[each + 2]);
    }
    sent += bytes.size();
    altered = altered || bytes != before;
    return bytes;
  }
};

void exchange(std::string_view input, bool keyed, std::size_t step) {
  Handshake dialer(Role::Initiator, terms(Role::Initiator, keyed));
  Handshake server(Role::Acceptor, terms(Role::Acceptor, keyed));
  Wire wire{input};
  if (!feed(server, wire.carry(dialer.output()), step)) return;
  if (!feed(dialer, wire.carry(server.output()), step)) return;
  if (!feed(server, wire.carry(dialer.output()), step)) return;
  HCCOMM_CHECK(server.proven() || wire.altered, "a peer is proven when nothing was altered");
  // Without a key who sits between the two can talk both down to comparing job ids: that keeps
  // strays out, not attackers. With one nothing may be altered.
  if (keyed) HCCOMM_CHECK(!server.proven() || !wire.altered, "nothing proven was altered");
  if (server.proven()) server.decide(wire::Verdict::Accepted);
  feed(dialer, wire.carry(server.output()), step);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 2, size - 2);
  const bool keyed = (data[0] & 1) != 0;
  const Role role = (data[0] & 2) != 0 ? Role::Acceptor : Role::Initiator;
  const std::size_t step = 1 + data[1];
  if ((data[0] & 4) != 0) {
    exchange(input, keyed, step);
  } else {
    stranger(input, role, keyed, step);
  }
  return 0;
}
