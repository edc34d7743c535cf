// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the frame decoder as it runs: a link over a socket gets the input as what its peer sent,
// in pieces, with and without HCCOMM_INTEGRITY. The first byte says how payloads are placed and how
// the stream is cut. Found would be: a payload longer than announced, pieces out of order, an end
// without a beginning.
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "transport/stream_link.hpp"
#include "transport/transports.hpp"

using namespace hccomm;
using namespace hccomm::transport;

namespace {

class Reader final : public Inbox {
 public:
  explicit Reader(bool direct) : direct_(direct) {}
  void deliver(const wire::Header& header, const std::byte* payload) override {
    HCCOMM_CHECK(!open_, "no frame inside another");
    read(payload, header.length);
  }
  Placement begin(const wire::Header& header) override {
    HCCOMM_CHECK(!open_, "no frame inside another");
    open_ = true;
    left_ = header.length;
    if (!direct_ || header.length > kMost) return {};
    room_.assign(header.length, std::byte{});
    return {room_.data()};
  }
  void consume(const std::byte* piece, std::size_t bytes) override {
    HCCOMM_CHECK(open_ && bytes <= left_, "pieces are of the frame that has begun");
    left_ -= bytes;
    read(piece, bytes);
  }
  void end() override {
    HCCOMM_CHECK(open_, "an end has a beginning");
    open_ = false;
  }

 private:
  static constexpr std::size_t kMost = std::size_t{4} << 20;
  void read(const std::byte* at, std::size_t bytes) {
    for (std::size_t each = 0; each < bytes; each += 61) sum_ = sum_ ^ at[each];
  }
  const bool direct_;
  bool open_ = false;
  std::uint64_t left_ = 0;
  std::byte sum_{};
  std::vector<std::byte> room_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return 0;
  const UniqueFd peer(ends[1]);
  Reader reader((data[0] & 1) != 0);
  std::unique_ptr<Link> link = std::make_unique<StreamLink>(UniqueFd(ends[0]), "fuzzed");
  if ((data[0] & 2) != 0) link = sealed(std::move(link), Seal::Everything);
  const std::size_t step = (data[0] & 4) != 0 ? 1 + std::size_t{data[1]} * 7 : size;
  for (std::size_t at = 2; at < size; at += step) {
    const std::size_t bytes = std::min(step, size - at);
    const ssize_t sent = send(peer.get(), data + at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != static_cast<ssize_t>(bytes)) break;
    if (!link->poll(reader, 1 << 20)) break;
    if ((data[0] & 8) != 0) link->discard();
  }
  shutdown(peer.get(), SHUT_WR);
  for (int each = 0; each < 8 && link->poll(reader, 1 << 20); ++each) {
  }
  HCCOMM_CHECK(!link->status().ok(), "a stream that ends says so");
  return 0;
}
