// SPDX-License-Identifier: Apache-2.0
//
// The queue of the engine: frames that wait for their link, messages that wait for their receiver.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace hccomm::engine {

// First in, first out; keeps its memory, so that a steady flow allocates nothing.
template <typename T>
class Line {
 public:
  void clear() {
    items_.clear();
    head_ = 0;
  }
  bool empty() const { return head_ == items_.size(); }
  std::size_t size() const { return items_.size() - head_; }
  T& front() { return items_[head_]; }
  void push_back(T item) {
    if (items_.size() == items_.capacity() && head_ > items_.size() / 2) drop_taken();
    items_.push_back(std::move(item));
  }
  void pop_front() {
    if (++head_ == items_.size()) {
      items_.clear();
      head_ = 0;
    }
  }
  template <typename Which>
  void erase_if(Which&& which) {
    drop_taken();
    std::erase_if(items_, which);
  }

 private:
  void drop_taken() {
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
    head_ = 0;
  }

  std::vector<T> items_;
  std::size_t head_ = 0;
};

}  // namespace hccomm::engine
