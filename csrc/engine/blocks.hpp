// SPDX-License-Identifier: Apache-2.0
//
// Memory for frames that came before somebody wanted them, used again and again: a steady stream
// of operations allocates nothing.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace hccomm::engine {

// Owns:   the spare blocks, at most kSpareBytes of them. Outlives every block it has handed out.
// Thread: guarded by the engine's lock, blocks too.
// Fails:  take() throws std::bad_alloc.
class Blocks {
 public:
  struct Return {
    Blocks* home = nullptr;
    std::uint8_t grade = 0;
    Return() noexcept {}
    Return(Blocks* of, std::uint8_t size) noexcept : home(of), grade(size) {}
    void operator()(std::byte* block) const noexcept { home->give_back(block, grade); }
  };
  using Block = std::unique_ptr<std::byte[], Return>;

  Blocks() = default;
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;
  ~Blocks() {
    in_hand_.reset();
    for (const auto& spare : spare_) {
      for (std::byte* block : spare) delete[] block;
    }
  }

  // A block that holds `bytes`; none for 0.
  Block take(std::size_t bytes) {
    if (bytes == 0) return {};
    const auto grade = static_cast<std::uint8_t>(std::bit_width((bytes - 1) >> kSmallestLog2));
    if (grade >= kGrades || spare_[grade].empty()) {
      return {new std::byte[grade < kGrades ? bytes_of(grade) : bytes], {this, grade}};
    }
    Block block(spare_[grade].back(), {this, grade});
    spare_[grade].pop_back();
    spare_bytes_ -= bytes_of(grade);
    return block;
  }
  Block copy(const std::byte* data, std::size_t bytes) {
    if (bytes != 0 && data == in_hand_.get()) return std::move(in_hand_);
    Block block = take(bytes);
    if (bytes != 0) std::memcpy(block.get(), data, bytes);
    return block;
  }
  // Calls `use` with a block that has been filled: a copy() of it there hands on the block itself.
  void with(Block block, auto&& use) {
    in_hand_ = std::move(block);
    use(in_hand_.get());
    in_hand_.reset();
  }

 private:
  static constexpr int kSmallestLog2 = 6;     // 64 bytes
  static constexpr std::size_t kGrades = 16;  // the largest: 2 MiB
  static constexpr std::size_t kSpareBytes = std::size_t{8} << 20;

  static constexpr std::size_t bytes_of(std::size_t grade) {
    return std::size_t{1} << (grade + kSmallestLog2);
  }
  void give_back(std::byte* block, std::uint8_t grade) noexcept {
    if (grade >= kGrades || spare_bytes_ + bytes_of(grade) > kSpareBytes) {
      delete[] block;
      return;
    }
    try {
      spare_[grade].push_back(block);
      spare_bytes_ += bytes_of(grade);
    } catch (const std::bad_alloc&) {
      delete[] block;
    }
  }

  std::array<std::vector<std::byte*>, kGrades> spare_;
  std::size_t spare_bytes_ = 0;
  Block in_hand_;
};

}  // namespace hccomm::engine
