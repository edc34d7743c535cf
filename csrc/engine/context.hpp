// SPDX-License-Identifier: Apache-2.0
//
// A group as the engine sees it: who its ranks are (channels), which operations are in flight, and
// what has arrived ahead of them. comm/ makes one per communicator.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/error.hpp"
#include "engine/blocks.hpp"
#include "engine/line.hpp"
#include "engine/operation.hpp"
#include "engine/recorder.hpp"
#include "wire/frame.hpp"

namespace hccomm::engine {

class Channel;

// A frame kept until somebody wants it.
struct Kept {
  int source = -1;
  wire::Header header;
  Blocks::Block payload;
};

// Point-to-point messages that have come or are wanted, in order, per (source, tag).
struct TagKey {
  int source = 0;
  std::uint64_t tag = 0;
  friend bool operator==(const TagKey&, const TagKey&) = default;
};
struct TagHash {
  std::size_t operator()(const TagKey& key) const noexcept {
    return (key.tag * 0x9E3779B97F4A7C15ull) ^ (static_cast<std::size_t>(key.source) << 17);
  }
};
struct Arrived {
  Kept frame;
  std::uint64_t order = 0;
};
// What has come and what is wanted of one tag from one rank; source -1, any rank, only wants.
struct TagLines {
  Line<Operation*> wanted;
  Line<Arrived> arrived;

  bool empty() const { return wanted.empty() && arrived.empty(); }
};
struct Matching {
  static constexpr std::size_t kIdleTags = 256;  // lines that are kept though they are empty
  std::unordered_map<TagKey, TagLines, TagHash> lines;
  TagKey last_key;           // whose lines were looked up last,
  TagLines* last = nullptr;  // and they; nullptr: none
  std::size_t from_any = 0;  // receives that are wanted from any rank
  std::uint64_t next_order = 0;

  TagLines& lines_of(const TagKey& key) {
    if (last == nullptr || !(last_key == key)) {
      last = &lines[key];
      last_key = key;
    }
    return *last;
  }
  // Few lines are kept that are empty.
  void tidy(const TagKey& key) {
    if (lines.size() <= kIdleTags) return;
    const auto found = lines.find(key);
    if (found == lines.end() || !found->second.empty()) return;
    last = nullptr;
    lines.erase(found);
  }
  void tidy_all() {
    if (lines.size() <= kIdleTags) return;
    last = nullptr;
    std::erase_if(lines, [](const auto& each) { return each.second.empty(); });
  }
  // Large messages on their way, by (rank, number given by the sender).
  std::unordered_map<TagKey, Operation*, TagHash> sending, receiving;
  std::vector<std::uint32_t> next_index;  // by rank
  // Sends that wait for their data, or behind one that does; empty where no device is in use.
  std::unordered_map<TagKey, Line<Operation*>, TagHash> held;
};

// How far this rank has left another: that has taken our Bye, and all before it.
enum class Parting : std::uint8_t { Not, Said, Taken };

// Owns:   nothing of the operations in flight; it lists them.
// Thread: guarded by the engine's lock, but for `watched`.
// Fails:  a poisoned context fails every operation, present and future, with `poison`.
struct Context {
  std::uint64_t id = 0;
  std::string name;  // for messages
  int rank = 0, size = 1;
  std::vector<Channel*> channels;  // by rank; nullptr for ourselves
  std::vector<std::string> who;    // by rank: "rank 2 (alpha, pid 812)", for messages
  std::vector<std::uint8_t> gone;  // by rank: has said Bye, or (tolerant) was lost
  bool someone_left = false;       // any of them
  std::vector<Parting> parting;    // by rank
  bool tolerant = false;           // goes on without the ranks it loses (gone); messages only
  Status poison;
  std::vector<std::uint8_t> told;  // by rank: has been sent the poison
  // Calls that await all ranks where no operation shows it: a vendor's library is at work.
  int watched = 0;  // through std::atomic_ref

  Job last;  // the last collective that was run, if it was simple
  std::uint64_t next_sequence = 0;
  // Collectives in flight: slot sequence % window.size().
  std::vector<Operation*> window = std::vector<Operation*>(16, nullptr);
  // Frames of collectives that we have not started yet.
  std::map<std::uint64_t, std::vector<Kept>> early;
  std::vector<std::map<std::uint64_t, std::vector<Kept>>::node_type> early_spare;  // to use again
  // What the last collectives were, to answer a Probe that comes late.
  std::array<std::uint64_t, 64> history{};
  // Fingerprints of rooted calls that all ranks are known to have called alike: slot by hash. The
  // same on all ranks as long as they call the same.
  std::array<std::uint64_t, 256> met{};
  Matching matching;
  Recorder recorder;

  Operation* find(std::uint64_t sequence) const {
    Operation* found = window[sequence & (window.size() - 1)];
    return found != nullptr && found->sequence == sequence ? found : nullptr;
  }
};

// The last contexts that were removed.
class LastClosed {
 public:
  void add(std::uint64_t id) { ids_[next_++ % ids_.size()] = id; }
  bool has(std::uint64_t id) const { return std::ranges::find(ids_, id) != ids_.end(); }

 private:
  std::array<std::uint64_t, 256> ids_{};
  std::size_t next_ = 0;
};

}  // namespace hccomm::engine
