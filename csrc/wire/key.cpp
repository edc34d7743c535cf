// SPDX-License-Identifier: Apache-2.0
#include "wire/key.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>

#include "base/config.hpp"
#include "base/unique_fd.hpp"

namespace hccomm::wire {

static constexpr const char* kMakeKey =
    "make one with `(umask 077; head -c 32 /dev/urandom | base64 > FILE)`";
static constexpr std::size_t kBase64Bytes = 44;  // of 32 bytes

static int base64_value(char each) {
  if (each >= 'A' && each <= 'Z') return each - 'A';
  if (each >= 'a' && each <= 'z') return each - 'a' + 26;
  if (each >= '0' && each <= '9') return each - '0' + 52;
  if (each == '+' || each == '-') return 62;  // the URL-safe alphabet too
  if (each == '/' || each == '_') return 63;
  return -1;
}

// The 32 bytes, or empty when `value` is not base64 of exactly so many.
static std::string decode_key(std::string_view value) {
  while (!value.empty() && (value.back() == '\n' || value.back() == '\r')) value.remove_suffix(1);
  if (value.size() == kBase64Bytes && value.back() == '=') value.remove_suffix(1);
  if (value.size() != kBase64Bytes - 1) return {};
  std::string key;
  unsigned bits = 0, held = 0;
  for (const char each : value) {
    const int digit = base64_value(each);
    if (digit < 0) return {};
    bits = bits << 6 | static_cast<unsigned>(digit);
    held += 6;
    if (held >= 8) {
      held -= 8;
      key.push_back(static_cast<char>(bits >> held & 0xff));
    }
  }
  return key;
}

static Status refuse_file(const std::string& path, const std::string& why) {
  return {Code::InvalidArgument, text("HCCOMM_KEY_FILE=", path, ": ", why)};
}

static Result<std::string> key_from_file(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (const int err = errno; !file) {
    if (err == ELOOP) return refuse_file(path, "is a symbolic link; name the file itself");
    return refuse_file(path, Status::from_errno(err, "cannot be opened").text() + "; " + kMakeKey);
  }
  struct stat facts{};
  if (const int err = fstat(file.get(), &facts) == 0 ? 0 : errno; err != 0) {
    return Status::from_errno(err, text("HCCOMM_KEY_FILE=", path));
  }
  if (!S_ISREG(facts.st_mode)) return refuse_file(path, "is not a regular file");
  if (facts.st_uid != geteuid()) {
    return refuse_file(path, text("belongs to user ", facts.st_uid, ", not to ", geteuid(),
                                  " who runs this rank; use a file of your own"));
  }
  if ((facts.st_mode & 077) != 0) {
    return refuse_file(path, text("others may read or write it; run `chmod 600 ", path, "`"));
  }
  char content[kBase64Bytes + 4];
  const ssize_t bytes = read(file.get(), content, sizeof content);
  if (const int err = errno; bytes < 0) {
    return Status::from_errno(err, text("HCCOMM_KEY_FILE=", path, " cannot be read"));
  }
  const std::string_view found(content, static_cast<std::size_t>(bytes));
  std::string key = found.size() == kKeyBytes ? std::string(found) : decode_key(found);
  explicit_bzero(content, sizeof content);
  if (key.empty()) {
    return refuse_file(path, text("holds neither 32 bytes nor base64 of 32 bytes; ", kMakeKey));
  }
  return key;
}

Result<std::string> load_job_key() {
  if (config::is_set("HCCOMM_KEY_FILE")) return key_from_file(config::raw("HCCOMM_KEY_FILE"));

  static std::mutex mutex;        // guards remembered
  static std::string remembered;  // what HCCOMM_KEY held
  const std::lock_guard lock(mutex);
  if (config::is_set("HCCOMM_KEY")) {
    std::string key = decode_key(config::raw("HCCOMM_KEY"));
    if (key.empty()) {
      return Status(Code::InvalidArgument,
                    "HCCOMM_KEY is not base64 of 32 bytes; make one with "
                    "`head -c 32 /dev/urandom | base64`");
    }
    remembered = std::move(key);
    // The bytes themselves too: /proc/PID/environ shows what the process was started with.
    char* const shown = std::getenv("HCCOMM_KEY");
    explicit_bzero(shown, std::strlen(shown));
    unsetenv("HCCOMM_KEY");
  }
  return remembered;
}

}  // namespace hccomm::wire
