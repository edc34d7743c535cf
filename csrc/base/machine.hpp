// SPDX-License-Identifier: Apache-2.0
//
// Which machine this is and how much of it we may use. The ids go into a process's Card, from which
// transports tell who can be reached how.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace hccomm {

// Equal in two processes when they can share memory and meet on an abstract Unix socket: boot id,
// network namespace and process-id namespace.
std::string machine_id();

// Equal in two processes of one host: HCCOMM_HOST where it is set, else host name and boot id.
std::string host_id();

// The processors this process may use: its affinity mask, cut by the CPU quota of its control group
// (version 1 or 2). At least 1.
int available_cores();

// Bytes of memory that a new allocation can have: what the system calls available, cut by what the
// limits of the control group (version 1 or 2) leave. 10^18 where nobody says.
std::uint64_t available_memory();

// Whether there is no such process on this machine, or only what is left of it until its parent
// asks for its exit status.
bool process_is_gone(pid_t pid);

}  // namespace hccomm
