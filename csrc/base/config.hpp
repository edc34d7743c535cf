// SPDX-License-Identifier: Apache-2.0
//
// Every HCCOMM_* environment variable: one typed accessor here, one line in the table of
// config.cpp, from which docs/config.md is made (`hccomm info --config`). A value that cannot be
// read is InvalidArgument naming the variable, the value and what it may be.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/log.hpp"

namespace hccomm::config {

struct Setting {
  const char* name;      // HCCOMM_...
  const char* kind;      // what a value looks like
  const char* fallback;  // the default, as one would write it
  const char* meaning;   // one sentence
};

std::span<const Setting> settings();

// Throws Error(InvalidArgument) when any HCCOMM_* variable holds a value that cannot be read, or
// when one is set that no setting has (a typing error is worse than a refusal).
void check_all();

// The raw value, or the fallback of the table. Requires: `name` is in the table.
std::string raw(const char* name);
bool is_set(const char* name);
bool flag(const char* name);
std::int64_t integer(const char* name);  // plain number
std::uint64_t bytes(const char* name);   // number with optional K, M or G (powers of 1024)
Seconds seconds(const char* name);
std::vector<std::string> list(const char* name);  // comma separated, blanks trimmed

// Parses "64K", "1M", "3"; throws InvalidArgument naming `what`.
std::uint64_t parse_bytes(const std::string& value, const std::string& what);

log::Level log_level() noexcept;  // bad values fall back to Warn here; check_all() reports them

}  // namespace hccomm::config
