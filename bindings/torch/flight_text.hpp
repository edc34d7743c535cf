// SPDX-License-Identifier: Apache-2.0
//
// Two ways to write the same tree of values: as JSON, and as a pickle that Python loads. The pickle
// is of protocol 0, which is text; it is written without Python, whose lock may be held by the very
// thread that is stuck.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace hccomm::glue {

// Values are put one after the other; in a dictionary each follows its key().
class JsonText {
 public:
  void open(bool dictionary) { begin(dictionary ? '{' : '['); }
  void close(bool dictionary) {
    out_ += dictionary ? '}' : ']';
    first_ = false;
  }
  void key(const char* name) {
    put(std::string(name));
    out_ += ':';
    first_ = true;
  }
  void put(const std::string& value) {
    separate();
    out_ += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') out_ += '\\';
      out_ += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    out_ += '"';
  }
  void put(int64_t value) { bare(std::to_string(value)); }
  void put(bool value) { bare(value ? "true" : "false"); }
  void put(double value) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.6f", value);
    bare(digits);
  }
  void none() { bare("null"); }
  std::string take() { return std::move(out_); }

 private:
  void separate() {
    if (!first_) out_ += ',';
    first_ = false;
  }
  void begin(char bracket) {
    separate();
    out_ += bracket;
    first_ = true;
  }
  void bare(const std::string& word) {
    separate();
    out_ += word;
  }

  std::string out_;
  bool first_ = true;
};

class PickleText {
 public:
  // A mark, and at the end what makes a list or dictionary of everything since.
  void open(bool) { out_ += '('; }
  void close(bool dictionary) { out_ += dictionary ? 'd' : 'l'; }
  void key(const char* name) { put(std::string(name)); }
  void put(const std::string& value) {
    out_ += 'V';
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      out_ += byte < ' ' || byte > '~' || c == '\\' ? '?' : c;
    }
    out_ += '\n';
  }
  void put(int64_t value) { out_ += 'L' + std::to_string(value) + "L\n"; }
  void put(bool value) { out_ += value ? "I01\n" : "I00\n"; }
  void put(double value) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "F%.6f\n", value);
    out_ += digits;
  }
  void none() { out_ += 'N'; }
  std::string take() { return std::move(out_) + '.'; }

 private:
  std::string out_;
};

}  // namespace hccomm::glue
