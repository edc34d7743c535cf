// SPDX-License-Identifier: Apache-2.0
//
// The engine's lock, as its own files take it.
#pragma once

#include "engine/engine.hpp"

namespace hccomm::engine {

// Takes the mutex so that a spinning driver notices.
class Engine::Guard {
 public:
  explicit Guard(Engine& engine) : engine_(engine) { lock(); }
  ~Guard() {
    if (held_) unlock();
  }
  void lock() {
    if (!engine_.mutex_.try_lock()) {
      engine_.contenders_.fetch_add(1, std::memory_order_relaxed);
      engine_.mutex_.lock();
      engine_.contenders_.fetch_sub(1, std::memory_order_relaxed);
    }
    held_ = true;
  }
  void unlock() {
    held_ = false;
    engine_.mutex_.unlock();
  }
  void adopt() { held_ = true; }  // the mutex was taken by other means

 private:
  Engine& engine_;
  bool held_ = false;
};

}  // namespace hccomm::engine
