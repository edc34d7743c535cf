// SPDX-License-Identifier: Apache-2.0
//
// Copies between host memory and a device, waited for: what a call over islands needs where an
// array does not lie on the device that the rank has told.
#pragma once

#include "comm/watch.hpp"

namespace hccomm::comm {

// Owns:   a stream, an event and a pinned block of its device.
// Thread: one.
// Fails:  as the runtime; with what ends the call.
class Ferry {
 public:
  explicit Ferry(const engine::Where& where)
      : runtime_(*where.runtime), index_(where.index), name_(text(where.name, ":", where.index)) {}
  ~Ferry();
  Ferry(const Ferry&) = delete;
  Ferry& operator=(const Ferry&) = delete;

  Status out(std::byte* host, device::Place from, std::uint64_t bytes, Watch& watch);
  Status in(device::Place to, const std::byte* host, std::uint64_t bytes, Watch& watch);

  // Waits for what is in the stream, a while: false where that does not end, and goes on using its
  // memory. True where the device is lost. The event is the caller's.
  static bool drain(device::Runtime& runtime, device::Event event, device::Stream stream);
  // Whether HCCOMM_INTEGRITY wants copies to be read again.
  static bool checks();

 private:
  static constexpr std::uint64_t kBlock = 1 << 20;
  Status open();
  Status wait(Watch& watch);
  Status prove(bool to_host, const std::byte* host, device::Place there, std::uint64_t at,
               std::uint64_t bytes, Watch& watch);

  device::Runtime& runtime_;
  const int index_;
  const std::string name_;
  device::Stream stream_;
  device::Event event_;
  std::byte* block_ = nullptr;
};

}  // namespace hccomm::comm
