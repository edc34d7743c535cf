// SPDX-License-Identifier: Apache-2.0
//
// Which ranks form an island: those whose vendor's own library can join them. Pure: every rank
// computes the same from what all have told.
#pragma once

#include <string>
#include <vector>

namespace hccomm::native {

// What one rank tells of itself.
struct Member {
  std::string kind;        // of device; "host": an island of its own
  std::string device;      // tells devices of a host apart: "cuda:3"
  std::string compatible;  // Library::compatible(); "": no library here
  std::string host;
  std::string fabric;  // equal and not empty: reachable by the library across hosts
  std::string label;   // "": automatic; "none": alone; else only with its equals
};

// Islands in the order of their first rank, each with its ranks in order. Every rank is in one.
std::vector<std::vector<int>> find_islands(const std::vector<Member>& members);

// What HCCOMM_ISLAND says to a rank, as a Member's label: "auto", "off", a label, or lists of ranks
// ("0-3;4,5": two islands, other ranks alone). Throws InvalidArgument for anything else, words that
// look like a switch ("on") included.
std::string label_of(const std::string& setting, int rank);

// The ranks of a list such as "0-2,5", in order. Throws InvalidArgument, which begins with `what`,
// for a text that is none, a rank outside 0..size-1 or one that is there twice.
std::vector<int> ranks_of(const std::string& what, const std::string& list, int size);

// Why `other` is in another island than `member`, in a sentence for describe().
std::string why_apart(const Member& member, const Member& other);

}  // namespace hccomm::native
