// SPDX-License-Identifier: Apache-2.0
//
// torch's flight recorder for our groups: the last operations as c10d saw them, in the fields of
// torch's own, which nobody outside libtorch can write into. torch's analyser (python -m
// torch.distributed.flight_recorder.fr_trace) reads what write() leaves behind. The core's own
// recorder (hccomm_dump) knows steps and peers; this one knows tensors and process groups.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "operation.hpp"

namespace hccomm::glue {

// Owns:   the ring of the process, TORCH_FR_BUFFER_SIZE entries (2000; 0 switches it off), and,
//         where HCCOMM_DUMP_SIGNAL asks for it, a thread that waits for SIGUSR1.
// Thread: any.
// Fails:  never; a file that cannot be written is a warning.
class FlightRecorder {
 public:
  // The one of this process; never destroyed, for operations may outlive static destructors.
  static FlightRecorder& get();

  struct Group {
    std::string name, description, prefix;  // prefix: "gloo:" or "nccl:", what the analyser takes
    std::vector<int64_t> ranks;             // of the default group
    int rank = 0;                           // mine in it
    int64_t collectives = 0, messages = 0;  // called
    int64_t completed = 0;                  // the last collective that has
  };

  bool enabled() const { return capacity_ > 0; }
  // Makes a group known. Returns its number.
  std::size_t add(Group group);
  // Notes an operation that starts now. Returns its number, from 1; 0 where it is not noted.
  uint64_t begin(std::size_t group, const Operation& operation, int64_t timeout_ms);
  // It has ended. `source` is whom a message from anybody came from, or -1.
  void end(uint64_t number, bool succeeded, int source);

  // The ring as torch's _dump_nccl_trace has it; JSON, or Python's pickle in protocol 0.
  std::string json(bool only_active) { return dump(only_active, false); }
  std::string pickle() { return dump(false, true); }
  // Writes the pickle where TORCH_FR_DUMP_TEMP_FILE or HCCOMM_DUMP say, if they do.
  void write();

 private:
  struct Entry {
    uint64_t number = 0;
    std::size_t group = 0;
    int64_t collective = 0, message = 0;
    c10d::OpType type = c10d::OpType::UNKNOWN;
    int peer = -1;
    at::DimVector input, output;
    at::ScalarType dtype = at::kByte;
    bool has_input = false, has_output = false, retired = false;
    int64_t timeout_ms = 0, created_ns = 0, ended_ns = 0;  // ended_ns 0: in flight, or failed
    std::thread::id thread;
  };

  FlightRecorder();
  std::string dump(bool only_active, bool pickled);
  template <typename Text>
  void put_entry(Text& text, const Entry& entry) const;
  template <typename Text>
  void put_groups(Text& text) const;
  void wait_for_signals();

  std::size_t capacity_ = 0;
  std::string prefix_;  // of the files; empty: none are written
  std::mutex mutex_;    // guards the members below
  std::vector<Group> groups_;
  std::vector<Entry> ring_;
  uint64_t next_ = 1;
};

}  // namespace hccomm::glue
