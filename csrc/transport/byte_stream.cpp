// SPDX-License-Identifier: Apache-2.0
#include "transport/byte_stream.hpp"

#include <sys/socket.h>

#include <cerrno>

namespace hccomm::transport {

ssize_t ByteStream::send(const iovec* parts, std::size_t count) noexcept {
  if (tls_ != nullptr) return tls_->send(parts, count);
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);
  message.msg_iovlen = count;
  return sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t ByteStream::receive(const iovec* parts, std::size_t count) noexcept {
  if (tls_ != nullptr) return tls_->receive(parts, count);
  if (count == 1) return recv(fd_.get(), parts[0].iov_base, parts[0].iov_len, MSG_DONTWAIT);
  return readv(fd_.get(), parts, static_cast<int>(count));
}

Status ByteStream::failed(int err, const std::string& what) const {
  if (err != EPROTO || tls_ == nullptr) return Status::from_errno(err, what);
  return {Code::Integrity,
          text(what, ": ", tls_->why(), " (HCCOMM_ENCRYPT: what came is not what the peer sent)")};
}

}  // namespace hccomm::transport
