// SPDX-License-Identifier: Apache-2.0
//
// How a process becomes a rank: it meets the others through a store, learns their cards, and gets
// the communicator of all of them.
#pragma once

#include <memory>
#include <string>

#include "base/clock.hpp"
#include "comm/communicator.hpp"
#include "rendezvous/store.hpp"

namespace hccomm::comm {

struct Meeting {
  int rank = -1, size = -1;  // -1: from the launcher's environment
  std::string name = "world";
  std::string url;  // where to meet when there is no store; "": HCCOMM_RENDEZVOUS
  rendezvous::Store* store = nullptr;
  Seconds timeout{0};         // 0: HCCOMM_TIMEOUT
  bool own_endpoint = false;  // this rank is a thread among others of this process
};

// Throws Error: InvalidArgument for what the caller got wrong, Timeout naming the ranks that did
// not come, Mismatch when ranks disagree on size, rank or version.
std::unique_ptr<Communicator> join(const Meeting& meeting);

}  // namespace hccomm::comm
