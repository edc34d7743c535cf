// SPDX-License-Identifier: Apache-2.0
//
// One line to stderr for people: "hccomm[rank] level: text". HCCOMM_LOG = error, warn (default),
// info or debug. The text is built only when the level is on.
#pragma once

#include <string>

namespace hccomm::log {

enum class Level { Error, Warn, Info, Debug };

bool enabled(Level level) noexcept;
// Thread: any. Writes the line with one write(2).
void write(Level level, const std::string& line) noexcept;
// The same key is written once per process.
void write_once(Level level, const std::string& key, const std::string& line) noexcept;
// Shown in every line from now on; -1 before the rank is known.
void set_rank(int rank) noexcept;

}  // namespace hccomm::log

#define HCCOMM_LOG(level, ...)                                                        \
  do {                                                                                \
    if (::hccomm::log::enabled(::hccomm::log::Level::level))                          \
      ::hccomm::log::write(::hccomm::log::Level::level, ::hccomm::text(__VA_ARGS__)); \
  } while (false)
