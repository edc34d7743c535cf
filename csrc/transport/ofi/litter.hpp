// SPDX-License-Identifier: Apache-2.0
//
// The files in /dev/shm by which libfabric's shm provider shares memory: a process that is killed
// leaves its own behind, 16 MiB each. Ours carry a mark and are locked while their owner lives, so
// whoever comes later can tell which are litter, also across containers that share /dev/shm.
#pragma once

#include <string>

#include "base/unique_fd.hpp"

namespace hccomm::transport::ofi {

// Marks the file of an endpoint named "fi_shm://NAME"; it is taken for alive until the descriptor
// is closed, or the process ends. Invalid where there is no such file.
UniqueFd keep_shared_memory(const std::string& endpoint);

// Removes marked files of this user whose owners have gone. How many.
int sweep_shared_memory() noexcept;

}  // namespace hccomm::transport::ofi
