// SPDX-License-Identifier: Apache-2.0
#include "transport/shm/sharing.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <string>
#include <utility>

#include "base/log.hpp"
#include "transport/shm/peer_memory.hpp"
#include "transport/shm/segment.hpp"

namespace hccomm::transport::shm {

namespace {

// Of this process. A peer that reads a line while it changes finds a number of 0, or memory that it
// was not offered: what it was offered does not change meanwhile.
struct Table {
  std::mutex mutex;  // guards the rest, but for what peers read
  std::array<Export, kExports> lines;
  std::uint64_t last_number = 0;
  // What lies outside is not shared; nor does a line count from `used` on.
  std::atomic<std::uint64_t> low = ~std::uint64_t{0}, high = 0;
  std::atomic<std::size_t> used = 0;
};

Table& table() {
  static Table* const all = new Table;  // peers may read it until the end of the process
  return *all;
}

using Field = std::atomic_ref<std::uint64_t>;

void set_number(Export& line, std::uint64_t number) {
  Field(line.number).store(number, std::memory_order_release);
}

// Requires: the table's mutex.
void note_extent(Table& all) {
  std::uint64_t low = ~std::uint64_t{0}, high = 0;
  std::size_t used = 0;
  for (std::size_t k = 0; k < kExports; ++k) {
    const Export& line = all.lines[k];
    if (line.number == 0) continue;
    low = std::min(low, line.address);
    high = std::max(high, line.address + line.bytes);
    used = k + 1;
  }
  all.low.store(low, std::memory_order_relaxed);
  all.high.store(high, std::memory_order_relaxed);
  all.used.store(used, std::memory_order_relaxed);
}

class Block final : public Shared {
 public:
  Block(Segment memory, UniqueFd descriptor, Export& line)
      : memory_(std::move(memory)), descriptor_(std::move(descriptor)), line_(line) {}
  ~Block() override {
    const std::lock_guard lock(table().mutex);
    set_number(line_, 0);
    note_extent(table());
  }
  std::byte* data() const noexcept override { return memory_.data(); }

 private:
  Segment memory_;
  UniqueFd descriptor_;
  Export& line_;
};

struct Mapping final : View {
  explicit Mapping(Segment memory_, const Export& what) : memory(std::move(memory_)) {
    data = memory.data();
    address = what.address;
    bytes = what.bytes;
  }
  Segment memory;
};

bool covers(const Export& what, std::uint64_t address, std::uint64_t bytes) {
  return what.number != 0 && address >= what.address && bytes <= what.bytes &&
         address - what.address <= what.bytes - bytes;
}

// The descriptor by its name in /proc, for which less permission is asked than for its duplication.
Result<Segment> map(pid_t peer, const Export& what) {
  const std::string name = text("/proc/", peer, "/fd/", what.descriptor);
  const UniqueFd memory(open(name.c_str(), O_RDWR | O_CLOEXEC));
  if (!memory) return Status::from_errno(errno, text("shm: ", name));
  struct stat about = {};
  if (fstat(memory.get(), &about) != 0) return Status::from_errno(errno, "shm: fstat");
  if (about.st_ino != what.inode) {
    return Status(Code::Unavailable, "shm: the peer has closed what it shared");
  }
  return Segment::map(memory, what.bytes);
}

}  // namespace

std::uint64_t exports_address() noexcept {
  return reinterpret_cast<std::uintptr_t>(table().lines.data());
}

Result<std::unique_ptr<Shared>> share(std::size_t bytes) {
  UniqueFd descriptor;
  auto made = Segment::make(bytes, descriptor);
  if (!made) return made.status();
  struct stat about = {};
  if (fstat(descriptor.get(), &about) != 0) return Status::from_errno(errno, "shm: fstat");
  Table& all = table();
  const std::lock_guard lock(all.mutex);
  const auto free = std::ranges::find(all.lines, 0u, &Export::number);
  if (free == all.lines.end()) {
    return Status(Code::System, text("shm: ", kExports, " blocks are shared already"));
  }
  Field(free->address)
      .store(reinterpret_cast<std::uintptr_t>(made.value().data()), std::memory_order_relaxed);
  Field(free->bytes).store(bytes, std::memory_order_relaxed);
  free->inode = about.st_ino;
  free->descriptor = descriptor.get();
  auto block = std::make_unique<Block>(std::move(made).value(), std::move(descriptor), *free);
  set_number(*free, ++all.last_number);
  note_extent(all);
  return std::unique_ptr<Shared>(std::move(block));
}

bool shares(const std::byte* data, std::uint64_t bytes) noexcept {
  Table& all = table();
  const std::uint64_t address = reinterpret_cast<std::uintptr_t>(data);
  if (address < all.low.load(std::memory_order_relaxed)) return false;
  if (address >= all.high.load(std::memory_order_relaxed)) return false;
  const std::size_t used = all.used.load(std::memory_order_relaxed);
  for (std::size_t k = 0; k < used; ++k) {
    Export line;
    line.number = Field(all.lines[k].number).load(std::memory_order_acquire);
    line.address = Field(all.lines[k].address).load(std::memory_order_relaxed);
    line.bytes = Field(all.lines[k].bytes).load(std::memory_order_relaxed);
    if (covers(line, address, bytes)) return true;
  }
  return false;
}

bool Views::read(std::size_t line, std::size_t count, Export* lines) const noexcept {
  return read_peer(peer_, lines, table_ + line * sizeof *lines, count * sizeof *lines).ok();
}

const Views::Known* Views::known(std::uint64_t address, std::uint64_t bytes) {
  const auto found = std::ranges::find_if(
      known_, [&](const Known& each) { return covers(each.what, address, bytes); });
  if (found == known_.end()) return nullptr;
  Export now;
  if (read(found->line, 1, &now) && now == found->what) return &*found;
  known_.erase(found);
  return nullptr;
}

void Views::keep_what_is_in(const Export* lines) {
  std::erase_if(known_, [&](const Known& each) { return each.what != lines[each.line]; });
}

void Views::tidy() noexcept {
  if (known_.empty()) return;
  std::array<Export, kExports> lines;
  if (read(0, lines.size(), lines.data())) keep_what_is_in(lines.data());
}

ViewPtr Views::find(std::uint64_t address, std::uint64_t bytes) noexcept try {
  if (table_ == 0) return nullptr;
  if (const Known* found = known(address, bytes)) return found->view;
  std::array<Export, kExports> lines;
  if (!read(0, lines.size(), lines.data())) return nullptr;
  keep_what_is_in(lines.data());
  const auto line =
      std::ranges::find_if(lines, [&](const Export& each) { return covers(each, address, bytes); });
  if (line == lines.end()) return nullptr;
  Known made{static_cast<std::size_t>(line - lines.begin()), *line, nullptr};
  auto mapped = map(peer_, *line);
  if (mapped) {
    made.view = std::make_shared<Mapping>(std::move(mapped).value(), *line);
  } else {
    HCCOMM_LOG(Info, "shm: memory of process ", peer_,
               " is read by copies: ", mapped.status().text());
  }
  known_.push_back(made);
  return made.view;
} catch (...) {  // no memory: the bytes come as they would without
  return nullptr;
}

}  // namespace hccomm::transport::shm
