// SPDX-License-Identifier: Apache-2.0
//
// Identities of test processes: fixed uuids, one job, with or without a key.
#pragma once

#include <string>

#include "wire/handshake.hpp"

namespace hccomm::test {

inline const std::string kJob(16, 'j');
inline const std::string kKey(32, 'k');
inline const std::string kDialer(16, 'd');
inline const std::string kServer(16, 's');

inline wire::Terms dialer_terms(const std::string& key = {}) {
  return {kJob, key, kDialer, kServer, "test", "from the dialer"};
}
inline wire::Terms server_terms(const std::string& key = {}) {
  return {kJob, key, kServer, {}, "test", "from the server"};
}

}  // namespace hccomm::test
