// SPDX-License-Identifier: Apache-2.0
//
// Stores for tests: each kind of place where ranks can meet, opened anew for every test, and the
// port or folder that it needs.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "rendezvous/store.hpp"
#include "rendezvous/tcp_server.hpp"
#include "rendezvous/tcp_store.hpp"

namespace hccomm::test {

// Far enough that only a hang gets there.
inline Deadline soon() { return Deadline::after(Seconds(60)); }

// A port of 127.0.0.1 that no one else is given: bound, so that only who sets SO_REUSEADDR gets it.
struct Port {
  Port() : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in self{};
    self.sin_family = AF_INET;
    self.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof self;
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&self), bytes) != 0 ||
        getsockname(fd.get(), reinterpret_cast<sockaddr*>(&self), &bytes) != 0) {
      throw Error(Code::System, "no port for the test");
    }
    number = ntohs(self.sin_port);
  }
  UniqueFd fd;
  int number = 0;
};

// A stranger's connection to 127.0.0.1.
inline UniqueFd dial(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{30, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    throw Error(Code::System, "the test cannot connect");
  }
  return fd;
}

// A fresh directory, mode 0700.
struct Folder {
  Folder() {
    std::string made = (std::filesystem::temp_directory_path() / "hccomm-test-XXXXXX").string();
    if (mkdtemp(made.data()) == nullptr) throw Error(Code::System, "no folder for the test");
    path = made;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  std::string path;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Where the ranks of one test meet. open() may be called from any thread.
class Place {
 public:
  virtual ~Place() = default;
  virtual std::unique_ptr<rendezvous::Store> open(int rank) = 0;
};

// A caller's store: a map behind two functions.
class MapPlace final : public Place {
 public:
  std::unique_ptr<rendezvous::Store> open(int) override {
    return rendezvous::callback_store({this, set, get});
  }

 private:
  static int set(void* self, const char* key, const void* value, std::size_t bytes) {
    auto& place = *static_cast<MapPlace*>(self);
    const std::lock_guard lock(place.mutex_);
    place.values_[key].assign(static_cast<const char*>(value), bytes);
    place.changed_.notify_all();
    return 0;
  }
  static std::int64_t get(void* self, const char* key, double timeout, void* value,
                          std::size_t capacity) {
    auto& place = *static_cast<MapPlace*>(self);
    std::unique_lock lock(place.mutex_);
    const auto until = std::chrono::system_clock::now() +
                       std::chrono::microseconds(static_cast<std::int64_t>(timeout * 1e6));
    const auto there = [&] { return place.values_.count(key) != 0; };
    if (!place.changed_.wait_until(lock, until, there)) return -1;
    const std::string& found = place.values_[key];
    std::memcpy(value, found.data(), std::min(capacity, found.size()));
    return static_cast<std::int64_t>(found.size());
  }

  std::mutex mutex_;  // guards values_
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

class UrlPlace final : public Place {
 public:
  explicit UrlPlace(bool tcp) : tcp_(tcp) {}
  std::unique_ptr<rendezvous::Store> open(int rank) override {
    const std::string url =
        tcp_ ? text("tcp://127.0.0.1:", port_.number) : "file://" + folder_.path + "/job";
    return rendezvous::open_store(url, rank, soon()).take();
  }

 private:
  const bool tcp_;
  Port port_;
  Folder folder_;
};

struct Make {
  const char* name;
  std::unique_ptr<Place> (*make)();
};

inline std::vector<Make> all_places() {
  return {
      {"callback", []() -> std::unique_ptr<Place> { return std::make_unique<MapPlace>(); }},
      {"tcp", []() -> std::unique_ptr<Place> { return std::make_unique<UrlPlace>(true); }},
      {"file", []() -> std::unique_ptr<Place> { return std::make_unique<UrlPlace>(false); }},
  };
}

// Connects, sends `bytes`, and returns whether the server closed.
inline bool is_dropped_after(const rendezvous::Endpoint& at, const std::string& bytes) {
  const UniqueFd fd = dial(at.port);
  EXPECT_EQ(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
  char answer[64];
  for (;;) {  // SO_RCVTIMEO bounds it
    const ssize_t got = recv(fd.get(), answer, sizeof answer, 0);
    if (got > 0) continue;
    return got == 0 || errno == ECONNRESET;
  }
}

inline std::string bytes_of(const rendezvous::Request& request) {
  return {reinterpret_cast<const char*>(&request), sizeof request};
}

}  // namespace hccomm::test
