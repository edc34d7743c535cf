// SPDX-License-Identifier: Apache-2.0
//
// CRC-32C (Castagnoli), the check of HCCOMM_INTEGRITY: by the processor's own instruction where it
// has one, by its multiplication of polynomials where that is wide, else by tables. Sealed links
// ask for it; nobody pays for it otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hccomm {

// Continues `crc` (0 to begin) over more bytes. Thread: any.
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) noexcept;

// How it is computed here: "vpclmulqdq", "sse4.2", "armv8" or "tables".
const char* crc32c_kind() noexcept;

namespace detail {
// The way by tables, which every processor has; for tests.
std::uint32_t crc32c_by_tables(std::uint32_t crc, const void* data, std::size_t bytes) noexcept;
}  // namespace detail

}  // namespace hccomm
