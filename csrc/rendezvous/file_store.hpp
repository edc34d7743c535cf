// SPDX-License-Identifier: Apache-2.0
//
// The store for ranks that share a file system: one file per key in a directory of the user's own.
// Rank 0 makes the directory (or takes an empty one, mode 0700) and marks it open; the others wait
// for the mark, whose absence or a dead owner on the same machine keeps them out of a directory
// that an earlier job left. Each job needs its own directory; rank 0 refuses one that is not empty.
// finish() leaves nothing behind: it removes every file, and the directory where rank 0 made it. A
// job that was killed leaves its files, to be removed by hand.
#pragma once

#include <memory>
#include <string>

#include "rendezvous/store.hpp"

namespace hccomm::rendezvous {

Result<std::unique_ptr<Store>> open_file_store(const std::string& path, int rank,
                                               Deadline deadline);

}  // namespace hccomm::rendezvous
