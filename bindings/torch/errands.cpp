// SPDX-License-Identifier: Apache-2.0
//
// A list, a lock and a few threads. They are detached and their state is never freed: they may wait
// at the end of the process, when static destructors have run.
#include "errands.hpp"

#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "errors.hpp"

namespace hccomm::glue::errands {

namespace {

constexpr int kIdle = 2;  // threads that stay when there is nothing to do

struct Queue {
  std::mutex mutex;  // guards everything below
  std::condition_variable arrived, finished;
  Errand* first = nullptr;
  Errand* last = nullptr;
  std::uint64_t posted = 0, done = 0;
  int idle = 0;     // threads that wait or are about to
  pid_t owner = 0;  // the process whose threads run; a forked child needs its own
};

Queue& queue() {
  static Queue* const only = new Queue;
  return *only;
}

void run_errands();

// Requires: the lock.
void add_thread(Queue& all) {
  std::thread(run_errands).detach();
  ++all.idle;
}

void run_errands() {
  Queue& all = queue();
  std::unique_lock lock(all.mutex);
  for (;;) {
    all.arrived.wait(lock, [&] { return all.first != nullptr; });
    std::unique_ptr<Errand> errand(all.first);
    all.first = errand->next;
    if (!all.first) all.last = nullptr;
    // A callback may wait for a future that only another errand completes: never be the last one.
    if (--all.idle == 0) {
      try {
        add_thread(all);
      } catch (const std::system_error&) {  // then this one comes back, as long as nobody waits so
      }
    }
    lock.unlock();
    errand->run();
    errand.reset();
    lock.lock();
    ++all.done;
    all.finished.notify_all();
    if (all.idle >= kIdle) return;
    ++all.idle;
  }
}

}  // namespace

void start() {
  Queue& all = queue();
  const std::lock_guard lock(all.mutex);
  if (all.owner == getpid()) return;
  all.idle = 0;
  add_thread(all);
  all.owner = getpid();
}

void post(Errand* errand) noexcept {
  Queue& all = queue();
  const std::lock_guard lock(all.mutex);
  (all.last ? all.last->next : all.first) = errand;
  all.last = errand;
  ++all.posted;
  all.arrived.notify_one();
}

bool flush(std::chrono::milliseconds limit) {
  Queue& all = queue();
  std::unique_lock lock(all.mutex);
  return all.finished.wait_for(lock, limit, [&] { return all.done == all.posted; });
}

static void on_done(void* context, int /*code*/) { post(static_cast<Errand*>(context)); }

void when_done(hccomm_work* work, Errand* errand) {
  std::unique_ptr<Errand> owner(errand);
  start();
  const int code = hccomm_on_done(work, on_done, errand);
  if (code != HCCOMM_OK) {
    raise({code, -1, "get_future: the operation takes no callback any more"}, 0);
  }
  owner.release();
}

}  // namespace hccomm::glue::errands
