// SPDX-License-Identifier: Apache-2.0
//
// The store seam: a place where ranks that know nothing of each other leave values under keys and
// wait for those of others. Rendezvous (meet.hpp) is its only user and needs it only until every
// rank has the book of all ranks. A store has no authentication beyond its own: nothing secret is
// ever put into one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.hpp"
#include "base/error.hpp"

namespace hccomm::rendezvous {

inline constexpr std::size_t kMaxKey = 256;                      // bytes
inline constexpr std::size_t kMaxValue = std::size_t{64} << 20;  // bytes; a book of 300k ranks

// One rank's access to the store of its job.
//
// Owns:   its connection, and on rank 0 what it keeps for the other ranks.
// Thread: one at a time.
// Fails:  get() gives Code::Timeout when the key is not there by the deadline, InvalidArgument for
//         a key or value outside the bounds, PeerLost for a key that is not there when rank 0 has
//         left or (on rank 0, who tells the others) a rank has died with the store open, naming
//         it, where the store can see that; every other code means that the store itself failed.
class Store {
 public:
  virtual ~Store() = default;

  // Puts `value` under `key`, in place of what was there.
  virtual Status set(const std::string& key, std::string value) = 0;
  // Waits for the key. A deadline that has passed means: look once.
  virtual Result<std::string> get(const std::string& key, Deadline deadline) = 0;

  // This rank needs the store no more. Rank 0 waits until every other rank has said so, or the
  // deadline, then removes what the store kept. The destructor does it with a second's grace; a
  // program calls it where ranks may be slower than that. Nothing else may be called afterwards.
  virtual void finish(Deadline deadline) noexcept = 0;
};

// A store of the caller's, such as torch's; hccomm_store of the C ABI has this shape.
struct Callbacks {
  void* context = nullptr;
  int (*set)(void* context, const char* key, const void* value, std::size_t bytes) = nullptr;
  // Waits at most `timeout` seconds (always positive). Returns the size of the value and copies at
  // most `capacity` bytes of it; -1: not there in time; -2: the store failed.
  std::int64_t (*get)(void* context, const char* key, double timeout, void* value,
                      std::size_t capacity) = nullptr;
};

// Requires: the callbacks work until the Store is destroyed. Its finish() does nothing.
std::unique_ptr<Store> callback_store(const Callbacks& callbacks);

// What the connections of a store of ours prove, and how they are kept from others.
struct Credentials {
  std::string key;        // 32 bytes, or empty: they prove nothing
  bool encrypts = false;  // TLS; needs the key
};

// Opens "tcp://host:port", served by rank 0, or "file:///directory", made by rank 0; waits for
// rank 0 until the deadline. Anything else is InvalidArgument. A file needs no credentials: its
// folder's permissions are its own.
Result<std::unique_ptr<Store>> open_store(const std::string& url, int rank, Deadline deadline,
                                          const Credentials& with = {});

// Whether the bounds above hold; for implementations.
Status check_bounds(const std::string& key, std::size_t value_bytes);

}  // namespace hccomm::rendezvous
