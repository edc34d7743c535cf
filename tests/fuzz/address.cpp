// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the addresses that other processes write into their cards: what is read of them, printed,
// must be read the same again, and no scope of theirs may name more links than there are.
#include <string>

#include "base/error.hpp"
#include "transport/tcp/dial.hpp"

using namespace hccomm;
using namespace hccomm::transport;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto places = tcp::parse(text);
  const std::string printed = tcp::print(places);
  HCCOMM_CHECK(tcp::print(tcp::parse(printed)) == printed, "an address is stable");
  const std::vector<tcp::Interface> links = {{"eth0", *tcp::Ip::parse("fe80::1")},
                                             {"lo", *tcp::Ip::parse("127.0.0.1")}};
  HCCOMM_CHECK(tcp::with_our_scopes(places, links).size() <= 2 * places.size(),
               "a place becomes at most one on each link");
  return 0;
}
