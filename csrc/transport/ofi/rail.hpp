// SPDX-License-Identifier: Apache-2.0
//
// One network card opened through libfabric, and memory as all cards of a fabric know it. A fabric
// has one rail or several; the first carries what is small, all of them what is large.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "transport/ofi/provider.hpp"

struct fid_av;
struct fid_cq;
struct fid_domain;
struct fid_ep;
struct fid_fabric;
struct fid_mr;

namespace hccomm::transport::ofi {

// Owns:   what libfabric gave out for this card.
// Thread: guarded by the fabric's mutex.
// Fails:  open() gives Unavailable with what was asked and the library's text.
struct Op;

struct Rail {
  explicit Rail(Choice chosen) : choice(std::move(chosen)) {}
  Rail(const Rail&) = delete;
  ~Rail() { close(); }

  Status open();
  void close_endpoint() noexcept;
  void close() noexcept;
  void abandon() noexcept;  // libfabric may be gone
  // Removes what killed processes have left, where the provider leaves anything.
  void sweep() const noexcept;
  Status check(int err, const char* what) const;
  bool has(int mr_bit) const;  // FI_MR_*
  // With the immediate of `op`, or without where that is `untold`.
  ssize_t write(Op& op, const void* data, std::size_t bytes, void* descriptor, std::uint64_t to,
                std::uint64_t at, std::uint64_t key) const;

  Choice choice;
  fid_fabric* fabric = nullptr;
  fid_domain* domain = nullptr;
  fid_ep* endpoint = nullptr;
  fid_av* addresses = nullptr;
  fid_cq* queue = nullptr;
  std::size_t inject_bytes = 0;  // of a write that may be injected
  // The 32 bits of what may be cut off by its sender's death go in an empty write of their own.
  bool tells_apart = false;
  bool reaches_devices = false;  // opened with FI_HMEM; registrations may still be refused
  std::uint64_t self = 0;        // fi_addr_t of this endpoint, where it reaches devices

 private:
  Status open_as_is();
  Status open_endpoint();
  Status know_itself();
  bool shares_files() const;
  void keep_files();

  UniqueFd kept_;  // the endpoint's file, while it is there
};

using Rails = std::vector<std::unique_ptr<Rail>>;

// Memory that all rails know, of the host or of a device. Value type: strike() ends it.
struct Registration {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool pinned = false;  // by a test
  std::array<fid_mr*, kMaxRails> memory{};
  std::array<void*, kMaxRails> descriptor{};    // for operations of this process
  std::array<std::uint64_t, kMaxRails> key{};   // for those of a peer
  std::array<std::uint64_t, kMaxRails> base{};  // how a peer names data[0]

  std::uint64_t address(unsigned rail, const std::byte* at) const {
    return base[rail] + static_cast<std::uint64_t>(at - data);
  }
};

enum class Access : std::uint8_t { Read, Write };  // what cards do with it; Write includes Read

// Fails: System with the library's text, and what to raise where locked memory has run out.
Result<Registration> enroll(const Rails& rails, std::byte* data, std::size_t bytes, Access access);
// To be read and written by the cards (device.cpp). `how` says by what the device told of it.
Result<Registration> enroll(const Rails& rails, const DeviceMemory& memory, std::string& how);
void strike(Registration& registration) noexcept;
// The parts of both: the key to ask for, and what follows the registration on one rail; an errno.
std::uint64_t wanted_key(const Rail& rail);
int enable(const Rail& rail, unsigned index, Registration& out);

}  // namespace hccomm::transport::ofi
