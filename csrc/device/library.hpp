// SPDX-License-Identifier: Apache-2.0
//
// Finding a vendor's library in this process. Adapters call it when their kind is first used.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/dynlib.hpp"

namespace hccomm::device {

// Why the library at that path (links resolved) is not the one wanted, or "".
using Refusal = std::function<std::string(const std::string& path)>;

// In this order: the path in HCCOMM_<KIND>_LIB, which nothing may refuse; what is loaded in this
// process under one of the names, so that its context is shared; the names, through the loader.
// The reason says what was tried.
Result<DynamicLibrary> find_library(const std::string& kind, const std::vector<std::string>& names,
                                    const Refusal& refuses = nullptr);

// "HCCOMM_CUDA_LIB" for "cuda".
std::string library_setting(const std::string& kind);

// Whether this process has loaded a library of one of the names, in whatever version.
bool is_loaded(const std::vector<std::string>& names);

// Resolves links; the path itself where that fails.
std::string real_path(const std::string& path);

}  // namespace hccomm::device
