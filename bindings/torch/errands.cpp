// SPDX-License-Identifier: Apache-2.0
//
// A list, a lock and a thread. The thread is detached and its state never freed: it may wait at the
// end of the process, when static destructors have run.
#include "errands.hpp"

#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "errors.hpp"

namespace hccomm::glue::errands {

namespace {

struct Queue {
  std::mutex mutex;  // guards everything below
  std::condition_variable arrived, finished;
  Errand* first = nullptr;
  Errand* last = nullptr;
  std::uint64_t posted = 0, done = 0;
  pid_t owner = 0;  // the process whose thread runs; a forked child needs its own
};

Queue& queue() {
  static Queue* const only = new Queue;
  return *only;
}

[[noreturn]] void run_errands() {
  Queue& all = queue();
  std::unique_lock lock(all.mutex);
  for (;;) {
    all.arrived.wait(lock, [&] { return all.first != nullptr; });
    std::unique_ptr<Errand> errand(all.first);
    all.first = errand->next;
    if (!all.first) all.last = nullptr;
    lock.unlock();
    errand->run();
    errand.reset();
    lock.lock();
    ++all.done;
    all.finished.notify_all();
  }
}

}  // namespace

void start() {
  Queue& all = queue();
  const std::lock_guard lock(all.mutex);
  if (all.owner == getpid()) return;
  std::thread(run_errands).detach();
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
  const std::uint64_t target = all.posted;
  return all.finished.wait_for(lock, limit, [&] { return all.done >= target; });
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
