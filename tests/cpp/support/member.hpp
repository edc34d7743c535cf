// SPDX-License-Identifier: Apache-2.0
//
// One process as a transport sees it, for the transport suites: a transport, its card, and the
// links it was handed.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "base/machine.hpp"
#include "support/link_pair.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

namespace hccomm::transport {

inline Deadline soon() { return Deadline::after(test::kPatience); }

class Member final : public Acceptor {
 public:
  Member(const Builtin& builtin, const std::string& job, const std::string& key,
         const std::string& uuid = wire::random_bytes(16), bool encrypts = false)
      : name_(builtin.name) {
    card_.uuid = uuid;
    card_.host = host_id();
    card_.machine = machine_id();
    card_.pid = getpid();
    auto opened = builtin.open({job, key, uuid, encrypts}, *this);
    if (!opened.ok()) {
      why_not_ = opened.status().text();
      return;
    }
    transport_ = std::move(opened).value();
    card_.addresses = {{name_, transport_->address()}};
  }
  ~Member() {
    if (transport_) transport_->stop();
  }

  bool reserve(const std::string&) override {
    const std::lock_guard lock(mutex_);
    return welcoming_;
  }
  void accepted(Accepted peer) override {
    const std::lock_guard lock(mutex_);
    accepted_.push_back(std::move(peer));
    changed_.notify_all();
  }
  void abandoned(const std::string&) override {
    const std::lock_guard lock(mutex_);
    ++abandoned_;
  }

  void welcome(bool yes) {
    const std::lock_guard lock(mutex_);
    welcoming_ = yes;
  }
  Accepted take() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, test::kPatience, [&] { return !accepted_.empty(); });
    if (accepted_.empty()) return {};
    Accepted first = std::move(accepted_.front());
    accepted_.erase(accepted_.begin());
    return first;
  }
  std::size_t waiting() {
    const std::lock_guard lock(mutex_);
    return accepted_.size();
  }

  Transport& transport() { return *transport_; }
  const Card& card() const { return card_; }
  Card& card() { return card_; }
  const std::string& why_not() const { return why_not_; }

 private:
  const std::string name_;
  std::string why_not_;
  Card card_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Accepted> accepted_;
  bool welcoming_ = true;
  int abandoned_ = 0;
  std::unique_ptr<Transport> transport_;
};

}  // namespace hccomm::transport
