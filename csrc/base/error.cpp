// SPDX-License-Identifier: Apache-2.0
#include "base/error.hpp"

#include <sys/resource.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hccomm {

const char* name(Code code) noexcept {
  switch (code) {
    case Code::Ok: return "Ok";
    case Code::InvalidArgument: return "InvalidArgument";
    case Code::Mismatch: return "Mismatch";
    case Code::Unavailable: return "Unavailable";
    case Code::PeerLost: return "PeerLost";
    case Code::Timeout: return "Timeout";
    case Code::Aborted: return "Aborted";
    case Code::Integrity: return "Integrity";
    case Code::System: return "System";
    case Code::Internal: return "Internal";
  }
  return "unknown";
}

// What to do where descriptors have run out: this process's, or the machine's.
static std::string remedy(int err) {
  if (err == ENFILE) return "; raise the machine's fs.file-max";
  if (err != EMFILE) return "";
  rlimit limit{};
  const bool known = getrlimit(RLIMIT_NOFILE, &limit) == 0;
  return "; raise `ulimit -n`" + (known ? text(", ", limit.rlim_cur, " now") : "");
}

Status Status::from_errno(int err, std::string what) {
  const bool broken = err == EPIPE || err == ECONNRESET || err == ETIMEDOUT || err == ENOTCONN ||
                      err == EHOSTUNREACH || err == ENETUNREACH || err == ECONNABORTED;
  char buffer[128];
  const char* reason = strerror_r(err, buffer, sizeof buffer);
  return {broken ? Code::PeerLost : Code::System, what + ": " + reason + remedy(err)};
}

Status no_thread(const std::system_error& refused) {
  return {Code::System, text("no thread can be started: ", refused.code().message(),
                             "; raise `ulimit -u` or the container's limit of processes, or give "
                             "it more memory (`ulimit -v`)")};
}

void check_failed(const char* condition, const char* why, const char* file, int line) {
  std::fprintf(stderr, "hccomm: internal error at %s:%d: %s (%s)\n", file, line, why, condition);
  std::abort();
}

}  // namespace hccomm
