// SPDX-License-Identifier: Apache-2.0
//
// What the engine's own files share: its lock, what becomes of memory that is refused, and of what
// a device had prepared.
#pragma once

#include <new>

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

// Runs what must not be left half done and cannot be undone. Where memory is refused in it nobody
// knows what is missing: every group fails, at the next look (lament()).
void Engine::surely(auto&& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    starved_ = true;
  }
}

// Gives back what was prepared, if anything, for an operation that has not taken it.
class Leftover {
 public:
  Leftover(Staging& staging, Result<Staged*>& staged) : staging_(staging), staged_(staged) {}
  ~Leftover() {
    if (staged_.ok() && staged_.value() != nullptr) staging_.recycle(*staged_.value());
  }
  Leftover(const Leftover&) = delete;
  Leftover& operator=(const Leftover&) = delete;

 private:
  Staging& staging_;
  Result<Staged*>& staged_;
};

}  // namespace hccomm::engine
