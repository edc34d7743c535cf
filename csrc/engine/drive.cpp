// SPDX-License-Identifier: Apache-2.0
//
// Who moves the bytes: whoever waits polls the links, spins briefly, then yields, then sleeps until
// a link, a deadline or another thread wakes it. The service thread does the same when operations
// are in flight and nobody waits; it sleeps otherwise.
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/log.hpp"
#include "engine/engine.hpp"
#include "engine/guard.hpp"

namespace hccomm::engine {

static constexpr auto kTick = std::chrono::milliseconds(20);  // longest sleep of a waiter
static constexpr long kGraceNs = 5'000'000;  // a handle may go unwaited before the service drives
static constexpr unsigned kBusyRounds = 64;  // that move something, until we look at the clock
static constexpr int kEagerPolls = 64;  // before pausing (45 ns, half a cache miss) and yielding
static constexpr int kTaken = 4;        // frames, or fills of a buffer, of each link at a look
static constexpr auto kLook = std::chrono::milliseconds(2);  // between looks at all deadlines
static constexpr auto kYieldBudget = std::chrono::microseconds(300);

// Lets others have our core; returns for how long.
static Clock::duration give_way() {
  const Clock::time_point before = Clock::now();
  sched_yield();
  return Clock::now() - before;
}

static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool Engine::progress() {
  bool moved = false;
  graveyard_.clear();
  surely([&] {
    for (std::size_t i = 0; i < up_.size(); ++i) {  // a broken channel leaves up_ meanwhile
      moved = up_[i]->progress() || moved;
    }
    if (!pushes_.empty() || !pulls_.empty()) moved = copy_large() || moved;
    if (staging_.busy()) moved = staging_.progress() || moved;
    if (!ready_.empty()) drain();
  });
  return moved;
}

void Engine::flush() {
  for (Channel* channel : up_) channel->flush();
}

void Engine::call_back(Guard& guard) {
  for (std::size_t left = callbacks_.size(); left > 0 && !callbacks_.empty();) {  // those due now
    std::array<Callback, 16> due;
    const std::size_t count = std::min({due.size(), left, callbacks_.size()});
    left -= count;
    for (std::size_t i = 0; i < count; ++i) {
      due[i] = callbacks_.front();
      callbacks_.pop_front();
    }
    guard.unlock();
    for (std::size_t i = 0; i < count; ++i) due[i].function(due[i].context, due[i].code);
    guard.lock();
  }
}

static void wake_links(const std::vector<Channel*>& up, bool& asleep) {
  for (Channel* channel : up) channel->link()->sleeping(false);
  asleep = false;
}

// Looks at all deadlines, where that is due.
void Engine::look_around(Guard& guard, Clock::time_point now) {
  if (now < next_check_) return;
  check_deadlines(now);
  if (!callbacks_.empty()) call_back(guard);
  // With thousands in flight a look takes its time: it gets a twentieth of ours.
  const Clock::time_point looked = Clock::now();
  next_check_ = looked + std::max<Clock::duration>(kLook, 19 * (looked - now));
}

// Drives until `until` is done (nullptr: until there is nothing in flight) or the deadline passes.
// With nothing in flight there may still be frames that wait for room: then it looks once.
// Another waiter that drives already does it for us; the service thread steps back for any waiter.
void Engine::drive(Guard& guard, const Operation* until, Deadline deadline) {
  const auto over = [&] { return until != nullptr ? until->done() : running_.empty(); };
  if (asleep_) wake_links(up_, asleep_);
  if (until == nullptr && running_.empty()) {
    if (driving_) {
      let_in(guard);
    } else if (!progress()) {
      static_cast<void>(sleep(guard, deadline));  // one look, asleep or not
    }
    return;
  }
  int idle = 0;
  unsigned busy = 0;
  bool slept = false;
  Clock::time_point idle_since{}, waits_since{};
  while (!over()) {
    if (driving_) {
      ++waiters_;
      guard.unlock();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (driving_ && !over()) {
          const auto limit = std::min(Clock::now() + kTick, deadline.at());
          done_.wait_until(lock, limit);
        }
        lock.release();
      }
      guard.adopt();
      --waiters_;
      if (!over() && deadline.passed()) return;
      continue;
    }
    driving_ = true;
    while (!over()) {
      if (progress()) {
        if (std::exchange(idle, 0) > 0) waiting_.courtesy.found();
        if (std::exchange(slept, false)) waiting_.patience.slept(Clock::now() - waits_since);
        if (!callbacks_.empty()) call_back(guard);
        // A peer that sends without end must hide neither a deadline nor who wants the lock.
        if (++busy % kBusyRounds != 0) continue;
        if (contenders_.load(std::memory_order_relaxed) > 0) let_in(guard);
        look_around(guard, Clock::now());
        if (deadline.passed()) break;
        continue;
      }
      if (idle == 0) flush();
      ++idle;
      if (contenders_.load(std::memory_order_relaxed) > 0) let_in(guard);
      waiting_.courtesy.found_nothing();
      // Spinning keeps from running who sits on our core: other ranks, or threads of this process
      // by which a device's runtime works.
      const bool yields = settings_.oversubscribed || staging_.busy();
      const bool at_once = yields || waiting_.courtesy.at_once();
      const bool polite = at_once ? idle > 1 : idle % kEagerPolls == 0;
      if (polite && yields) {
        sched_yield();  // a clock would cost a tenth as much
      } else if (polite) {
        waiting_.courtesy.yielded(give_way());
      } else if (idle > kEagerPolls) {
        relax();
      }
      if (idle % 16 != 0) continue;
      const Clock::time_point now = Clock::now();
      if (idle == 16) idle_since = now;
      look_around(guard, now);
      if (over() || now >= deadline.at()) break;
      if (now - idle_since > (yields ? kYieldBudget : waiting_.patience.now())) {
        if (!std::exchange(slept, true)) waits_since = idle_since;
        sleep(guard, deadline);
        idle = 0;
      }
    }
    driving_ = false;
    if (waiters_ > 0) done_.notify_all();
    if (!over() && deadline.passed()) break;
  }
  if (!running_.empty()) arm_service();
}

// Lets a thread that waits for the mutex have it. It has to be woken first, and would find the
// mutex taken again if we did not wait for it.
void Engine::let_in(Guard& guard) {
  const int waiting = contenders_.load(std::memory_order_relaxed);
  const Clock::time_point limit = Clock::now() + std::chrono::milliseconds(2);
  guard.unlock();
  while (contenders_.load(std::memory_order_relaxed) >= waiting && Clock::now() < limit) {
    sched_yield();
  }
  guard.lock();
}

// Sleeps with the mutex released. False when there was no need to.
bool Engine::sleep(Guard& guard, Deadline deadline) {
  flush();
  if (!pulls_.empty()) return false;  // soon they need nobody: patience with senders is short
  bool quiet = true;
  for (Channel* channel : up_) {
    quiet = channel->link()->sleeping(true) && quiet;
    const int fd = channel->link()->fd();
    if (fd >= 0) {
      epoll_event event{};
      event.events = channel->link()->wants_write() ? EPOLLIN | EPOLLOUT : EPOLLIN;
      event.data.fd = fd;
      if (channel->watched != event.events) {
        epoll_ctl(poller_.get(), EPOLL_CTL_MOD, fd, &event);
        channel->watched = event.events;
      }
    }
  }
  asleep_ = true;
  if (quiet) {
    Clock::time_point until = std::min(Clock::now() + kTick, deadline.at());
    for (const auto& [at, channel] : late_dials_) until = std::min(until, at);
    // Copies ring no bell: they are looked for at short intervals.
    std::chrono::nanoseconds left = std::max(until - Clock::now(), Clock::duration::zero());
    if (staging_.busy()) left = std::min(left, staging_.nap());
    guard.unlock();
    const timespec nap{left.count() / 1'000'000'000, left.count() % 1'000'000'000};
    pollfd events{poller_.get(), POLLIN, 0};
    ppoll(&events, 1, &nap, nullptr);
    guard.lock();
    eventfd_t ignored = 0;
    eventfd_read(bell_.get(), &ignored);
  }
  if (asleep_) wake_links(up_, asleep_);
  return quiet;
}

// ---- the service thread ---------------------------------------------------------------------

// Without the thread, operations go on as long as somebody waits for them.
void Engine::start_service() {
  if (service_.joinable() || stopping_) return;
  try {
    service_ = std::thread([this] { serve(); });
  } catch (const std::system_error& refused) {
    log::write_once(log::Level::Warn, "engine/service",
                    "engine: nothing goes on behind the program, and a silent peer is noticed "
                    "late: " +
                        no_thread(refused).text());
  } catch (const std::bad_alloc&) {  // it is tried again
  }
}

void Engine::ring_service() {
  start_service();
  eventfd_write(service_bell_.get(), 1);
}

static bool awaited(const Channel& channel, const std::vector<Operation*>& running) {
  const auto& bindings = channel.bindings();
  const bool watched = std::ranges::any_of(bindings, [](const auto& each) {
    Context& context = *each.second.context;
    return std::atomic_ref(context.watched) > 0 && context.gone[each.second.rank] == 0;
  });
  if (watched && channel.up()) return true;
  return std::ranges::any_of(running, [&](const Operation* op) {
    const auto binding = bindings.find(op->context->id);
    return binding != bindings.end() && waits_for(*op, binding->second.rank);
  });
}

// Takes what has come while nobody waits: a rank that only sends learns of a failure, and what is
// held for a process that has died is released. Counts how long each peer has been silent, and four
// times a second tells every one that this process is alive.
void Engine::tick(Clock::time_point now) {
  if (take_dump_request()) {
    for (Context* context : contexts_) {
      if (!settings_.dump_folder.empty())
        write_dump(*context, settings_.dump_folder, dump_locked(*context));
    }
  }
  for (std::size_t i = up_.size(); i-- > 0;) {
    if (i >= up_.size()) continue;  // the end of one may have taken others with it
    if (!driving_ || up_[i]->bindings().empty()) look_at(*up_[i]);
  }
  // What has come for a rank that computes is taken, so that who leaves need not wait for it; not
  // all of it, so that who runs ahead of us does not fill our memory.
  for (int round = 0; !driving_ && round < kTaken && progress(); ++round) {
    if (contenders_.load(std::memory_order_relaxed) > 0) break;
  }
  staging_.forget_unused();
  staging_.close_abroad([&](const void* peer) {
    return std::ranges::any_of(
        up_, [&](const Channel* each) { return each == peer && !each->bindings().empty(); });
  });
  next_look_ = now + kGlance;
  if (settings_.silence.count() > 0) look_for_the_silent(now);
  if (now < next_beat_) return;
  next_beat_ = now + kBeat;
  for (std::size_t i = 0; i < up_.size(); ++i) {
    Channel& channel = *up_[i];
    if (channel.clear()) channel.beat();  // also past what waits for its device
  }
}

// A peer is lost when it is silent for too long, and an operation or a vendor's library waits for
// it. Whoever drives may not have come to read, in want of a processor or busy with a callback:
// what lies there speaks for the peer first. Our beats tell it how long we have heard nothing, so
// that counts whether or not anybody waits.
void Engine::look_for_the_silent(Clock::time_point now) {
  const bool beat = now >= next_beat_;
  const Seconds limit = Silence::limit(settings_.silence);
  for (const auto& [uuid, channel] : channels_) {
    Silence& silence = channel->silence;
    if (channel->up()) {
      silence.look(now);
      if (silence.unheard() > kBeat && channel->link()->pending()) {
        silence.heard();
        silence.look(now);
        eventfd_write(bell_.get(), 1);
      }
    } else if (beat || channel->state() == Channel::State::Dialing) {
      if (!awaited(*channel, running_)) silence.heard();
      silence.look(now, kBeat);
    }
    if (silence.lasted() < limit || !awaited(*channel, running_)) continue;
    if (channel->up() && channel->link()->pending()) {
      silence.heard();
      eventfd_write(bell_.get(), 1);
    } else {
      fell_silent(*channel);
    }
  }
}

// In a few milliseconds the service thread shall look whether anybody drives. Cheap when it will
// anyway.
void Engine::arm_service() {
  const Clock::time_point now = Clock::now();
  if (now < armed_until_) return;
  armed_until_ = now + std::chrono::nanoseconds(kGraceNs);
  start_service();
  itimerspec at{};
  at.it_value.tv_nsec = kGraceNs;
  timerfd_settime(service_timer_.get(), 0, &at, nullptr);
}

void Engine::serve() {
  pollfd calls[2] = {{service_bell_.get(), POLLIN, 0}, {service_timer_.get(), POLLIN, 0}};
  Guard guard(*this);
  while (!stopping_) {
    const Clock::time_point now = Clock::now();
    if (now >= next_look_) {
      surely([&] { tick(now); });
      call_back(guard);
    }
    if (running_.empty() || driving_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_look_ - now).count();
      const bool idle = up_.empty() && running_.empty() && !staging_.sees_any();
      const int nap = idle ? -1 : static_cast<int>(left);
      guard.unlock();
      ::poll(calls, 2, nap);
      eventfd_t rings = 0;
      eventfd_read(service_bell_.get(), &rings);
      std::uint64_t ticks = 0;
      [[maybe_unused]] const auto got = read(service_timer_.get(), &ticks, sizeof ticks);
      guard.lock();
      armed_until_ = {};
      continue;
    }
    // Nobody waits: drive a little, let others in, sleep when nothing moves.
    bool moved = false;
    for (int round = 0; round < 64 && !running_.empty(); ++round) {
      moved = progress() || moved;
      if (contenders_.load(std::memory_order_relaxed) > 0) break;
      if (!moved) relax();
    }
    check_deadlines(Clock::now());
    call_back(guard);
    if (contenders_.load(std::memory_order_relaxed) > 0) {
      let_in(guard);
    } else if (!moved && !running_.empty()) {
      sleep(guard, Deadline::never());
    } else {
      flush();
    }
  }
}

}  // namespace hccomm::engine
