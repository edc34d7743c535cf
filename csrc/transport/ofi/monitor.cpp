// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/monitor.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.hpp"

namespace hccomm::transport::ofi {

// Linux 5.11; older headers lack it.
static constexpr int kUserModeOnly = 1;

Monitor& Monitor::instance() {
  static auto* const monitor = new Monitor;  // its thread runs until the process ends
  return *monitor;
}

// Write-protection is what we register for and never use: so no access to the memory ever faults.
Monitor::Monitor() {
  const auto flags = O_CLOEXEC | O_NONBLOCK | kUserModeOnly;
  reports_.reset(static_cast<int>(syscall(SYS_userfaultfd, flags)));
  uffdio_api wanted{};
  wanted.api = UFFD_API;
  wanted.features = UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE |
                    UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  if (!reports_ || ioctl(reports_.get(), UFFDIO_API, &wanted) != 0) {
    why_not_ = text("userfaultfd: ", std::strerror(errno));
    reports_.reset();
    return;
  }
  std::thread([this] { run(); }).detach();
}

void Monitor::broke(std::uintptr_t begin, std::uintptr_t end) noexcept {
  for (Range& each : ranges_) {
    if (begin < each.end.load() && each.begin.load() < end) each.broken = true;
  }
}

// Allocates nothing and takes no lock: whoever unmaps waits for it.
void Monitor::run() noexcept {
  while (true) {
    pollfd entry{reports_.get(), POLLIN, 0};
    if (poll(&entry, 1, -1) < 0 && errno != EINTR) return;
    ++begun_;
    uffd_msg report{};
    while (read(reports_.get(), &report, sizeof report) == sizeof report) {
      const auto& arg = report.arg;
      if (report.event == UFFD_EVENT_REMAP) {
        broke(arg.remap.from, arg.remap.from + arg.remap.len);
        broke(arg.remap.to, arg.remap.to + arg.remap.len);
      } else if (report.event == UFFD_EVENT_UNMAP || report.event == UFFD_EVENT_REMOVE) {
        broke(arg.remove.start, arg.remove.end);
      }
    }
    ++ended_;
  }
}

int Monitor::watch(const std::byte* data, std::size_t bytes) {
  if (!why_not_.empty()) return -1;
  const std::lock_guard lock(mutex_);
  for (std::size_t index = 0; index < ranges_.size(); ++index) {
    Range& range = ranges_[index];
    if (range.end != 0) continue;
    range.broken = false;
    range.begin = reinterpret_cast<std::uintptr_t>(data);
    range.end = range.begin + bytes;
    uffdio_register wanted{};
    wanted.range = {range.begin, bytes};
    wanted.mode = UFFDIO_REGISTER_MODE_WP;
    if (ioctl(reports_.get(), UFFDIO_REGISTER, &wanted) == 0) return static_cast<int>(index);
    range.end = 0;
    return -1;
  }
  return -1;
}

bool Monitor::whole(int watched) {
  // A report that has been read, so that its sender goes on, may not have been noted yet.
  const std::uint64_t begun = begun_;
  while (ended_ < begun) sched_yield();
  return !ranges_[static_cast<std::size_t>(watched)].broken;
}

void Monitor::forget(int watched) {
  const std::lock_guard lock(mutex_);
  Range& range = ranges_[static_cast<std::size_t>(watched)];
  const uffdio_range gone{range.begin, range.end - range.begin};
  range.end = 0;
  for (const Range& each : ranges_) {
    if (each.end > gone.start && each.begin < gone.start + gone.len) return;  // still watched
  }
  ioctl(reports_.get(), UFFDIO_UNREGISTER, &gone);
}

}  // namespace hccomm::transport::ofi
