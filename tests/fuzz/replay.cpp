// SPDX-License-Identifier: Apache-2.0
//
// The main() of a fuzz target where there is no libFuzzer: gives it every file of the folders named
// on the command line, then fixed mutations of each (the same on every run). A finding is a crash
// or a sanitizer's report.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr int kMutations = 400;  // of each file

void feed(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

// One to four edits: flip a bit, set an interesting byte, cut, repeat a stretch, insert.
std::string mutate(std::string input, std::mt19937& random) {
  const auto below = [&random](std::size_t limit) {
    return random() % std::max<std::size_t>(limit, 1);
  };
  static constexpr unsigned char kBytes[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
  for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
    const std::size_t at = below(input.size());
    switch (below(5)) {
      case 0:
        if (!input.empty()) input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
        break;
      case 1:
        if (!input.empty()) input[at] = static_cast<char>(kBytes[below(sizeof kBytes)]);
        break;
      case 2: input.resize(at); break;
      case 3: input += input.substr(at, below(64)); break;
      default: input.insert(at, below(16), static_cast<char>(below(256)));
    }
  }
  return input;
}

std::vector<std::string> read_all(int folders, char** names) {
  std::vector<std::filesystem::path> paths;
  for (int each = 0; each < folders; ++each) {
    if (!std::filesystem::is_directory(names[each])) continue;
    for (const auto& entry : std::filesystem::directory_iterator(names[each])) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> inputs;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> inputs = read_all(argc - 1, argv + 1);
  const std::size_t files = inputs.size();
  inputs.emplace_back();  // nothing at all is an input too
  std::mt19937 random(20240229);
  for (const std::string& input : inputs) {
    feed(input);
    for (int each = 0; each < kMutations; ++each) feed(mutate(input, random));
  }
  std::printf("%zu files and %zu mutations passed\n", files, inputs.size() * kMutations);
  return 0;
}
