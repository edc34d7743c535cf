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

void write(Level level, const std::string& line) noexcept {
  static const char* const names[] = {"error", "warning", "info", "debug"};
  const int rank = current_rank.load(std::memory_order_relaxed);
  std::string out = rank < 0 ? "hccomm " : text("hccomm[", rank, "] ");
  out += names[static_cast<int>(level)];
  out += ": " + line + "\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, out.data(), out.size());
}

void write_once(Level level, const std::string& key, const std::string& line) noexcept {
  static std::mutex mutex;  // guards seen
  static std::set<std::string> seen;
  if (!enabled(level)) return;
  const std::lock_guard lock(mutex);
  if (seen.insert(key).second) write(level, line);
}

}  // namespace hccomm::log
