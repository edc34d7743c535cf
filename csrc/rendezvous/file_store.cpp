// SPDX-License-Identifier: Apache-2.0
//
// Files of the directory: "open" (rank 0's mark: machine and pid), "m.*" (one per other rank that
// has the store open), "k.*" (a value, under its escaped key), "t.*" (a value being written).
#include "rendezvous/file_store.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <functional>
#include <memory>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

#include "base/log.hpp"
#include "base/machine.hpp"
#include "base/unique_fd.hpp"
#include "wire/crypto.hpp"

namespace hccomm::rendezvous {
namespace {

constexpr auto kFirstPause = std::chrono::microseconds(200);
constexpr auto kLastPause = std::chrono::microseconds(5000);
constexpr double kLingerSeconds = 1;                          // the destructor's grace
constexpr auto kLookForDead = std::chrono::milliseconds(50);  // between two looks at all ranks
constexpr std::size_t kMaxFileName = 200;
constexpr const char* kMark = "open";
constexpr time_t kOldSeconds = 60;  // nobody takes that long from mkdir to the mark

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char each : bytes) {
    static constexpr char kDigits[] = "0123456789abcdef";
    out += kDigits[static_cast<unsigned char>(each) >> 4];
    out += kDigits[static_cast<unsigned char>(each) & 15];
  }
  return out;
}

std::uint64_t fnv1a(std::string_view bytes, std::uint64_t hash) {
  for (const char each : bytes) hash = (hash ^ static_cast<unsigned char>(each)) * 0x100000001b3;
  return hash;
}

// Keys that are too long for a file name keep their head and get a hash of the whole.
std::string file_of(const std::string& key) {
  std::string name = "k.";
  for (const char each : key) {
    const bool plain = (each >= '0' && each <= '9') || (each >= 'a' && each <= 'z') ||
                       (each >= 'A' && each <= 'Z') || each == '-' || each == '_' || each == '.';
    name += plain ? std::string(1, each) : text("%", hex({&each, 1}));
  }
  if (name.size() <= kMaxFileName) return name;
  return text(name.substr(0, kMaxFileName - 40), "~", std::hex, fnv1a(key, 0xcbf29ce484222325), "-",
              fnv1a(key, 0x84222325cbf29ce4));
}

// Calls `look` until it says true, sleeping a little longer each time. False: the deadline passed.
bool wait_for(Deadline deadline, const std::function<bool()>& look) {
  for (auto pause = kFirstPause;; pause = std::min(pause * 3 / 2, kLastPause)) {
    if (look()) return true;
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(std::min<Seconds>(pause, deadline.left()));
  }
}

Status write_all(int fd, const std::string& bytes, const std::string& what) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = write(fd, bytes.data() + done, bytes.size() - done);
    if (const int err = errno; wrote < 0 && err != EINTR) return Status::from_errno(err, what);
    if (wrote > 0) done += static_cast<std::size_t>(wrote);
  }
  return {};
}

// All of a file, or ok() with `found` false when there is none.
Status read_all(int folder, const std::string& name, std::string& bytes, bool& found) {
  const UniqueFd fd(openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  found = static_cast<bool>(fd);
  bytes.clear();
  if (const int err = errno; !fd) return err == ENOENT ? Status() : Status::from_errno(err, name);
  char chunk[16384];
  for (;;) {
    const ssize_t got = read(fd.get(), chunk, sizeof chunk);
    if (const int err = errno; got < 0 && err != EINTR) return Status::from_errno(err, name);
    if (got == 0) return {};
    if (got > 0) bytes.append(chunk, static_cast<std::size_t>(got));
    if (bytes.size() > kMaxValue) return {Code::System, name + ": larger than any value"};
  }
}

std::vector<std::string> files_in(int folder) {
  std::vector<std::string> names;
  UniqueFd copy(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const auto end = [](DIR* open) { closedir(open); };  // also where memory is refused
  const std::unique_ptr<DIR, decltype(end)> list(copy ? fdopendir(copy.get()) : nullptr, end);
  if (list == nullptr) return names;
  copy.release();
  while (const dirent* entry = readdir(list.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return names;
}

// The mark's text. Complete once it ends in a line feed.
std::string my_mark() { return text(machine_id(), "\n", getpid(), "\n"); }

// Whether the process that wrote this mark is certainly gone.
bool owner_is_dead(std::string_view mark) {
  const std::size_t line = mark.find('\n');
  if (line == std::string_view::npos || mark.substr(0, line) != machine_id()) return false;
  pid_t pid = 0;
  std::from_chars(mark.data() + line + 1, mark.data() + mark.size(), pid);
  return pid > 0 && process_is_gone(pid);
}

// Owns:   the directory on rank 0; on other ranks their one "m.*" file.
// Thread: one.
// Fails:  PeerLost when rank 0 has ended the store, System when the file system refuses.
class FileStore final : public Store {
 public:
  FileStore(std::string path, int rank, UniqueFd folder, bool made)
      : path_(std::move(path)), rank_(rank), made_(made), folder_(std::move(folder)) {}
  ~FileStore() override { finish(Deadline::after(Seconds(kLingerSeconds))); }

  // Rank 0 marks the directory open, another rank notes that it is here.
  Status enter() {
    mine_ = rank_ == 0 ? kMark : text("m.", rank_, ".", getpid(), ".", hex(wire::random_bytes(6)));
    const std::string what = text("store ", path_, ": making \"", mine_, "\"");
    const UniqueFd fd(openat(folder_.get(), mine_.c_str(),
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (const int err = errno; !fd) {
      mine_.clear();
      return err == ENOENT ? in_store(ended()) : Status::from_errno(err, what);
    }
    return write_all(fd.get(), my_mark(), what);
  }

  Status set(const std::string& key, std::string value) override {
    if (Status status = check_bounds(key, value.size()); !status.ok()) return status;
    const std::string what = text("store ", path_, ": writing \"", key, "\"");
    const std::string draft = text("t.", getpid(), ".", hex(wire::random_bytes(8)));
    const UniqueFd fd(openat(folder_.get(), draft.c_str(),
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (const int err = errno; !fd) {
      return err == ENOENT ? in_store(ended()) : Status::from_errno(err, what);
    }
    Status status = write_all(fd.get(), value, what);
    if (status.ok() &&
        renameat(folder_.get(), draft.c_str(), folder_.get(), file_of(key).c_str()) != 0) {
      status = Status::from_errno(errno, what);
    }
    if (!status.ok()) unlinkat(folder_.get(), draft.c_str(), 0);
    return status;
  }

  Result<std::string> get(const std::string& key, Deadline deadline) override {
    if (Status status = check_bounds(key, 0); !status.ok()) return status;
    const std::string name = file_of(key);
    std::string value;
    Status status;
    bool found = false;
    const bool over = wait_for(deadline, [&] {
      status = read_all(folder_.get(), name, value, found);
      if (status.ok() && !found && faccessat(folder_.get(), kMark, F_OK, 0) != 0 &&
          errno == ENOENT) {
        status = ended();
      }
      if (const int rank = status.ok() && !found ? died() : -1; rank >= 0) {
        status = read_all(folder_.get(), name, value, found);  // its last word
        if (status.ok() && !found) status = lost(rank);
      }
      return found || !status.ok();
    });
    if (!over) return Status(Code::Timeout, text("store: \"", key, "\" is not there in time"));
    if (!status.ok()) return in_store(status);
    return value;
  }

  void finish(Deadline deadline) noexcept override {
    if (!folder_) return;
    if (rank_ == 0 && !mine_.empty()) {
      while (!swept(deadline)) std::this_thread::sleep_for(kLastPause);
    } else if (!mine_.empty()) {
      unlinkat(folder_.get(), mine_.c_str(), 0);
    }
    folder_.reset();
  }

 private:
  // False where memory was refused: it is worth another try. At the deadline the mark alone goes.
  bool swept(Deadline deadline) noexcept try {
    sweep(deadline);
    return true;
  } catch (const std::exception&) {
    if (!deadline.passed()) return false;
    unlinkat(folder_.get(), mine_.c_str(), 0);
    return true;
  }

  Status in_store(const Status& status) const {
    return {status.code(), text("store ", path_, ": ", status.text()), status.rank()};
  }
  static Status ended() {
    return {Code::PeerLost, "rank 0 has ended it; see the output of rank 0", 0};
  }
  static Status lost(int rank) {
    return {Code::PeerLost,
            text("rank ", rank, " has ended before all ranks had met; see what it wrote"), rank};
  }

  // A rank whose process has died with the store open, on this machine, or -1. Looks a few times a
  // second. Not a rank that another process has taken up; and only rank 0 looks at all: who judged
  // alone might leave a meeting that the rest complete.
  int died() {
    const Clock::time_point now = Clock::now();
    if (now < next_look_) return -1;
    next_look_ = now + kLookForDead;
    std::set<int> dead, alive;
    for (const std::string& name : files_in(folder_.get())) {
      const int rank = rank_of(name);
      if (rank < 0 || name == mine_ || (rank_ != 0 && rank != 0)) continue;
      (is_left(name) ? dead : alive).insert(rank);
    }
    for (const int rank : dead) {
      if (!alive.contains(rank)) return rank;
    }
    return -1;
  }

  static int rank_of(const std::string& file) {
    if (file == kMark) return 0;
    int rank = -1;
    if (file.starts_with("m.")) std::from_chars(file.data() + 2, file.data() + file.size(), rank);
    return rank;
  }

  // Whether whoever made that mark has died; who finishes takes it away first.
  bool is_left(const std::string& file) const {
    std::string mark;
    bool found = false;
    return read_all(folder_.get(), file, mark, found).ok() && found && mark.ends_with("\n") &&
           owner_is_dead(mark) && faccessat(folder_.get(), file.c_str(), F_OK, 0) == 0;
  }

  // Once nobody that lives has the store open, or the deadline has passed: removes our files, the
  // mark last, so that nobody takes the directory for a fresh one halfway.
  void sweep(Deadline deadline) {
    wait_for(deadline, [&] {
      const std::vector<std::string> names = files_in(folder_.get());
      return std::none_of(names.begin(), names.end(), [this](const std::string& name) {
        return name.starts_with("m.") && !is_left(name);
      });
    });
    for (const std::string& name : files_in(folder_.get())) {
      if (name.starts_with("m.") || name.starts_with("k.") || name.starts_with("t.")) {
        unlinkat(folder_.get(), name.c_str(), 0);
      }
    }
    unlinkat(folder_.get(), kMark, 0);
    if (made_) rmdir(path_.c_str());
  }

  const std::string path_;
  const int rank_;
  const bool made_;  // rank 0: the directory was not there before
  UniqueFd folder_;
  std::string mine_;  // the one file by which this rank shows that it is here
  Clock::time_point next_look_ = Clock::now() + kLookForDead;
};

// Why values must not be put there, or ok.
Status check_folder(const UniqueFd& folder, const std::string& path) {
  struct stat about = {};
  if (fstat(folder.get(), &about) != 0) {
    return Status::from_errno(errno, text("rendezvous: file://", path));
  }
  if (about.st_uid != geteuid()) {
    return {Code::InvalidArgument,
            text("rendezvous: the directory ", path, " belongs to user ", about.st_uid, ", not to ",
                 geteuid(), "; use one of your own")};
  }
  if ((about.st_mode & 077) != 0) {
    return {Code::InvalidArgument, text("rendezvous: other users can enter the directory ", path,
                                        "; chmod 700 it, or name one that does not exist yet")};
  }
  return {};
}

UniqueFd open_folder(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
}

// Whether every process that has left a mark in the folder is certainly gone; a folder without any
// whole mark is taken for a dead job's only once it is old.
bool left_by_the_dead(const UniqueFd& folder) {
  bool marked = false;
  for (const std::string& name : files_in(folder.get())) {
    if (name != kMark && !name.starts_with("m.")) continue;
    std::string mark;
    bool found = false;
    if (!read_all(folder.get(), name, mark, found).ok() || !found) return false;
    if (!mark.ends_with("\n")) continue;  // being written, or by one who was killed doing so
    if (!owner_is_dead(mark)) return false;
    marked = true;
  }
  struct stat about = {};
  return marked ||
         (fstat(folder.get(), &about) == 0 && about.st_mtime + kOldSeconds < time(nullptr));
}

// Removes what jobs that were killed while they met have left beside `path`, where that is the
// folder in which hccomm itself makes the meeting places of this user, and nobody else writes.
void sweep_beside(const std::string& path) {
  const std::string parent = path.substr(0, path.rfind('/'));
  if (!parent.ends_with(text("/hccomm-", geteuid()))) return;
  const UniqueFd all = open_folder(parent);
  if (!all || !check_folder(all, parent).ok()) return;
  for (const std::string& name : files_in(all.get())) {
    const UniqueFd one(
        openat(all.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!one || !check_folder(one, name).ok() || !left_by_the_dead(one)) continue;
    for (const std::string& file : files_in(one.get())) {
      const bool ours = file == kMark || file.starts_with("m.") || file.starts_with("k.") ||
                        file.starts_with("t.");
      if (ours) unlinkat(one.get(), file.c_str(), 0);
    }
    unlinkat(all.get(), name.c_str(), AT_REMOVEDIR);
  }
}

Result<std::unique_ptr<Store>> found_store(const std::string& path) {
  sweep_beside(path);
  const bool made = mkdir(path.c_str(), 0700) == 0;
  if (const int err = errno; !made && err != EEXIST) {
    return Status::from_errno(err, text("rendezvous: rank 0 cannot make the directory ", path));
  }
  UniqueFd folder = open_folder(path);
  if (const int err = errno; !folder) {
    return Status::from_errno(err, text("rendezvous: rank 0 cannot use the directory ", path));
  }
  if (Status status = check_folder(folder, path); !status.ok()) return status;
  if (!made && !files_in(folder.get()).empty()) {
    return Status(Code::InvalidArgument,
                  text("rendezvous: the directory ", path,
                       " is not empty: another job uses it or has "
                       "left it behind; name a directory of this job's own, or remove that one"));
  }
  auto store = std::make_unique<FileStore>(path, 0, std::move(folder), made);
  if (Status status = store->enter(); !status.ok()) return status;
  return std::unique_ptr<Store>(std::move(store));
}

Result<std::unique_ptr<Store>> join_store(const std::string& path, int rank, Deadline deadline) {
  UniqueFd folder;
  Status status;
  bool stale = false;
  const bool over = wait_for(deadline, [&] {
    folder = open_folder(path);
    if (const int err = errno; !folder) {
      status = err == ENOENT ? Status() : Status::from_errno(err, "rendezvous: directory " + path);
      return !status.ok();
    }
    if (status = check_folder(folder, path); !status.ok()) return true;
    std::string mark;
    bool found = false;
    status = read_all(folder.get(), kMark, mark, found);
    if (!status.ok()) return true;
    stale = owner_is_dead(mark);
    return mark.ends_with("\n") && !stale;
  });
  if (over && !status.ok()) return status;
  if (!over) {
    return Status(
        Code::Timeout,
        text("rendezvous: rank ", rank, " waited in vain for rank 0 to open the directory ", path,
             stale ? ", which a job that died has left behind; remove it, and give "
                     "each job its own"
                   : "; see whether rank 0 has started, and whether it sees the same "
                     "file system"),
        0);
  }
  auto store = std::make_unique<FileStore>(path, rank, std::move(folder), false);
  if (status = store->enter(); !status.ok()) return status;
  return std::unique_ptr<Store>(std::move(store));
}

}  // namespace

Result<std::unique_ptr<Store>> open_file_store(const std::string& path, int rank,
                                               Deadline deadline) {
  return rank == 0 ? found_store(path) : join_store(path, rank, deadline);
}

}  // namespace hccomm::rendezvous
