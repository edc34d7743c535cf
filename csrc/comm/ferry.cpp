// SPDX-License-Identifier: Apache-2.0
#include "comm/ferry.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/config.hpp"
#include "base/log.hpp"
#include "engine/proof.hpp"

namespace hccomm::comm {

// A wait that ended early has left a copy behind.
Ferry::~Ferry() {
  if (event_.native != nullptr && !drain(runtime_, event_, stream_)) {
    HCCOMM_LOG(Warn, "islands: a copy does not end; its memory stays pinned");
    return;
  }
  if (event_.native != nullptr) runtime_.event_destroy(event_);
  if (block_ != nullptr) runtime_.host_free(index_, block_);
  if (stream_.native != nullptr) runtime_.stream_destroy(stream_);
}

bool Ferry::drain(device::Runtime& runtime, device::Event event, device::Stream stream) {
  if (!runtime.event_record(event, stream).ok()) return true;
  const Deadline deadline = Deadline::after(Seconds(2));
  while (!deadline.passed()) {
    auto come = runtime.event_query(event);
    if (!come.ok() || come.value()) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return false;
}

Status Ferry::open() {
  if (block_ != nullptr) return {};
  try {
    stream_ = runtime_.stream_create(index_).take();
    event_ = runtime_.event_create(index_).take();
    block_ = static_cast<std::byte*>(runtime_.host_allocate(index_, kBlock).take());
  } catch (const Error& failure) {
    return failure.status();
  }
  return {};
}

Status Ferry::wait(Watch& watch) {
  Status status = runtime_.event_record(event_, stream_);
  if (status.ok()) status = watch.await(runtime_, event_, nullptr);
  if (!status.ok()) (void)drain(runtime_, event_, stream_);  // the arrays are the caller's then
  return status;
}

bool Ferry::checks() { return config::raw("HCCOMM_INTEGRITY") != "off"; }

// Reads a piece again: it must be what the host has.
Status Ferry::prove(bool to_host, const std::byte* host, device::Place there, std::uint64_t at,
                    std::uint64_t bytes, Watch& watch) {
  Status status = runtime_.copy_out(stream_, block_, {there.handle, there.offset + at}, bytes);
  if (status.ok()) status = wait(watch);
  if (!status.ok()) return status;
  return engine::proved({name_, to_host, at}, host + at, block_, bytes);
}

Status Ferry::out(std::byte* host, device::Place from, std::uint64_t bytes, Watch& watch) {
  Status status = open();
  for (std::uint64_t at = 0; at < bytes && status.ok(); at += kBlock) {
    const std::uint64_t piece = std::min(kBlock, bytes - at);
    status = runtime_.copy_out(stream_, block_, {from.handle, from.offset + at}, piece);
    if (status.ok()) status = wait(watch);
    if (status.ok()) std::memcpy(host + at, block_, piece);
    if (status.ok() && checks()) status = prove(true, host, from, at, piece, watch);
  }
  return status;
}

Status Ferry::in(device::Place to, const std::byte* host, std::uint64_t bytes, Watch& watch) {
  Status status = open();
  for (std::uint64_t at = 0; at < bytes && status.ok(); at += kBlock) {
    const std::uint64_t piece = std::min(kBlock, bytes - at);
    std::memcpy(block_, host + at, piece);
    status = runtime_.copy_in(stream_, {to.handle, to.offset + at}, block_, piece);
    if (status.ok()) status = wait(watch);
    if (status.ok() && checks()) status = prove(false, host, to, at, piece, watch);
  }
  return status;
}

}  // namespace hccomm::comm
