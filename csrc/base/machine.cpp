// SPDX-License-Identifier: Apache-2.0
#include "base/machine.hpp"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <memory>
#include <vector>

#include "base/config.hpp"
#include "base/text.hpp"
#include "base/unique_fd.hpp"

namespace hccomm {

static std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

static std::string boot_id() { return first_line("/proc/sys/kernel/random/boot_id"); }

static std::string host_name() {
  char buffer[256] = {};
  return gethostname(buffer, sizeof buffer - 1) == 0 ? buffer : "unnamed";
}

static std::string namespace_of(const char* kind) {
  struct stat about = {};
  const std::string path = text("/proc/self/ns/", kind);
  return ::stat(path.c_str(), &about) == 0 ? text(about.st_dev, ".", about.st_ino) : "none";
}

std::string machine_id() {
  // Without /proc the boot id is empty; the host name then keeps two machines apart.
  std::string boot = boot_id();
  if (boot.empty()) boot = "host " + host_name();
  return text(boot, "/net ", namespace_of("net"), "/pid ", namespace_of("pid"));
}

std::string host_id() {
  if (config::is_set("HCCOMM_HOST")) return config::raw("HCCOMM_HOST");
  return host_name() + "/" + boot_id();
}

static int affinity_cores() {
  // The mask must be as long as the kernel's; double it until it is.
  for (std::size_t cores = 1024; cores <= (std::size_t{1} << 20); cores *= 2) {
    const std::size_t bytes = CPU_ALLOC_SIZE(cores);
    const auto release = [](cpu_set_t* set) { CPU_FREE(set); };
    const std::unique_ptr<cpu_set_t, decltype(release)> set(CPU_ALLOC(cores), release);
    if (sched_getaffinity(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
  }
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

static constexpr double kNoLimit = 1e18;

// Cores' worth of time that one control group grants.
static double group_quota(const std::string& folder) {
  double quota = -1;
  double period = 0;
  if (std::ifstream two(folder + "/cpu.max"); two) {
    two >> quota >> period;  // "max 100000" leaves quota unread: no limit
    if (!two) return kNoLimit;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kNoLimit;
}

// The value of a line "name value" of a file, 0 where there is none.
static double value_of(const std::string& file, const std::string& name) {
  std::ifstream in(file);
  std::string word;
  double value = 0;
  while (in >> word >> value) {
    if (word == name) return value;
    in.ignore(1 << 10, '\n');
  }
  return 0;
}

// Bytes that one control group still grants: what files have cached gives way.
static double group_memory(const std::string& folder) {
  const bool two = std::ifstream(folder + "/memory.max").is_open();
  double most = -1;
  double used = 0;
  std::ifstream(folder + (two ? "/memory.max" : "/memory.limit_in_bytes")) >> most;
  std::ifstream(folder + (two ? "/memory.current" : "/memory.usage_in_bytes")) >> used;
  if (most <= 0) return kNoLimit;  // "max", or no such group
  const std::string total = two ? "" : "total_";
  for (const char* cached : {"active_file", "inactive_file"}) {
    used -= value_of(folder + "/memory.stat", total + cached);
  }
  return std::max(0.0, most - std::max(0.0, used));
}

// The least of what the control groups grant from ours to the root; a container may see only its
// own, mounted as the root.
static double least_of_groups(const std::string& controller,
                              double (*granted)(const std::string& folder)) {
  double least = kNoLimit;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = text(",", line.substr(first + 1, second - first - 1), ",");
    const bool two = controllers == ",,";
    if (!two && controllers.find(text(",", controller, ",")) == std::string::npos) continue;
    const std::string root = two ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    std::string path = line.substr(second + 1);
    for (;;) {
      least = std::min(least, granted(root + path));
      const std::size_t slash = path.rfind('/');
      if (path.empty() || slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return least;
}

int available_cores() {
  const double quota = std::ceil(least_of_groups("cpu", group_quota));
  return static_cast<int>(std::max(1.0, std::min<double>(affinity_cores(), quota)));
}

std::uint64_t available_memory() {
  const double here = value_of("/proc/meminfo", "MemAvailable:") * 1024;
  const double granted = least_of_groups("memory", group_memory);
  return static_cast<std::uint64_t>(here > 0 ? std::min(here, granted) : granted);
}

bool process_is_gone(pid_t pid) {
  if (kill(pid, 0) != 0) return errno == ESRCH;
#ifdef SYS_pidfd_open
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  pollfd entry{process.get(), POLLIN, 0};
  return process && poll(&entry, 1, 0) == 1;
#else
  return false;
#endif
}

}  // namespace hccomm
