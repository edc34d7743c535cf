// SPDX-License-Identifier: Apache-2.0
//
// torch's key-value store as the place where the ranks of a communicator meet.
#pragma once

#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "capi/hccomm.h"

namespace hccomm::glue {

// Gives the core callbacks over a c10d store. Each generation of a group that meets on the same
// store gets keys of its own, so that a group destroyed and made again finds no old addresses.
//
// Owns:   a reference to the store.
// Thread: any, as far as the store allows it.
// Fails:  the callbacks answer -1 for a key that did not come in time and -2 for a broken store.
class StoreAdapter {
 public:
  // Counts one generation of `rank` in the store.
  StoreAdapter(const c10::intrusive_ptr<c10d::Store>& store, int rank);
  StoreAdapter(const StoreAdapter&) = delete;
  StoreAdapter& operator=(const StoreAdapter&) = delete;

  const hccomm_store* callbacks() const { return &callbacks_; }

 private:
  c10::intrusive_ptr<c10d::Store> store_;
  hccomm_store callbacks_{};
};

}  // namespace hccomm::glue
