// SPDX-License-Identifier: Apache-2.0
#include "base/config.hpp"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/error.hpp"

extern char** environ;

namespace hccomm::config {

// Kinds understood by check_value(): flag, integer, bytes, seconds, list, text, or words "a|b|c".
static constexpr Setting kSettings[] = {
    {"HCCOMM_ALGO", "text", "", "Overrides the algorithm, e.g. `allreduce:0-8K tree,8K- ring`."},
    {"HCCOMM_ASCEND_LIB", "text", "", "Path of Huawei's libascendcl; empty searches for it."},
    {"HCCOMM_AUTH", "auto|require|off", "auto",
     "Whether connections must prove the job key: `require` refuses to run without one."},
    {"HCCOMM_CACHE_DIR", "text", "~/.cache/hccomm", "Where the compiled torch glue is kept."},
    {"HCCOMM_CCL_ASCEND_LIB", "text", "", "Path of Huawei's libhccl; empty searches for it."},
    {"HCCOMM_CCL_COREX_LIB", "text", "", "Path of Iluvatar's libnccl; empty searches for it."},
    {"HCCOMM_CCL_CUDA_LIB", "text", "", "Path of NVIDIA's libnccl; empty searches for it."},
    {"HCCOMM_CCL_DTK_LIB", "text", "", "Path of Hygon's librccl; empty searches for it."},
    {"HCCOMM_CCL_HIP_LIB", "text", "", "Path of AMD's librccl; empty searches for it."},
    {"HCCOMM_CCL_MACA_LIB", "text", "", "Path of MetaX's libmccl; empty searches for it."},
    {"HCCOMM_CCL_MUSA_LIB", "text", "", "Path of Moore Threads' libmccl; empty searches for it."},
    {"HCCOMM_CCL_PPU_LIB", "text", "", "Path of T-Head's libnccl; empty searches for it."},
    {"HCCOMM_CMA", "auto|off", "auto",
     "Single copies between local processes (process_vm_readv, _writev) if a probe allows it."},
    {"HCCOMM_CNRT_LIB", "text", "", "Path of Cambricon's libcnrt; empty searches for it."},
    {"HCCOMM_COREX_LIB", "text", "", "Path of Iluvatar's libcudart; empty searches for it."},
    {"HCCOMM_CUDA_LIB", "text", "", "Path of NVIDIA's libcudart; empty searches for it."},
    {"HCCOMM_DEVICE_IPC", "auto|off", "auto",
     "Whether devices of one vendor in one host copy large messages from each other's memory."},
    {"HCCOMM_DTK_LIB", "text", "",
     "Path of Hygon's libgalaxyhip or libcudart; empty searches for it."},
    {"HCCOMM_DUMP", "text", "",
     "Folder to which every rank writes its last 1,000 operations when one fails; `hccomm "
     "doctor`."},
    {"HCCOMM_DUMP_SIGNAL", "flag", "0", "SIGUSR1 writes them, too (needs HCCOMM_DUMP)."},
    {"HCCOMM_EAGER", "bytes", "auto",
     "Largest message sent without waiting for its receiver; auto is the transport's own."},
    {"HCCOMM_ENCRYPT", "flag", "0",
     "TLS 1.3 under the job key on every TCP connection; alike on all ranks, and needs a key."},
    {"HCCOMM_HIP_LIB", "text", "", "Path of AMD's libamdhip64; empty searches for it."},
    {"HCCOMM_HOST", "text", "",
     "Overrides this rank's host identity, so one machine can stand for several hosts."},
    {"HCCOMM_ISLAND", "text", "auto",
     "Which ranks one vendor's library may join: `auto`, `off`, a label that its ranks share, or "
     "lists of ranks (`0-3;4,5`). A label or list may span hosts."},
    {"HCCOMM_ISLAND_FAILURE", "auto|fallback|fail", "auto",
     "When a vendor's library fails: `auto` goes on without it where ranks cannot join it, and "
     "fails later calls; `fallback` repeats these too; `fail` fails always."},
    {"HCCOMM_INTEGRITY", "off|crc32c|crc32c-all", "off",
     "`crc32c` checks every frame from end to end, and reads again what was copied from or to a "
     "device; damage is an Integrity error naming the hop. "
     "`crc32c-all` also what goes from memory to memory inside a machine, by frames."},
    {"HCCOMM_KEY", "text", "",
     "The job key, base64 of 32 bytes; removed from the environment after reading."},
    {"HCCOMM_KEY_FILE", "text", "", "File (0600, owned by the user) that holds the job key."},
    {"HCCOMM_KUNLUN_LIB", "text", "", "Path of Kunlunxin's libcudart; empty searches for it."},
    {"HCCOMM_LEVEL_ZERO_LIB", "text", "",
     "Path of the Level Zero loader libze_loader; empty searches for it."},
    {"HCCOMM_LOG", "error|warn|info|debug", "warn", "What is written to stderr."},
    {"HCCOMM_MACA_LIB", "text", "", "Path of MetaX's libmcruntime; empty searches for it."},
    {"HCCOMM_MUSA_LIB", "text", "", "Path of Moore Threads' libmusart; empty searches for it."},
    {"HCCOMM_OFI_CACHE", "bytes", "1G",
     "How much memory of the program may stay registered with RDMA cards while it is not in use."},
    {"HCCOMM_OFI_DEVICE", "bytes", "1M",
     "Buffers on a device from this size on are read and written in place by cards that can "
     "(docs/rdma.md); 0: none are."},
    {"HCCOMM_OFI_LIB", "text", "",
     "Path of the libfabric to load; empty: one that is loaded already, else the system's."},
    {"HCCOMM_OFI_PROVIDER", "list", "",
     "libfabric's providers for the ofi transport, best first, e.g. `verbs`; empty: real fabrics."},
    {"HCCOMM_OFI_RAILS", "integer", "auto",
     "How many cards of the provider to use at once, 4 at most; auto: those that are equally "
     "near."},
    {"HCCOMM_OPENCL_LIB", "text", "",
     "Path of the OpenCL loader libOpenCL; empty searches for it."},
    {"HCCOMM_PLUGINS", "list", "",
     "Shared libraries that bring kinds of devices (docs/devices.md), by path."},
    {"HCCOMM_PPU_LIB", "text", "", "Path of T-Head's libcudart; empty searches for it."},
    {"HCCOMM_RENDEZVOUS", "text", "",
     "Where ranks meet: `tcp://host:port`, `file:///path` or `mpi`; empty asks the launcher."},
    {"HCCOMM_SEGMENT", "bytes", "auto",
     "Segment size of pipelined algorithms; auto lets select/ choose."},
    {"HCCOMM_SHM_BYTES", "bytes", "512K", "Ring size per direction between two local ranks."},
    {"HCCOMM_SILENCE", "seconds", "3",
     "In so long a peer whose process is silent is lost, if an operation waits for it."},
    {"HCCOMM_SOCKET_IFNAME", "text", "",
     "Interfaces for TCP: names or prefixes, comma separated; a leading ^ excludes."},
    {"HCCOMM_SPIN_US", "integer", "auto",
     "How long a waiter polls before it sleeps; auto is 60 (480 where sleep proves slow), "
     "or 0 when ranks outnumber cores."},
    {"HCCOMM_SUPA_LIB", "text", "", "Path of Biren's libsupart; empty searches for it."},
    {"HCCOMM_TABLE", "text", "",
     "File of measured choices of algorithms, from `hccomm tune`; the same on all ranks."},
    {"HCCOMM_TANG_LIB", "text", "", "Path of Sunrise's libtangrt_shared; empty searches for it."},
    {"HCCOMM_STAGING", "bytes", "256M",
     "Pinned host memory per device for device buffers on their way; at least 1M."},
    {"HCCOMM_STAGING_SEGMENT", "bytes", "auto",
     "Size of one copy from or to a device; auto follows from their measured latency and rate."},
    {"HCCOMM_STAGING_SUMS", "auto|host|device", "auto",
     "Where sums are made that end on a device: `auto` where that is quicker, `host`, `device` "
     "where it can."},
    {"HCCOMM_TIMEOUT", "seconds", "300",
     "Deadline of an operation, unless the communicator or the call has its own."},
    {"HCCOMM_TOPS_LIB", "text", "", "Path of Enflame's libtopsrt; empty searches for it."},
    {"HCCOMM_TRANSPORTS", "list", "",
     "Transports that may be used, best first, e.g. `shm,tcp`; empty means all."},
};

std::span<const Setting> settings() { return kSettings; }

static const Setting& setting(const char* name) {
  for (const Setting& each : kSettings) {
    if (std::strcmp(each.name, name) == 0) return each;
  }
  throw Error(Code::Internal, text("config: ", name, " is not in the table"));
}

bool is_set(const char* name) {
  const char* value = std::getenv(setting(name).name);
  return value != nullptr && value[0] != '\0';
}

std::string raw(const char* name) {
  const Setting& found = setting(name);
  const char* value = std::getenv(name);
  return value != nullptr && value[0] != '\0' ? value : found.fallback;
}

[[noreturn]] static void refuse(const std::string& what, const std::string& value,
                                const std::string& wanted) {
  throw Error(Code::InvalidArgument, text(what, "=\"", value, "\" is not ", wanted));
}

std::uint64_t parse_bytes(const std::string& value, const std::string& what) {
  std::uint64_t number = 0;
  const char* end = value.data() + value.size();
  const auto [rest, error] = std::from_chars(value.data(), end, number);
  int shift = 0;
  if (error != std::errc() || end - rest > 1)
    refuse(what, value, "a size like 4096, 64K, 1M or 2G");
  if (rest != end) {
    switch (*rest) {
      case 'k':
      case 'K': shift = 10; break;
      case 'm':
      case 'M': shift = 20; break;
      case 'g':
      case 'G': shift = 30; break;
      default: refuse(what, value, "a size like 4096, 64K, 1M or 2G");
    }
  }
  if (shift != 0 && number > (~std::uint64_t{0} >> shift)) refuse(what, value, "a size below 2^64");
  return number << shift;
}

bool flag(const char* name) {
  const std::string value = raw(name);
  if (value == "1" || value == "on" || value == "true" || value == "yes") return true;
  if (value == "0" || value == "off" || value == "false" || value == "no" || value.empty()) {
    return false;
  }
  refuse(name, value, "0 or 1");
}

std::int64_t integer(const char* name) {
  const std::string value = raw(name);
  std::int64_t number = 0;
  const char* end = value.data() + value.size();
  const auto [rest, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc() || rest != end) refuse(name, value, "a whole number");
  return number;
}

std::uint64_t bytes(const char* name) { return parse_bytes(raw(name), name); }

Seconds seconds(const char* name) {
  const std::string value = raw(name);
  double number = 0;
  const char* end = value.data() + value.size();
  const auto [rest, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc() || rest != end || !(number > 0)) {
    refuse(name, value, "a positive number of seconds");
  }
  return Seconds(number);
}

std::vector<std::string> list(const char* name) {
  std::vector<std::string> words;
  const std::string value = raw(name);
  for (std::size_t begin = 0; begin <= value.size() && !value.empty();) {
    const std::size_t comma = std::min(value.find(',', begin), value.size());
    std::string word = value.substr(begin, comma - begin);
    word.erase(0, word.find_first_not_of(" \t"));
    word.erase(word.find_last_not_of(" \t") + 1);
    if (!word.empty()) words.push_back(word);
    begin = comma + 1;
  }
  return words;
}

static bool is_word_of(const std::string& value, const std::string& words) {
  return ("|" + words + "|").find("|" + value + "|") != std::string::npos &&
         value.find('|') == std::string::npos;
}

static void check_value(const Setting& each) {
  const std::string kind = each.kind;
  const std::string value = raw(each.name);
  if (value == each.fallback) return;
  if (kind == "flag") flag(each.name);
  if (kind == "integer" && value != "auto") integer(each.name);
  if (kind == "bytes" && value != "auto") bytes(each.name);
  if (kind == "seconds") seconds(each.name);
  if (kind.find('|') != std::string::npos && !is_word_of(value, kind)) {
    refuse(each.name, value, "one of " + kind);
  }
}

void check_all() {
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "HCCOMM_", 7) != 0) continue;
    const std::string name(*entry, std::strcspn(*entry, "="));
    bool known = name.starts_with("HCCOMM_TEST_") || name.starts_with("HCCOMM_PY_");
    for (const Setting& each : kSettings) known = known || name == each.name;
    if (!known) {
      throw Error(Code::InvalidArgument,
                  text(name,
                       " is set, but hccomm has no such setting; `hccomm info --config` "
                       "lists them all"));
    }
  }
  for (const Setting& each : kSettings) check_value(each);
}

log::Level log_level() noexcept {
  const char* value = std::getenv("HCCOMM_LOG");
  if (value == nullptr) return log::Level::Warn;
  if (std::strcmp(value, "error") == 0) return log::Level::Error;
  if (std::strcmp(value, "info") == 0) return log::Level::Info;
  if (std::strcmp(value, "debug") == 0) return log::Level::Debug;
  return log::Level::Warn;
}

}  // namespace hccomm::config
