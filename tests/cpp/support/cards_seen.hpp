// SPDX-License-Identifier: Apache-2.0
//
// What the fake cards (tests/fakes/cards.h) tell a test.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "../fakes/cards.h"
#include "support/fakes.hpp"

namespace hccomm::test {

// Makes the fake cards this process's libfabric. The file that they share with the test is removed
// as the process ends.
inline const cards& seen() {
  static const cards* const mapped = [] {
    const std::string path =
        std::filesystem::temp_directory_path() / ("cards." + std::to_string(getpid()));
    setenv("FAKE_CARDS_FILE", path.c_str(), 1);
    setenv("HCCOMM_OFI_LIB", HCCOMM_FAKES "/fabric/libcards.so", 1);
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof(cards)) != 0) std::abort();
    void* const at = mmap(nullptr, sizeof(cards), PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) std::abort();
    close(file);
    std::atexit([] { unlink(std::getenv("FAKE_CARDS_FILE")); });
    return static_cast<const cards*>(at);
  }();
  return *mapped;
}

}  // namespace hccomm::test
