// SPDX-License-Identifier: Apache-2.0
//
// A vendor's communicator that one thread may end while another calls it. The Groups of
// native/ccl.hpp keep theirs in one.
#pragma once

#include <atomic>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/text.hpp"

namespace hccomm::native {

// Owns:   nothing: who take()s the communicator ends it.
// Thread: any.
// Fails:  use() with Code::Aborted once it has been taken, enter() with nullptr.
class Handle {
 public:
  explicit Handle(void* comm) : comm_(comm) {}

  template <typename Body>
  Status use(const std::string& library, Body&& body) {
    void* const own = enter();
    Status status = own != nullptr
                        ? std::forward<Body>(body)(own)
                        : Status(Code::Aborted, text(library, ": the group was aborted"));
    leave();
    return status;
  }

  // A call that lasts until leave(): nullptr where it has been taken.
  void* enter() {
    inside_.fetch_add(1);  // before the look: take() sees one of the two
    return comm_.load();
  }
  void leave() { inside_.fetch_sub(1); }

  // nullptr: taken already. Calls that are in it return first, but for one that blocks: that is
  // what the vendor's abort is for.
  void* take() {
    void* const own = comm_.exchange(nullptr);
    const Deadline patience = Deadline::after(Seconds(1));
    while (own != nullptr && inside_.load() > 0 && !patience.passed()) std::this_thread::yield();
    return own;
  }

 private:
  std::atomic<void*> comm_;
  std::atomic<int> inside_{0};
};

}  // namespace hccomm::native
