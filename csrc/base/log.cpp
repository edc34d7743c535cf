// SPDX-License-Identifier: Apache-2.0
#include "base/log.hpp"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>

#include "base/config.hpp"
#include "base/text.hpp"

namespace hccomm::log {

static std::atomic<int> current_rank{-1};

bool enabled(Level level) noexcept {
  static const int limit = static_cast<int>(config::log_level());
  return static_cast<int>(level) <= limit;
}

void set_rank(int rank) noexcept { current_rank.store(rank, std::memory_order_relaxed); }

static void write_out(const std::string& line) noexcept {
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

void write(Level level, const std::string& line) noexcept try {
  static const char* const names[] = {"error", "warning", "info", "debug"};
  const int rank = current_rank.load(std::memory_order_relaxed);
  std::string out = rank < 0 ? "hccomm " : text("hccomm[", rank, "] ");
  out += names[static_cast<int>(level)];
  out += ": " + line + "\n";
  write_out(out);
} catch (const std::exception&) {  // no memory: better bare than not at all
  write_out(line);
}

void write_once(Level level, const std::string& key, const std::string& line) noexcept try {
  static std::mutex mutex;  // guards seen
  static std::set<std::string> seen;
  if (!enabled(level)) return;
  const std::lock_guard lock(mutex);
  if (seen.insert(key).second) write(level, line);
} catch (const std::exception&) {  // no memory to note that it was written
  write_out(line);
}

}  // namespace hccomm::log
