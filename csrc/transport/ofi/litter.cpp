// SPDX-License-Identifier: Apache-2.0
#include "transport/ofi/litter.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace hccomm::transport::ofi {

static constexpr const char* kFolder = "/dev/shm/";
static constexpr const char* kPrefix = "fi_shm://";
static constexpr mode_t kMark = S_ISVTX;  // means nothing on a file

static UniqueFd open_file(const char* name) {
  const std::string path = std::string(kFolder) + name;
  return UniqueFd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
}

// A file of ours, and still there by its name.
static bool is_ours(int fd, struct stat& now) {
  return fstat(fd, &now) == 0 && S_ISREG(now.st_mode) && now.st_uid == geteuid() &&
         now.st_nlink == 1;
}

UniqueFd keep_shared_memory(const std::string& endpoint) {
  if (!endpoint.starts_with(kPrefix)) return {};
  const std::string name = endpoint.c_str() + std::strlen(kPrefix);  // a 0 may follow
  if (name.empty() || name.find('/') != std::string::npos) return {};
  UniqueFd fd = open_file(name.c_str());
  struct stat now = {};
  // Locked before it is marked: nobody may find it marked and free.
  if (!fd || !is_ours(fd.get(), now) || flock(fd.get(), LOCK_SH | LOCK_NB) != 0 ||
      fchmod(fd.get(), (now.st_mode & 07777) | kMark) != 0) {
    return {};
  }
  return fd;
}

// "4711:0:0": process, user, counter.
static bool may_be_one(const char* name) {
  return std::strchr(name, ':') != nullptr && std::strspn(name, "0123456789:") == std::strlen(name);
}

int sweep_shared_memory() noexcept {
  DIR* const folder = opendir(kFolder);
  if (folder == nullptr) return 0;
  int removed = 0;
  while (const dirent* entry = readdir(folder)) {
    if (!may_be_one(entry->d_name)) continue;
    const UniqueFd fd = open_file(entry->d_name);
    struct stat now = {};
    if (!fd || !is_ours(fd.get(), now) || (now.st_mode & kMark) == 0) continue;
    // Another that sweeps holds the lock too; who comes second finds no name any more.
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0 || !is_ours(fd.get(), now)) continue;
    if (unlinkat(dirfd(folder), entry->d_name, 0) == 0) ++removed;
  }
  closedir(folder);
  return removed;
}

}  // namespace hccomm::transport::ofi
