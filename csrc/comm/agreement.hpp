// SPDX-License-Identifier: Apache-2.0
//
// Agreement among survivors: which ranks are lost. Communicator::shrink() asks it.
//
// In rounds: each rank sends the set it holds for lost to all others outside it, and waits for
// theirs or their loss. A round in which nobody was lost and all sets were alike decides: the set
// is sent on as decided, and who receives a decision adopts it and sends it on, too. Links keep
// their order and a rank that decided has told everybody before its next word, so nobody can
// complete a round against it: two survivors never decide differently, whoever dies between two
// sends (tests/faults/model.py walks all interleavings of small cases, and random ones of larger).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "engine/engine.hpp"

namespace hccomm::comm {

// The lost ranks, ascending, the same on every survivor; `lost` is what this rank knows already.
// `id` names the agreement on all ranks. Throws Error: Timeout naming who did not take part,
// PeerLost where the others hold this very rank for lost. Thread: any; blocks until the deadline.
std::vector<int> agree_on_the_dead(engine::Engine& engine,
                                   const std::vector<transport::Card>& cards,
                                   const std::vector<std::string>& who, int rank, std::uint64_t id,
                                   const std::vector<int>& lost, Deadline deadline);

}  // namespace hccomm::comm
