// SPDX-License-Identifier: Apache-2.0
//
// Streams, events and copy engines. Streams and devices live until the process ends.
#include "runtime.hpp"

#include <cstring>
#include <exception>
#include <thread>

namespace simdevice {

static std::atomic<int64_t> events{0};

// ---- events ------------------------------------------------------------------------------------

Event::Event(Device& device) : device_(device) { ++events; }
Event::~Event() { --events; }

uint64_t Event::record() {
  const std::lock_guard lock(mutex_);
  return ++recorded_;
}

void Event::reach(uint64_t mark) {
  {
    const std::lock_guard lock(mutex_);
    if (mark > reached_) reached_ = mark;
    when_ = Clock::now();
  }
  changed_.notify_all();
}

bool Event::query() const {
  device_.check();
  const std::lock_guard lock(mutex_);
  return reached_ >= recorded_;
}

void Event::wait() const {
  pass(recorded());
  device_.check();
}

void Event::pass(uint64_t mark) const {
  std::unique_lock lock(mutex_);
  while (reached_ < mark && !device_.lost()) {
    changed_.wait_for(lock, std::chrono::milliseconds(10));  // a lost device notifies nobody
  }
}

uint64_t Event::recorded() const {
  const std::lock_guard lock(mutex_);
  return recorded_;
}

Clock::time_point Event::when() const {
  const std::lock_guard lock(mutex_);
  return when_;
}

// ---- streams -----------------------------------------------------------------------------------

void Stream::push(Item item) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(item));
    if (!started_) std::thread([this] { run(); }).detach();
    started_ = true;
  }
  changed_.notify_all();
}

void Stream::enqueue(std::function<void()> work) {
  device_.check();
  push({std::move(work), false});
}

void Stream::finally(std::function<void()> work) { push({std::move(work), true}); }

void Stream::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return !queue_.empty(); });
    Item item = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    try {
      if (item.always || !device_.lost()) item.work();
    } catch (const std::exception&) {
      device_.lose();  // as a kernel that faults: the error shows at the next call
    }
    item.work = nullptr;  // lets go of tensors without the lock
    lock.lock();
    busy_ = false;
    if (queue_.empty()) changed_.notify_all();
  }
}

void Stream::record(const EventPtr& event) {
  device_.check();
  if (&event->device() != &device_) {
    throw DeviceError(device_.name() + ": this event is of another device");
  }
  push({[event, mark = event->record()] { event->reach(mark); }, true});
}

void Stream::block(const EventPtr& event) {
  enqueue([event, mark = event->recorded()] { event->pass(mark); });
}

bool Stream::idle() const {
  device_.check();
  const std::lock_guard lock(mutex_);
  return idle_locked();
}

void Stream::synchronize() const {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return idle_locked(); });
  }
  device_.check();
}

// ---- devices -----------------------------------------------------------------------------------

Device::Device(const Settings& settings, int index)
    : settings_(settings),
      name_(settings.vendor + ":" + std::to_string(index)),
      memory_(name_, settings.memory_bytes) {
  for (int i = 0; i < kStreams; ++i) streams_.push_back(std::make_unique<Stream>(*this));
}

Stream& Device::stream(int64_t number) {
  if (number < 0 || number >= kStreams) {
    throw DeviceError(name_ + ": there is no stream " + std::to_string(number));
  }
  return *streams_[static_cast<std::size_t>(number)];
}

bool due(std::atomic<int64_t>& counter) {
  int64_t left = counter.load();
  while (left >= 0 && !counter.compare_exchange_weak(left, left - 1)) continue;
  return left == 0;
}

void Device::copy(Stream& stream, void* to, const void* from, std::size_t bytes, bool to_device,
                  std::shared_ptr<void> keep) {
  void* const target = to_device ? memory_.reach(to) : to;
  const void* const source = to_device ? from : memory_.reach(from);
  Engine& engine = to_device ? in_ : out_;
  stream.enqueue([=, this, &engine, keep = std::move(keep)] {
    if (due(faults_.lose_after_copies)) lose();
    if (lost()) return;
    double seconds = settings_.latency_seconds;
    if (settings_.bytes_per_second > 0) {
      seconds += static_cast<double>(bytes) / settings_.bytes_per_second;
    }
    const std::chrono::duration<double> takes(seconds * faults_.slowness.load());
    Clock::time_point end;
    {
      const std::lock_guard lock(engine.mutex);
      end = std::max(engine.free_at, Clock::now()) +
            std::chrono::duration_cast<Clock::duration>(takes);
      engine.free_at = end;
    }
    std::memcpy(target, source, bytes);
    if (takes.count() > 0) std::this_thread::sleep_until(end);
  });
}

void* Device::allocate(std::size_t bytes) {
  check();
  if (due(faults_.fail_allocation_after)) {
    throw OutOfMemory(name_ + ": out of memory (ordered): " + std::to_string(bytes) + " bytes");
  }
  try {
    return memory_.allocate(bytes);
  } catch (const OutOfMemory&) {
    synchronize();  // what has been freed comes back in stream order
    return memory_.allocate(bytes);
  }
}

void Device::release(void* address, Stream& home, const std::vector<Stream*>& users) {
  std::vector<std::pair<EventPtr, uint64_t>> used;
  for (Stream* user : users) {
    auto event = std::make_shared<Event>(*this);
    const uint64_t mark = event->record();
    user->finally([event, mark] { event->reach(mark); });
    used.emplace_back(std::move(event), mark);
  }
  home.finally([this, address, used = std::move(used)] {
    for (const auto& [event, mark] : used) event->pass(mark);
    memory_.release(address);
  });
}

void Device::synchronize() const {
  for (const auto& stream : streams_) stream->synchronize();
}

void Device::hold(Stream& stream) {
  stream.enqueue([this, before = opened_.load()] {
    const auto end = Clock::now() + std::chrono::seconds(60);
    while (opened_.load() == before && Clock::now() < end && !lost()) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
}

void Device::open() { ++opened_; }

void Device::lose() { lost_.store(true, std::memory_order_release); }

void Device::check() const {
  if (lost()) throw DeviceError(name_ + ": the device is lost");
}

// ---- the process -------------------------------------------------------------------------------

namespace {
struct Process {
  std::mutex mutex;
  Settings settings;
  std::vector<std::unique_ptr<Device>> devices;  // made with the first use
};
}  // namespace

static Process& process() {
  static auto* const one = new Process;  // streams outlive static destructors
  return *one;
}

void configure(const Settings& wanted) {
  const std::lock_guard lock(process().mutex);
  if (!process().devices.empty()) throw DeviceError("configure: the devices are in use already");
  process().settings = wanted;
}

const Settings& settings() { return process().settings; }

Device& device(int index) {
  Process& all = process();
  const std::lock_guard lock(all.mutex);
  if (all.devices.empty()) {
    for (int i = 0; i < all.settings.devices; ++i) {
      all.devices.push_back(std::make_unique<Device>(all.settings, i));
    }
  }
  if (index < 0 || index >= all.settings.devices) {
    throw DeviceError(all.settings.vendor + ": there is no device " + std::to_string(index));
  }
  return *all.devices[static_cast<std::size_t>(index)];
}

int64_t live_events() { return events.load(); }

}  // namespace simdevice
