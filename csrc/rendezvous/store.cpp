// SPDX-License-Identifier: Apache-2.0
#include "rendezvous/store.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "rendezvous/file_store.hpp"
#include "rendezvous/tcp_store.hpp"

namespace hccomm::rendezvous {
namespace {

// Some stores take a timeout of 0 for "for ever", and a store may be a network away.
constexpr double kLookSeconds = 0.01;
constexpr std::size_t kFirstCapacity = 4096;

class CallbackStore final : public Store {
 public:
  explicit CallbackStore(const Callbacks& callbacks) : callbacks_(callbacks) {}

  Status set(const std::string& key, std::string value) override {
    if (Status status = check_bounds(key, value.size()); !status.ok()) return status;
    const int result = callbacks_.set(callbacks_.context, key.c_str(), value.data(), value.size());
    if (result == 0) return {};
    return {Code::System, text("store: set(\"", key, "\") of ", value.size(),
                               " bytes failed in the caller's store (", result,
                               "); see whether the process that serves it still runs")};
  }

  Result<std::string> get(const std::string& key, Deadline deadline) override {
    if (Status status = check_bounds(key, 0); !status.ok()) return status;
    std::string value(kFirstCapacity, '\0');
    // The value may grow between two calls; it cannot do so for ever.
    for (int attempt = 0; attempt < 8; ++attempt) {
      const double timeout = std::max(kLookSeconds, deadline.left().count());
      const std::int64_t bytes =
          callbacks_.get(callbacks_.context, key.c_str(), timeout, value.data(), value.size());
      if (bytes == -1)
        return Status(Code::Timeout, text("store: \"", key, "\" is not there in time"));
      if (bytes < 0) return failed(key, text("gave ", bytes));
      if (static_cast<std::uint64_t>(bytes) > kMaxValue) {
        return failed(key, text("announced ", bytes, " bytes"));
      }
      const bool whole = static_cast<std::size_t>(bytes) <= value.size();
      value.resize(static_cast<std::size_t>(bytes));
      if (whole) return value;
    }
    return failed(key, "announced another size each time");
  }

  void finish(Deadline) noexcept override {}

 private:
  static Status failed(const std::string& key, const std::string& how) {
    return {Code::System, text("store: get(\"", key, "\") failed in the caller's store, which ",
                               how, "; see whether the process that serves it still runs")};
  }

  const Callbacks callbacks_;
};

Status bad_url(const std::string& url, const std::string& why) {
  return {Code::InvalidArgument,
          text("rendezvous: \"", url.substr(0, 200), "\" ", why,
               "; write tcp://host:port (tcp://[address]:port for IPv6), where host is a name or "
               "address of the machine of rank 0, or file:///directory")};
}

Result<Endpoint> endpoint_of(const std::string& url, std::string_view rest) {
  const std::size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos) return bad_url(url, "has no port");
  std::string_view host = rest.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[]") != std::string_view::npos) {
    return bad_url(url, "has an IPv6 address without brackets");
  }
  if (host.empty()) return bad_url(url, "has no host");
  if (host.find_first_of("/@?# ") != std::string_view::npos)
    return bad_url(url, "has no host name");
  const std::string_view port = rest.substr(colon + 1);
  int number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number < 1 || number > 65535) {
    return bad_url(url, "has no port from 1 to 65535");
  }
  return Endpoint{std::string(host), number};
}

}  // namespace

Status check_bounds(const std::string& key, std::size_t value_bytes) {
  if (key.empty() || key.size() > kMaxKey || key.find('\0') != std::string::npos) {
    return {Code::InvalidArgument,
            text("store: a key of ", key.size(), " bytes; keys are text of 1 to ", kMaxKey,
                 " bytes, so use a shorter name")};
  }
  if (value_bytes > kMaxValue) {
    return {Code::InvalidArgument, text("store: a value of ", value_bytes, " bytes under \"", key,
                                        "\"; the limit is ", kMaxValue)};
  }
  return {};
}

std::unique_ptr<Store> callback_store(const Callbacks& callbacks) {
  if (callbacks.set == nullptr || callbacks.get == nullptr) {
    throw Error(Code::InvalidArgument, "store: a store needs both functions, set and get");
  }
  return std::make_unique<CallbackStore>(callbacks);
}

Result<std::unique_ptr<Store>> open_store(const std::string& url, int rank, Deadline deadline,
                                          const Credentials& with) {
  if (rank < 0) {
    return Status(Code::InvalidArgument, text("rendezvous: rank ", rank, " is negative"));
  }
  const std::string_view all = url;
  if (all.starts_with("tcp://")) {
    Result<Endpoint> endpoint = endpoint_of(url, all.substr(6));
    if (!endpoint) return endpoint.status();
    return open_tcp_store(endpoint.value(), rank, deadline, with);
  }
  if (all.starts_with("file:///") && all.find_last_not_of('/') > 7 &&
      all.find('\0') == std::string_view::npos) {
    return open_file_store(url.substr(7, url.find_last_not_of('/') - 6), rank, deadline);
  }
  if (all.starts_with("file:")) return bad_url(url, "names no directory by its full path");
  return bad_url(url, "is no place to meet at");
}

}  // namespace hccomm::rendezvous
