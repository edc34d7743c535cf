// SPDX-License-Identifier: Apache-2.0
//
// The ring, and its text.
#include "flight_recorder.hpp"

#include <c10/util/ApproximateClock.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string_view>
#include <utility>

#include "flight_text.hpp"
#include "group.hpp"

namespace hccomm::glue {

static constexpr const char* kVersion = "2.10";  // of torch's format

// Before torch 2.12 its analyser knows operations by NCCL's names alone.
static constexpr bool kNamesOfNcclOnly = TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 12;

static std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

static bool is_flag_set(const char* name) {
  const std::string value = environment(name);
  return value == "1" || value == "on" || value == "true" || value == "yes";
}

static int signal_bell = -1;
static struct sigaction signal_before;

static void on_signal(int number, siginfo_t* info, void* where) {
  eventfd_write(signal_bell, 1);
  if ((signal_before.sa_flags & SA_SIGINFO) != 0) {
    signal_before.sa_sigaction(number, info, where);
  } else if (signal_before.sa_handler != SIG_DFL && signal_before.sa_handler != SIG_IGN) {
    signal_before.sa_handler(number);
  }
}

// Whoever had the signal before us gets it too: the core's own recorder, for one, which takes it
// whenever a job begins.
static void take_signal() {
  struct sigaction now{};
  sigaction(SIGUSR1, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_signal) return;
  signal_before = now;
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_RESTART | SA_SIGINFO;
  sigaction(SIGUSR1, &action, nullptr);
}

FlightRecorder& FlightRecorder::get() {
  static auto* const only = new FlightRecorder;
  return *only;
}

FlightRecorder::FlightRecorder() {
  std::string size = environment("TORCH_FR_BUFFER_SIZE");
  if (size.empty()) size = environment("TORCH_NCCL_TRACE_BUFFER_SIZE");
  const long wished = size.empty() ? 2000 : std::strtol(size.c_str(), nullptr, 10);
  capacity_ = static_cast<std::size_t>(std::clamp(wished, 0L, 1L << 20));
  ring_.resize(capacity_);
  prefix_ = environment("TORCH_FR_DUMP_TEMP_FILE");
  if (prefix_.empty()) prefix_ = environment("TORCH_NCCL_DEBUG_INFO_TEMP_FILE");
  const std::string folder = environment("HCCOMM_DUMP");
  if (prefix_.empty() && !folder.empty()) prefix_ = folder + "/torch_trace_rank_";
  if (enabled() && !prefix_.empty() && is_flag_set("HCCOMM_DUMP_SIGNAL")) wait_for_signals();
}

std::size_t FlightRecorder::add(Group group) {
  const std::lock_guard lock(mutex_);
  if (signal_bell >= 0) take_signal();
  if (kNamesOfNcclOnly) group.prefix = "nccl:";
  groups_.push_back(std::move(group));
  return groups_.size() - 1;
}

// Where only one of the two has a meaning on this rank, the analyser wants both alike on all ranks.
static bool one_for_both(c10d::OpType type) {
  return type == c10d::OpType::REDUCE || type == c10d::OpType::BROADCAST ||
         type == c10d::OpType::ALLREDUCE;
}

uint64_t FlightRecorder::begin(std::size_t group, const Operation& operation, int64_t timeout_ms) {
  if (!enabled()) return 0;
  const int64_t now = c10::getTime();
  const bool message = c10d::isP2POp(operation.type);
  const at::Tensor& input = operation.input;
  const at::Tensor& output =
      one_for_both(operation.type) && input.defined() ? input : operation.output;
  const std::lock_guard lock(mutex_);
  Entry& entry = ring_[next_ % capacity_];
  entry.number = next_++;
  entry.group = group;
  entry.collective = groups_[group].collectives += message ? 0 : 1;
  entry.message = groups_[group].messages += message ? 1 : 0;
  entry.type = operation.type;
  entry.peer = message ? operation.call.root : -1;
  entry.has_input = input.defined();
  entry.has_output = output.defined();
  if (entry.has_input) entry.input.assign(input.sizes().begin(), input.sizes().end());
  if (entry.has_output) entry.output.assign(output.sizes().begin(), output.sizes().end());
  if (entry.has_input || entry.has_output) entry.dtype = operation.model().scalar_type();
  entry.retired = false;
  entry.timeout_ms = timeout_ms;
  entry.created_ns = now;
  entry.ended_ns = 0;
  entry.thread = std::this_thread::get_id();
  return entry.number;
}

void FlightRecorder::end(uint64_t number, bool succeeded, int source) {
  if (number == 0) return;
  const int64_t now = c10::getTime();
  const std::lock_guard lock(mutex_);
  Entry& entry = ring_[number % capacity_];
  if (entry.number != number) return;  // overwritten meanwhile
  entry.retired = true;
  if (source >= 0) entry.peer = source;
  if (!succeeded) return;
  entry.ended_ns = now;
  Group& group = groups_[entry.group];
  if (!c10d::isP2POp(entry.type)) group.completed = std::max(group.completed, entry.collective);
}

// ---- text ---------------------------------------------------------------------------------------

// As the analyser spells it; "recv 1<-0".
static std::string name_of(c10d::OpType type, int rank, int peer) {
  switch (type) {
    case c10d::OpType::ALLREDUCE:
    case c10d::OpType::_ALLREDUCE_SPARSE: return "all_reduce";
    case c10d::OpType::ALLREDUCE_COALESCED: return "allreduce_coalesced";
    case c10d::OpType::ALLGATHER: return "all_gather";
    case c10d::OpType::_ALLGATHER_BASE: return "_all_gather_base";
    case c10d::OpType::REDUCE_SCATTER: return "reduce_scatter";
    case c10d::OpType::_REDUCE_SCATTER_BASE: return "_reduce_scatter_base";
    case c10d::OpType::BROADCAST: return "broadcast";
    case c10d::OpType::REDUCE: return "reduce";
    case c10d::OpType::GATHER: return "gather";
    case c10d::OpType::SCATTER: return "scatter";
    case c10d::OpType::ALLTOALL:
    case c10d::OpType::ALLTOALL_BASE: return "all_to_all";
    case c10d::OpType::BARRIER: return kNamesOfNcclOnly ? "all_reduce_barrier" : "barrier";
    case c10d::OpType::SEND: return c10::str("send ", rank, "->", peer);
    case c10d::OpType::RECV:
    case c10d::OpType::RECVANYSOURCE: return c10::str("recv ", rank, "<-", peer);
    default: return "coalesced";
  }
}

template <typename Text, typename Value>
static void put(Text& text, const char* key, Value value) {
  text.key(key);
  text.put(value);
}

// [[2, 3]], or [] where there is no such tensor.
template <typename Text>
static void put_tensor(Text& text, const char* sizes_key, const char* types_key, bool there,
                       at::IntArrayRef sizes, at::ScalarType type) {
  text.key(sizes_key);
  text.open(false);
  if (there) {
    text.open(false);
    for (const int64_t size : sizes) text.put(size);
    text.close(false);
  }
  text.close(false);
  text.key(types_key);
  text.open(false);
  if (there) text.put(std::string(c10::toString(type)));
  text.close(false);
}

template <typename Text>
void FlightRecorder::put_entry(Text& text, const Entry& entry) const {
  const Group& group = groups_[entry.group];
  const bool message = c10d::isP2POp(entry.type);
  text.open(true);
  text.key("frames");
  text.open(false);
  text.close(false);
  put(text, "record_id", static_cast<int64_t>(entry.number) - 1);
  put(text, "pg_id", static_cast<int64_t>(entry.group));
  text.key("process_group");
  text.open(false);
  text.put(group.name);
  text.put(group.description);
  text.close(false);
  std::ostringstream thread;
  thread << entry.thread;
  put(text, "thread_name", std::string());
  put(text, "thread_id", thread.str());
  put(text, "collective_seq_id", entry.collective);
  put(text, "p2p_seq_id", entry.message);
  put(text, "op_id", entry.collective + entry.message);
  put(text, "profiling_name", group.prefix + name_of(entry.type, group.rank, entry.peer));
  put(text, "time_created_ns", entry.created_ns);
  if (entry.ended_ns != 0) {
    put(text, "duration_ms", static_cast<double>(entry.ended_ns - entry.created_ns) / 1e6);
  }
  put_tensor(text, "input_sizes", "input_dtypes", entry.has_input, entry.input, entry.dtype);
  put_tensor(text, "output_sizes", "output_dtypes", entry.has_output, entry.output, entry.dtype);
  put(text, "state", std::string(entry.ended_ns != 0 ? "completed" : "started"));
  put(text, "time_discovered_started_ns", entry.created_ns);
  text.key("time_discovered_completed_ns");
  if (entry.ended_ns != 0) {
    text.put(entry.ended_ns);
  } else {
    text.none();
  }
  put(text, "retired", entry.retired);
  put(text, "timeout_ms", entry.timeout_ms);
  put(text, "is_p2p", message);
  text.close(true);
}

template <typename Text>
void FlightRecorder::put_groups(Text& text) const {
  text.key("pg_config");
  text.open(true);
  for (const Group& group : groups_) {
    text.key(group.name.c_str());
    text.open(true);
    put(text, "name", group.name);
    put(text, "desc", group.description);
    std::string ranks;
    for (const int64_t rank : group.ranks) {
      ranks += (ranks.empty() ? "" : ", ") + std::to_string(rank);
    }
    put(text, "ranks", "[" + ranks + "]");
    text.close(true);
  }
  text.close(true);
  text.key("pg_status");
  text.open(true);
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    text.key(std::to_string(k).c_str());
    text.open(true);
    put(text, "last_enqueued_collective", groups_[k].collectives);
    put(text, "last_started_collective", groups_[k].collectives);
    put(text, "last_completed_collective", groups_[k].completed);
    text.close(true);
  }
  text.close(true);
}

std::string FlightRecorder::dump(bool only_active, bool pickled) {
  const std::lock_guard lock(mutex_);
  const auto all = [&](auto text) {
    text.open(true);
    put(text, "version", std::string(kVersion));
    put(text, "comm_lib_version", std::string("hccomm ") + hccomm_version());
    put_groups(text);
    text.key("entries");
    text.open(false);
    for (uint64_t number = next_ > capacity_ ? next_ - capacity_ : 1; number < next_; ++number) {
      const Entry& entry = ring_[number % capacity_];
      if (!only_active || entry.ended_ns == 0) put_entry(text, entry);
    }
    text.close(false);
    text.close(true);
    return text.take();
  };
  return pickled ? all(PickleText()) : all(JsonText());
}

// ---- files --------------------------------------------------------------------------------------

void FlightRecorder::write() {
  if (!enabled() || prefix_.empty()) return;
  int rank = 0;
  {
    const std::lock_guard lock(mutex_);
    if (groups_.empty()) return;
    const Group& first = groups_.front();
    rank = static_cast<int>(first.ranks[static_cast<std::size_t>(first.rank)]);
  }
  const std::string body = pickle();
  const std::string path = prefix_ + std::to_string(rank);
  const std::string draft = path + ".part";
  const int file = open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  bool whole = file >= 0;
  for (std::size_t done = 0; whole && done < body.size();) {
    const ssize_t part = ::write(file, body.data() + done, body.size() - done);
    whole = part > 0;
    if (whole) done += static_cast<std::size_t>(part);
  }
  if (file >= 0) close(file);
  if (!whole || rename(draft.c_str(), path.c_str()) != 0) {
    TORCH_WARN_ONCE("hccomm: the flight recorder cannot write ", path, ": ", std::strerror(errno));
  }
}

// A handler may hardly do anything: a thread writes the file.
void FlightRecorder::wait_for_signals() {
  signal_bell = eventfd(0, EFD_CLOEXEC);
  if (signal_bell < 0) return;
  std::thread([this] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (eventfd_t rings = 0;;) {
      if (eventfd_read(signal_bell, &rings) == 0) write();
    }
  }).detach();
}

}  // namespace hccomm::glue
