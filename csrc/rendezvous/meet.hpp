// SPDX-License-Identifier: Apache-2.0
//
// How the ranks of a communicator find each other: each leaves its card in a store, rank 0 binds
// all cards into one book, each reads the book. A rank does a fixed number of store operations,
// rank 0 about one per rank. All ranks succeed, or each learns what is wrong and with whom.
//
// comm/ calls agree_job() (whose result the process's transports need before they can listen), then
// exchange_cards(), with the same name and deadline, and finishes the store when it needs no more
// rendezvous on it. Keys, each under "<name>/": job, here/<rank>, card/<rank>, book; comm/ adds
// door (key_door.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "rendezvous/store.hpp"
#include "transport/transport.hpp"

namespace hccomm::rendezvous {

// How to reach everybody. The same on all ranks.
struct Book {
  std::string job;                     // 16 bytes
  std::uint64_t session = 0;           // random, not 0: another one each time that ranks meet
  std::vector<transport::Card> cards;  // by rank
};

// The job of rank 0: `my_job` there, or a new random one where that is empty. On other ranks it is
// for the caller to compare with the job it may have already.
//
// Throws InvalidArgument for a rank, size or name that cannot be.
// Fails: Mismatch names a rank that was started with another size or speaks another wire version
//        (all ranks learn of it, here or in exchange_cards()), or says that the name was used on
//        this store before. Timeout names rank 0 and who else was seen.
Result<std::string> agree_job(Store& store, const std::string& name, int rank, int size,
                              const std::string& my_job, Deadline deadline);

// Requires: agree_job() has succeeded with the same store, name, rank and size.
//
// Fails: PeerLost names a rank that died after it had opened the store, where the store can see it;
//        Timeout names the ranks that did not arrive; Mismatch also names a rank that two processes
//        claim, with both. Ranks other than 0 wait up to a second past the deadline, so that all of
//        them hear the reason from rank 0. What a rank says in refuse() fails all ranks.
Result<Book> exchange_cards(Store& store, const std::string& name, int rank, int size,
                            const transport::Card& card, Deadline deadline);

// For a rank that cannot join, before agree_job() or after it: the others get `failure`'s code and
// text, naming this rank, from the step that they are in or come to. Nothing else may be called
// with this name afterwards. Rank 0 waits up to two seconds for those who have still to come.
//
// Fails: when the store does.
Status refuse(Store& store, const std::string& name, int rank, int size, const Status& failure,
              Deadline deadline);

// The host of each rank, numbered from 0 in order of first rank.
std::vector<int> hosts_of(const Book& book);

}  // namespace hccomm::rendezvous
