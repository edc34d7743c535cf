// SPDX-License-Identifier: Apache-2.0
//
// A job key for ranks of one host that were given none: rank 0 makes it and hands it over an
// abstract Unix socket to processes of its own user, whom the kernel names. The socket's name may
// go through any store: another user who connects there, or who listens in rank 0's place, is found
// out. comm/ uses it where the launcher says that all ranks are on one host.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/unique_fd.hpp"

namespace hccomm::rendezvous {

// Rank 0's end.
//
// Owns:   the listening socket, its thread and the key.
// Thread: construct and destroy on one.
// Fails:  open() says why. Processes of other users get nothing, and one line in the log.
class KeyDoor {
 public:
  static Result<std::unique_ptr<KeyDoor>> open(std::string key);
  ~KeyDoor();

  const std::string& name() const noexcept { return name_; }  // for fetch_key()
  const std::string& key() const noexcept { return key_; }

 private:
  KeyDoor(std::string key, std::string name, UniqueFd socket, UniqueFd stop);
  void serve() noexcept;

  const std::string key_, name_;
  const UniqueFd socket_, stop_;
  std::thread thread_;  // last: it uses the rest
};

// The other ranks' end. Unavailable: who listens there is of another user, or cannot be reached.
Result<std::string> fetch_key(const std::string& name, Deadline deadline);

}  // namespace hccomm::rendezvous
