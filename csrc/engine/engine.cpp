// SPDX-License-Identifier: Apache-2.0
//
// The engine's life: contexts, links, operations. What it does with them is in collective.cpp,
// tagged.cpp, failure.cpp and drive.cpp.
#include "engine/engine.hpp"
#include "engine/guard.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.hpp"

namespace hccomm::engine {

static constexpr auto kPatience = std::chrono::milliseconds(5);    // before we dial out of turn
static constexpr auto kParting = std::chrono::milliseconds(500);   // for peers to take our Bye
static constexpr auto kDialAgain = std::chrono::milliseconds(50);  // when theirs has not come
static constexpr int kLooks = 1000;  // frames taken before a connection counts as sound

static void watch(int poller, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

Engine::Engine(Dialer& dialer, std::string uuid, Settings settings)
    : dialer_(dialer),
      uuid_(std::move(uuid)),
      settings_(settings),
      waiting_{Patience(std::chrono::microseconds(settings.spin_us), settings.patient)},
      poller_(epoll_create1(EPOLL_CLOEXEC)),
      bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      service_bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      service_timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      staging_(*this, dialer, settings) {
  if (!poller_ || !bell_ || !service_bell_ || !service_timer_) {
    throw Error(Status::from_errno(errno, "engine: cannot make its wake-up descriptors"));
  }
  watch(poller_.get(), bell_.get(), EPOLLIN);
  ready_.reserve(256);
}

Engine::~Engine() {
  {
    Guard guard(*this);
    HCCOMM_CHECK(contexts_.empty(), "an engine outlives its contexts");
    stopping_ = true;
    ring_service();
  }
  if (service_.joinable()) service_.join();
}

// ---- groups and links -----------------------------------------------------------------------

// Takes the memory for one more now, so that adding it cannot fail.
template <typename T>
static void make_room(std::vector<T>& list, std::size_t count) {
  if (list.capacity() < count) list.reserve(std::max(count, 2 * list.capacity()));
}

Channel& Engine::channel_of(const transport::Card& card) {
  auto found = channels_.find(card.uuid);
  if (found == channels_.end()) {
    const std::size_t all = channels_.size() + retired_.size() + 1;
    make_room(up_, all);
    make_room(retired_, all);  // where broken ones end
    make_room(graveyard_, all + graveyard_.size());
    found = channels_.emplace(card.uuid, std::make_unique<Channel>(*this, card)).first;
  }
  found->second->know(card);
  return *found->second;
}

void Engine::add(Context& context, const std::vector<transport::Card>& cards) {
  Guard guard(*this);
  context.gone.assign(context.size, 0);
  context.someone_left = false;
  context.told.assign(context.size, 0);
  context.parting.assign(context.size, Parting::Not);
  context.matching.next_index.assign(context.size, 0);
  context.channels.assign(context.size, nullptr);
  make_room(contexts_, contexts_.size() + 1);
  try {
    for (int rank = 0; rank < context.size; ++rank) {
      if (rank != context.rank) context.channels[rank] = &sound_channel_of(cards[rank]);
    }
    contexts_.push_back(&context);
    for (int rank = 0; rank < context.size; ++rank) {
      if (rank != context.rank) context.channels[rank]->bind(context, rank);
    }
  } catch (const std::bad_alloc&) {
    leave(context);
    throw;
  }
  if (asleep_) eventfd_write(bell_.get(), 1);  // looking at the links has disarmed their bells
  call_back(guard);
}

// A connection that has ended unnoticed is no use to a new communicator: it gets another one.
Channel& Engine::sound_channel_of(const transport::Card& card) {
  Channel& channel = channel_of(card);
  if (!channel.up()) return channel;
  surely([&] { look_at(channel); });
  return channel_of(card);
}

// Takes what has arrived, the end of the connection included.
void look_at(Channel& channel) {
  channel.link()->sleeping(true);  // and awake: makes it look whether the peer still lives
  channel.link()->sleeping(false);
  for (int look = 0; look < kLooks && channel.up() && channel.link()->pending(); ++look) {
    channel.progress();
  }
}

bool Engine::quiesce(Context& context, Deadline deadline) {
  Guard guard(*this);
  const auto busy = [&] {
    return std::ranges::any_of(running_, [&](Operation* op) { return op->context == &context; }) ||
           std::ranges::any_of(context.channels, [](Channel* channel) {
             return channel != nullptr && channel->up() && !channel->idle();
           });
  };
  while (busy()) {
    if (deadline.passed()) return false;
    const Deadline slice = Deadline::after(Seconds(std::min(0.002, deadline.left().count())));
    drive(guard, nullptr, slice);
  }
  return true;
}

// Whoever ends now takes with it what the peer has not read yet: a socket that is closed while
// something unread lies in it throws away what it has still to send. So a peer says that it has
// taken our Bye. One that has left itself needs nothing of us.
static bool released(const Context& context, int rank) {
  const Channel* const channel = context.channels[rank];
  return channel == nullptr || !channel->up() || context.gone[rank] != 0 ||
         context.parting[rank] == Parting::Taken;
}

void Engine::say_bye_to(Context& context, int rank) {
  Channel* const channel = context.channels[rank];
  if (channel == nullptr || !channel->up() || context.parting[rank] != Parting::Not) return;
  context.parting[rank] = Parting::Said;
  wire::Header header;
  header.type = wire::Type::Bye;
  header.context = context.id;
  surely([&] { channel->send(header, nullptr); });
}

void Engine::remove(Context& context, Deadline deadline, bool say_bye) {
  Guard guard(*this);
  const auto here = [&](const Operation* op) { return op->context == &context; };
  const auto end_all = [&] {
    surely(
        [&] { poison_locked(context, Status(Code::Aborted, context.name + " is closed"), false); });
    // The failed operations end soon, even if their copies do not (check_deadlines).
    while (std::ranges::any_of(running_, here)) {
      drive(guard, nullptr, Deadline::after(Seconds(0.002)));
    }
  };
  // Without any, the group stays sound for now: others may go on, and ask about what is done.
  if (std::ranges::any_of(running_, here)) end_all();
  for (int rank = 0; say_bye && rank < context.size; ++rank) say_bye_to(context, rank);
  for (Channel* channel : context.channels) {
    if (channel == nullptr) continue;
    while (channel->up() && !channel->idle() && !deadline.passed()) {
      drive(guard, nullptr, Deadline::after(Seconds(0.001)));
    }
    channel->flush();
  }
  const Deadline parting(std::min(deadline.at(), Clock::now() + kParting));
  for (int rank = 0; say_bye && rank < context.size; ++rank) {
    while (!released(context, rank) && !parting.passed()) {
      say_bye_to(context, rank);  // who has only just dialed us
      drive(guard, nullptr, Deadline::after(Seconds(0.001)));
    }
  }
  end_all();
  leave(context);
  context.matching.last = nullptr;
  context.matching.lines.clear();
  closed_.add(context.id);
}

void Engine::leave(Context& context) {
  for (Channel* channel : context.channels) {
    if (channel == nullptr) continue;
    channel->unbind(context);
    drop_unused(*channel);
  }
  for (Channel*& channel : context.channels) channel = nullptr;
  std::erase(contexts_, &context);
}

// A channel that broke stays with the communicators that have it; others get a new one.
void Engine::retire(Channel& channel) {
  std::erase_if(late_dials_, [&](const auto& each) { return each.second == &channel; });
  const auto found = channels_.find(channel.card().uuid);
  if (found == channels_.end() || found->second.get() != &channel) return;
  retired_.push_back(std::move(found->second));
  channels_.erase(found);
}

// A broken channel that no communicator has any more is dropped.
void Engine::drop_unused(Channel& channel) {
  if (channel.state() != Channel::State::Broken || !channel.bindings().empty()) return;
  const auto found = std::ranges::find(retired_, &channel, &std::unique_ptr<Channel>::get);
  if (found == retired_.end()) return;
  graveyard_.push_back(std::move(*found));
  retired_.erase(found);
}

// A link to that peer is wanted. Of two processes the one with the lower uuid dials at once; the
// other waits a moment for that before it dials itself.
void Engine::need(Channel& channel) {
  if (channel.state() != Channel::State::Idle) return;
  if (uuid_ < channel.card().uuid && !reserved_.contains(channel.card().uuid)) {
    if (dialer_.dial(channel.card()).ok()) {
      channel.set_dialing();
    } else {
      late_dials_.emplace_back(Clock::now() + kDialAgain, &channel);
    }
    start_service();  // it counts how long the peer does not answer
    return;
  }
  const auto waits = [&](const auto& each) { return each.second == &channel; };
  if (std::ranges::none_of(late_dials_, waits)) {
    late_dials_.emplace_back(Clock::now() + kPatience, &channel);
  }
}

void Engine::attach(Channel& channel, std::unique_ptr<transport::Link> link) {
  if (link->fd() >= 0) watch(poller_.get(), link->fd(), EPOLLIN);
  if (link->reaches_devices()) reaches_devices_ = true;
  if (link->pulls()) pulls_any_ = true;
  channel.attach(std::move(link), settings_.eager_limit);
  up_.push_back(&channel);
  ring_service();  // from now on it tells the peer that we live
  unpark(channel);
  channel.pump();
  channel.flush();
  eventfd_write(bell_.get(), 1);
}

// Who dials has no connection with us, or does not know of it yet. If ours is dead, it ends here.
bool Engine::reserve(const std::string& uuid) {
  Guard guard(*this);
  auto found = channels_.find(uuid);
  if (found != channels_.end() && found->second->up()) {
    wire::Header beat;  // a peer that has closed its end answers it with a reset
    beat.type = wire::Type::Beat;
    surely([&] {
      found->second->send(beat, nullptr);
      look_at(*found->second);
    });
    if (asleep_) eventfd_write(bell_.get(), 1);
    call_back(guard);
    found = channels_.find(uuid);
  }
  if (found != channels_.end()) {
    const bool mine_is_coming = found->second->state() == Channel::State::Dialing && uuid_ < uuid;
    if (found->second->up() || mine_is_coming) return false;
  }
  return reserved_.insert(uuid).second;
}

// A peer may have met us before we have met it: then its channel is known by its uuid alone.
void Engine::accepted(const std::string& uuid, std::unique_ptr<transport::Link> link) {
  Guard guard(*this);
  reserved_.erase(uuid);
  surely([&] {
    transport::Card card;
    card.uuid = uuid;
    Channel& channel = channel_of(card);
    if (!channel.up()) attach(channel, std::move(link));
  });
  call_back(guard);
}

void Engine::abandoned(const std::string& uuid) {
  Guard guard(*this);
  reserved_.erase(uuid);
  const auto found = channels_.find(uuid);
  if (found == channels_.end()) return;
  surely([&] { late_dials_.emplace_back(Clock::now(), found->second.get()); });
}

void Engine::dialed(const std::string& uuid, Result<std::unique_ptr<transport::Link>> link) {
  Guard guard(*this);
  const auto found = channels_.find(uuid);
  if (found == channels_.end() || found->second->up()) return;
  Channel& channel = *found->second;
  surely([&] {
    if (link.ok()) {
      attach(channel, std::move(link).value());
    } else if (link.status().code() == Code::Aborted) {
      channel.set_idle();
      late_dials_.emplace_back(Clock::now() + kDialAgain, &channel);
    } else if (link.status().code() == Code::System) {
      cannot_dial(channel, link.status());
    } else {
      channel_broken(channel, link.status());
    }
  });
  call_back(guard);
}

std::string Engine::describe(const Context& context, int rank) {
  Guard guard(*this);
  const Channel* channel = context.channels[rank];
  if (channel == nullptr) return "closed";
  if (context.gone[rank] != 0) return text("left: it has closed ", context.name);
  if (channel->state() == Channel::State::Broken) return text("lost: ", channel->why().text());
  const Status& poison = context.poison;
  if (poison.code() == Code::PeerLost && poison.rank() == rank) {
    return text("lost: ", poison.text());
  }
  switch (channel->state()) {
    case Channel::State::Up: return channel->link()->describe();
    case Channel::State::Dialing: return "connecting";
    default: return "not connected yet";
  }
}

void Engine::share_machine(int ranks, int cores) {
  Guard guard(*this);
  settings_.oversubscribed = settings_.oversubscribed || ranks > cores;
}

// ---- operations -------------------------------------------------------------------------------

// The one that enlist() takes next, with room for `count`: what it needs is prepared in it before,
// and may be refused.
Operation& Engine::fresh(std::size_t count) {
  while (free_.size() < count) {
    make_room(free_, storage_.size() + 1);  // all may be free at once
    make_room(running_, storage_.size() + 1);
    free_.push_back(&storage_.emplace_back());
  }
  return *free_.back();
}

void Engine::enlist(Operation& op, Context& context, OperationKind kind, Seconds timeout) {
  free_.pop_back();
  op.kind = kind;
  op.state.store(Operation::Running, std::memory_order_relaxed);
  op.references = 2;  // ours while it runs, and the caller's handle
  op.engine = this;
  op.context = &context;
  op.timeout = timeout;
  op.probe_at = {};
  op.held = false;
  op.record = ~std::uint64_t{0};
  op.position = running_.size();
  running_.push_back(&op);
}

// No frame finds the operation any more.
void detach(Operation& op) {
  if (op.kind != OperationKind::Collective) {
    forget_tagged(op);
    return;
  }
  std::vector<Operation*>& window = op.context->window;
  Operation*& slot = window[op.sequence & (window.size() - 1)];
  if (slot == &op) slot = nullptr;
}

void Engine::finish(Operation& op, Status status) {
  if (op.done()) return;
  if (op.held && !(op.running() && status.ok())) return linger(op, status);
  if (op.staged != nullptr && !leave_device(op, status)) return;
  if (op.on_done != nullptr) {  // first, as it may be refused
    const Status& outcome = status.ok() ? op.status : status;
    callbacks_.push_back({op.on_done, op.on_done_context, static_cast<int>(outcome.code())});
    op.on_done = nullptr;
  }
  if (!status.ok()) op.status = std::move(status);
  if (op.running()) detach(op);
  close(op);
}

// It has succeeded.
void Engine::finish(Operation& op) {
  if (!op.running() || op.held || op.staged != nullptr || op.on_done != nullptr) {
    return finish(op, Status());
  }
  detach(op);
  close(op);
}

// It runs no more, and has its outcome.
void Engine::close(Operation& op) {
  op.context->recorder.end(op);
  running_[op.position] = running_.back();
  running_[op.position]->position = op.position;
  running_.pop_back();
  op.state.store(Operation::Done, std::memory_order_release);
  if (waiters_ > 0) done_.notify_all();
  drop_reference(op);
}

void Engine::drop_reference(Operation& op) {
  if (--op.references > 0) return;
  if (!op.status.ok()) op.status = {};
  if (!op.doubt.ok()) op.doubt = {};
  if (op.kind == OperationKind::Collective) {
    op.opened.clear();
    op.blocked.clear();
    if (!op.stash.empty()) op.stash.clear();
    if (!op.abroad.empty()) op.abroad.clear();
    if (!op.growing.empty()) op.growing.clear();
    if (!op.absent.empty()) op.absent.clear();
  }
  op.state.store(Operation::Free, std::memory_order_relaxed);
  free_.push_back(&op);
}

// Whether all that a small collective owes to others has left: nobody waits for us to drive it.
static bool owes_nothing(const Operation& op) {
  return op.kind == OperationKind::Collective && op.staged == nullptr && op.recipe->brief &&
         std::ranges::all_of(op.recipe->send_steps,
                             [&](std::uint32_t id) { return op.steps[id].done; });
}

// The operation as the caller gets it back: if nobody drives soon, the service thread does. To wake
// it costs more than a small collective, most of which are waited for at once.
Operation* Engine::handle(Operation& op, Follow follow) {
  op.unattended = false;
  if (op.done() || follow == Follow::Wait) return &op;
  flush();
  op.unattended = follow == Follow::Background && owes_nothing(op);
  if (follow == Follow::Background && !op.unattended) {
    ring_service();
  } else {
    arm_service();
  }
  return &op;
}

Status Engine::wait(Operation& op, Deadline deadline) {
  if (op.done()) return op.status;
  Guard guard(*this);
  drive(guard, &op, deadline);
  flush();
  call_back(guard);
  if (op.done()) return op.status;
  return {Code::Timeout,
          text("wait: still running when the given time was over (", progress_text(op),
               "); wait again, or look for the rank that is late")};
}

bool Engine::test(Operation& op) {
  if (op.done()) return true;
  Guard guard(*this);
  progress();
  check_deadlines(Clock::now());
  flush();
  call_back(guard);
  return op.done();
}

Seconds Engine::took(const Operation& op) {
  Guard guard(*this);
  const Record* const record = op.context->recorder.find(op.record);
  if (record == nullptr) return Seconds(0);
  const std::int64_t ns = recorded_ns(record->ended) - recorded_ns(record->began);
  return Seconds(static_cast<double>(ns) * 1e-9);
}

void Engine::on_done(Operation& op, void (*function)(void*, int), void* context) {
  {
    Guard guard(*this);
    if (!op.done()) {
      op.on_done = function;
      op.on_done_context = context;
      if (std::exchange(op.unattended, false)) ring_service();
      return;
    }
  }
  function(context, static_cast<int>(op.status.code()));
}

void Engine::release(Operation& op) {
  Guard guard(*this);
  drop_reference(op);
}

}  // namespace hccomm::engine
