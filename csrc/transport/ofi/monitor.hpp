// SPDX-License-Identifier: Apache-2.0
//
// Tells whether memory is still what it was when it was registered with a card: a card goes on
// using the old pages after the program has freed them and got new ones at the same place. The
// kernel reports every unmapping of what is watched (userfaultfd), and holds up the thread that
// unmaps until the report has been read: so no function of the program has to be hooked.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "base/unique_fd.hpp"

namespace hccomm::transport::ofi {

// Owns:   a descriptor and a thread, until the process ends.
// Thread: any.
// Fails:  watch() gives -1 for what the kernel does not watch (mappings of files), or when the
//         kernel does not let this process watch at all: why_not() says so.
class Monitor {
 public:
  static Monitor& instance();
  Monitor(const Monitor&) = delete;

  const std::string& why_not() const { return why_not_; }  // "": it works
  // Requires: whole pages.
  int watch(const std::byte* data, std::size_t bytes);
  // Whether all of it has stayed mapped since watch().
  bool whole(int watched);
  void forget(int watched);

 private:
  // Read by the thread without a lock: what it waits for may be held by who unmaps.
  struct Range {
    std::atomic<std::uintptr_t> begin{0}, end{0};  // end 0: free
    std::atomic<bool> broken{false};
  };
  Monitor();
  void run() noexcept;
  void broke(std::uintptr_t begin, std::uintptr_t end) noexcept;

  std::string why_not_;
  UniqueFd reports_;
  std::mutex mutex_;  // guards who takes which range
  std::array<Range, 1024> ranges_;
  std::atomic<std::uint64_t> begun_{0}, ended_{0};  // reads of reports
};

}  // namespace hccomm::transport::ofi
