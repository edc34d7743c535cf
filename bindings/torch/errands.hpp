// SPDX-License-Identifier: Apache-2.0
//
// What happens after an operation but must not happen on the thread that drives it: completing
// futures (their callbacks run user code, take Python's lock and start operations) and dropping the
// tensors of works that nobody waited for. A thread of the process does these errands; it starts
// with the first one, so a program without futures never has it. While an errand runs another
// thread stands by, for a callback may wait for a future that is completed by the next errand.
#pragma once

#include <chrono>

#include "capi/hccomm.h"

namespace hccomm::glue {

// Something to do once an operation has ended; deleted afterwards.
class Errand {
 public:
  virtual ~Errand() = default;
  virtual void run() noexcept = 0;

  Errand* next = nullptr;
};

// Thread: any, also one that drives the engine: post() takes one short lock and allocates nothing.
namespace errands {

// Makes sure that a thread runs. Call it where threads may be made, before post().
void start();
void post(Errand* errand) noexcept;
// Waits until all errands are done; false when the time was too short.
bool flush(std::chrono::milliseconds limit);
// Posts the errand when the operation ends. Owns the errand, also when it raises.
void when_done(hccomm_work* work, Errand* errand);

}  // namespace errands
}  // namespace hccomm::glue
