// SPDX-License-Identifier: Apache-2.0
//
// A file descriptor with one owner, in one process: a forked child loses it. A child that kept a
// copy would hold the connections of a rank that has died open, and its peers would wait for it.
#pragma once

#include <utility>

namespace hccomm {

// What UniqueFd asks of the table of owned descriptors; nobody else does.
void own_descriptor(int fd) noexcept;          // fork() closes it in the child
void disown_descriptor(int fd) noexcept;       // somebody else's from now on
void close_owned_descriptor(int fd) noexcept;  // unless fork() has done so

// Owns:   the descriptor; closes it on destruction, and in every child that fork() makes.
// Thread: like an int.
// Fails:  never.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {
    if (fd_ >= 0) own_descriptor(fd_);
  }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this == &other) return *this;
    if (fd_ >= 0) close_owned_descriptor(fd_);
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept {
    if (fd_ >= 0) disown_descriptor(fd_);
    return std::exchange(fd_, -1);
  }
  void reset(int fd = -1) noexcept {
    if (fd_ >= 0) close_owned_descriptor(fd_);
    fd_ = fd;
    if (fd_ >= 0) own_descriptor(fd_);
  }

 private:
  int fd_ = -1;
};

}  // namespace hccomm
