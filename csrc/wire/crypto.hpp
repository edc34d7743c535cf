// SPDX-License-Identifier: Apache-2.0
//
// The little cryptography that the handshake needs: HMAC-SHA-256 and HKDF-SHA-256 by OpenSSL's
// libcrypto, found at run time (any 3.x or 1.1; no headers and no link), random bytes by the
// kernel, and a comparison that takes the same time whatever differs.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace hccomm::wire {

inline constexpr std::size_t kDigestBytes = 32;

// Ok, or Code::Unavailable with the reason why there is no libcrypto. Looked up once.
// Thread: any, as for all functions here.
Status crypto_available();

// Requires: crypto_available().
std::string hmac_sha256(std::string_view key, std::string_view message);
// RFC 5869, extract then expand; `bytes` <= 255 * 32. Requires: crypto_available().
std::string hkdf_sha256(std::string_view secret, std::string_view salt, std::string_view info,
                        std::size_t bytes);

// From getrandom(2). Throws Error(System) where the kernel has none.
std::string random_bytes(std::size_t bytes);

bool same_secret(std::string_view left, std::string_view right) noexcept;

}  // namespace hccomm::wire
