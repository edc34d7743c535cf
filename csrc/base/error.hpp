// SPDX-License-Identifier: Apache-2.0
//
// How the core says that something went wrong. A wrong call throws Error before a byte moves; a
// failure of the world travels as a Status; a broken promise of our own stops the process
// (HCCOMM_CHECK). Everyone includes this; it knows nothing of communication.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <system_error>
#include <utility>
#include <variant>

#include "base/text.hpp"

namespace hccomm {

// By the caller's remedy. The numbers are the C ABI's (capi/hccomm.h).
enum class Code : std::int32_t {
  Ok = 0,
  InvalidArgument = 1,  // mend the call
  Mismatch = 2,         // ranks called different things: mend the program
  Unavailable = 3,      // this build or machine cannot: choose another way
  PeerLost = 4,         // a rank died or is unreachable: shrink() or restart
  Timeout = 5,          // the deadline passed: look for the rank that is missing
  Aborted = 6,          // somebody called abort() or close()
  Integrity = 7,        // bytes arrived damaged
  System = 8,           // the operating system refused
  Internal = 9,         // a bug of ours
};

const char* name(Code code) noexcept;

// The outcome of an attempt, with a text for people. Cheap when ok: no allocation.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string text, int rank = -1)
      : code_(code), rank_(rank), text_(std::move(text)) {}
  // Code::System (or PeerLost for a connection that broke) with strerror(err) appended, and the
  // remedy where descriptors have run out.
  static Status from_errno(int err, std::string what);

  bool ok() const noexcept { return code_ == Code::Ok; }
  Code code() const noexcept { return code_; }
  int rank() const noexcept { return rank_; }  // the rank to blame, or -1
  const std::string& text() const noexcept { return text_; }
  friend bool operator==(const Status&, const Status&) = default;

 private:
  Code code_ = Code::Ok;
  std::int32_t rank_ = -1;
  std::string text_;
};

class Error : public std::exception {
 public:
  Error(Code code, std::string text, int rank = -1) : status_(code, std::move(text), rank) {}
  explicit Error(Status status) : status_(std::move(status)) {}
  const char* what() const noexcept override { return status_.text().c_str(); }
  const Status& status() const noexcept { return status_; }

 private:
  Status status_;
};

// A value or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : content_(std::move(status)) {}  // NOLINT(google-explicit-constructor)
  bool ok() const noexcept { return std::holds_alternative<T>(content_); }
  explicit operator bool() const noexcept { return ok(); }
  T& value() & { return std::get<T>(content_); }
  T&& value() && { return std::get<T>(std::move(content_)); }
  const Status& status() const { return std::get<Status>(content_); }
  // The value, or its Status thrown as Error.
  T take() && {
    if (!ok()) throw Error(std::get<Status>(std::move(content_)));
    return std::get<T>(std::move(content_));
  }

 private:
  std::variant<T, Status> content_;
};

// That std::thread could not start one: System, with the remedy.
Status no_thread(const std::system_error& refused);

[[noreturn]] void check_failed(const char* condition, const char* why, const char* file, int line);

}  // namespace hccomm

// A promise of our own; broken, it stops the process with the place and the reason.
#define HCCOMM_CHECK(condition, why)                               \
  do {                                                             \
    if (!(condition)) [[unlikely]]                                 \
      ::hccomm::check_failed(#condition, why, __FILE__, __LINE__); \
  } while (false)
