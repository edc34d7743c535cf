// SPDX-License-Identifier: Apache-2.0
//
// A Status made by code that may not throw: links and listeners say why they end even where memory
// for the words is refused.
#pragma once

#include <new>

#include "base/error.hpp"

namespace hccomm {

// What `make` returns; where memory is refused, `code` with words that need none.
template <typename Make>
Status worded(Code code, Make&& make) noexcept {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return {code, "no memory"};
  }
}

}  // namespace hccomm
