// SPDX-License-Identifier: Apache-2.0
//
// A Link over any connected byte stream: TCP between hosts, in clear or inside TLS, and a Unix
// socket inside one. Small frames
// are parsed where the kernel put them; the payload of large ones is received straight into its
// destination, or in pieces that stay in the processor's cache.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "base/unique_fd.hpp"
#include "transport/byte_stream.hpp"
#include "transport/transport.hpp"

namespace hccomm::transport {

// Owns:   the stream, and a receive buffer once something is to be received.
// Thread: as Link.
// Fails:  PeerLost when the peer closes or the connection breaks, Integrity when what arrives is
//         no frame. What had arrived whole before is handed over first.
class StreamLink final : public Link {
 public:
  // `description` goes into every error: "tcp to 10.0.0.2 port 4000".
  StreamLink(UniqueFd fd, std::string description)
      : StreamLink(ByteStream(std::move(fd)), std::move(description)) {}
  StreamLink(ByteStream stream, std::string description);

  Progress send(Outgoing& frame) noexcept override;
  bool poll(Inbox& inbox, std::size_t budget) noexcept override;
  // Receives once, into the place where the bytes belong: whoever spins pays one system call.
  bool pending() noexcept override;
  void discard() noexcept override;

  bool sleeping(bool asleep) noexcept override;
  int fd() const noexcept override { return stream_.fd(); }
  bool wants_write() const noexcept override { return blocked_; }

  std::size_t eager_bytes() const noexcept override;
  std::size_t frame_bytes() const noexcept override;
  Status status() const override { return status_; }
  std::string describe() const override { return description_; }

 private:
  // A frame that arrives in parts.
  struct Large {
    bool active = false;
    bool discarded = false;
    std::byte* direct = nullptr;
    std::uint64_t left = 0;  // payload bytes still to come, those in the buffer included
  };
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };

  bool receive() noexcept;
  bool end(Status why) noexcept;
  Status failed(int err, const char* doing) const noexcept;
  Status told(Code code, const char* what) const noexcept;
  bool next_frame(Inbox& inbox) noexcept;
  bool next_part(Inbox& inbox) noexcept;
  void compact() noexcept;

  ByteStream stream_;
  std::string description_;
  Status status_;         // the first failure
  bool blocked_ = false;  // the last send was not taken whole
  bool cut_ = false;      // sending is over
  bool ended_ = false;    // receiving is over
  bool fresh_ = false;    // pending() has received something that poll() has not seen
  bool drained_ = false;  // the last receive got less than it had room for
  std::unique_ptr<std::byte, Free> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // of what is in the buffer
  std::size_t received_ = 0;         // bytes of the last receive
  Large large_;
};

}  // namespace hccomm::transport
