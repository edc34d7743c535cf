// SPDX-License-Identifier: Apache-2.0
#include "comm/endpoint.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>

#include "base/config.hpp"
#include "base/log.hpp"
#include "base/machine.hpp"
#include "collective/collective.hpp"
#include "select/select.hpp"
#include "select/table.hpp"
#include "transport/transports.hpp"
#include "wire/crypto.hpp"

namespace hccomm::comm {

static constexpr Seconds kDialSeconds{30.0};
static constexpr auto kBusyPause = std::chrono::milliseconds(20);

static std::atomic<bool> in_forked_child{false};
static std::mutex process_mutex;  // guards process_endpoint
static std::shared_ptr<Endpoint>& process_endpoint() {
  // Never destroyed: a communicator that is still open when the process ends must not dangle.
  static auto* endpoint = new std::shared_ptr<Endpoint>();
  return *endpoint;
}

std::shared_ptr<Endpoint> Endpoint::of_process() {
  const std::lock_guard lock(process_mutex);
  return process_endpoint();
}

static std::atomic<Endpoint*> process_peek{nullptr};
Endpoint* Endpoint::peek() noexcept { return process_peek.load(std::memory_order_acquire); }

void Endpoint::set_of_process(std::shared_ptr<Endpoint> endpoint) {
  const std::lock_guard lock(process_mutex);
  process_peek.store(endpoint.get(), std::memory_order_release);
  process_endpoint() = std::move(endpoint);
}

bool Endpoint::forked() noexcept { return in_forked_child.load(std::memory_order_relaxed); }

static engine::Sums staging_sums() {
  const std::string word = config::raw("HCCOMM_STAGING_SUMS");
  if (word == "host") return engine::Sums::Host;
  return word == "device" ? engine::Sums::Device : engine::Sums::Auto;
}

static engine::Settings engine_settings() {
  engine::Settings settings;
  if (config::raw("HCCOMM_EAGER") != "auto") settings.eager_limit = config::bytes("HCCOMM_EAGER");
  settings.staging_bytes = config::bytes("HCCOMM_STAGING");
  settings.in_place_bytes = config::bytes("HCCOMM_OFI_DEVICE");
  settings.device_ipc = config::raw("HCCOMM_DEVICE_IPC") == "auto";
  settings.check_copies = config::raw("HCCOMM_INTEGRITY") != "off";
  if (settings.staging_bytes < 1 << 20) {
    throw Error(Code::InvalidArgument, text("HCCOMM_STAGING=", config::raw("HCCOMM_STAGING"),
                                            " is below 1M, which a device needs at least"));
  }
  if (config::raw("HCCOMM_STAGING_SEGMENT") != "auto") {
    constexpr std::uint64_t kPage = 4096;
    settings.staging_segment =
        (config::bytes("HCCOMM_STAGING_SEGMENT") + kPage - 1) / kPage * kPage;
  }
  settings.staging_sums = staging_sums();
  settings.silence = config::seconds("HCCOMM_SILENCE");
  const bool chosen = config::raw("HCCOMM_SPIN_US") != "auto";
  if (chosen) settings.spin_us = static_cast<int>(config::integer("HCCOMM_SPIN_US"));
  settings.patient = !chosen;
  settings.describe_fingerprint = collective::describe_fingerprint;
  settings.dump_folder = config::raw("HCCOMM_DUMP");
  if (config::flag("HCCOMM_DUMP_SIGNAL")) engine::dump_on_sigusr1();
  return settings;
}

std::vector<const transport::Builtin*> allowed_transports() {
  std::vector<const transport::Builtin*> allowed;
  const std::vector<std::string> wanted = config::list("HCCOMM_TRANSPORTS");
  std::string known;
  for (const transport::Builtin& each : transport::transports()) {
    known += (known.empty() ? "" : ", ") + std::string(each.name);
    if (wanted.empty()) allowed.push_back(&each);
  }
  std::ranges::stable_sort(allowed, std::greater{}, &transport::Builtin::preference);
  for (const std::string& name : wanted) {
    const auto found = std::ranges::find(transport::transports(), name, &transport::Builtin::name);
    if (found == transport::transports().end()) {
      throw Error(Code::InvalidArgument, text("HCCOMM_TRANSPORTS: there is no transport \"", name,
                                              "\"; known are ", known));
    }
    allowed.push_back(&*found);
  }
  return allowed;
}

// FNV-1a: other builds must find the same number.
static std::uint64_t hash_of(const std::string& value) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const unsigned char each : value) hash = (hash ^ each) * 0x100000001b3ull;
  return hash;
}

// What select/ chooses by itself, which differs between builds.
static std::string built_in_choices() {
  std::string all;
  for (const select::Default& each : select::defaults()) {
    all += text(static_cast<int>(each.collective), ' ', static_cast<int>(each.place), ' ',
                each.most_ranks, ' ', each.most_bytes, ' ', each.most_share, ' ', each.algorithm,
                '\n');
  }
  return all;
}

Endpoint::Endpoint(std::string job, std::string key, bool encrypts) {
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  if (registered != 0) throw Error(Code::System, "endpoint: pthread_atfork failed");
  identity_ = {std::move(job), std::move(key), wire::random_bytes(16), encrypts};
  engine_ = std::make_unique<engine::Engine>(static_cast<engine::Dialer&>(*this), identity_.uuid,
                                             engine_settings());
  card_.uuid = identity_.uuid;
  card_.host = host_id();
  card_.machine = machine_id();
  card_.pid = getpid();
  card_.cores = static_cast<std::uint32_t>(available_cores());
  const std::string& integrity = config::raw("HCCOMM_INTEGRITY");
  seal_ = integrity == "off"      ? transport::Seal::Nothing
          : integrity == "crc32c" ? transport::Seal::Frames
                                  : transport::Seal::Everything;
  const std::uint64_t settings = hash_of(text(
      config::raw("HCCOMM_ALGO"), '\n', config::raw("HCCOMM_SEGMENT"), '\n', select::table_text()));
  card_.choices = (settings & ~(kChecksFrames | kEncrypts | kChecksCopies | kBuiltIn)) |
                  (hash_of(built_in_choices()) & kBuiltIn) |
                  (seal_ != transport::Seal::Nothing ? kChecksFrames : 0) |
                  (seal_ == transport::Seal::Everything ? kChecksCopies : 0) |
                  (encrypts ? kEncrypts : 0);
  for (const transport::Builtin* each : allowed_transports()) {
    if (encrypts && !each->keeps_secret) {
      closed_.push_back(
          {each->name,
           "HCCOMM_ENCRYPT=1: its bytes would cross the network in clear; tcp carries "
           "them encrypted"});
      continue;
    }
    auto opened = each->open(identity_, *this);
    if (!opened.ok()) {
      closed_.push_back({each->name, opened.status().text()});
      continue;
    }
    card_.addresses.emplace_back(each->name, opened.value()->address());
    transports_.push_back(std::move(opened).value());
  }
  if (transports_.empty()) {
    std::string reasons;
    for (const Refusal& each : closed_) {
      const bool named = each.reason.starts_with(each.transport + ": ");
      reasons += named ? "; " + each.reason : "; " + each.transport + ": " + each.reason;
    }
    throw Error(Code::Unavailable, "no transport could be opened" + reasons);
  }
}

Endpoint::~Endpoint() {
  {
    const std::lock_guard lock(dials_mutex_);
    stopping_ = true;
    ending_.store(true, std::memory_order_relaxed);
  }
  for (const auto& each : transports_) each->stop();
  for (Dial& dial : dials_) dial.thread.join();
  engine_.reset();
}

Status Endpoint::dial(const transport::Card& peer) {
  const std::lock_guard lock(dials_mutex_);
  if (stopping_) return {};
  for (auto each = dials_.begin(); each != dials_.end();) {
    if (!each->over.load(std::memory_order_acquire)) {
      ++each;
      continue;
    }
    each->thread.join();
    each = dials_.erase(each);
  }
  std::list<Dial> one;
  try {
    Dial& dial = one.emplace_back();
    dial.thread = std::thread([this, &dial, peer] {
      Result<std::unique_ptr<transport::Link>> link = Status(Code::System, "no memory");
      try {
        link = connect(peer);
      } catch (const Error& failure) {
        link = failure.status();
      } catch (const std::exception&) {  // a text would need memory, too
      }
      engine_->dialed(peer.uuid, std::move(link));
      dial.over.store(true, std::memory_order_release);
    });
  } catch (const std::system_error& refused) {
    return no_thread(refused);
  } catch (const std::bad_alloc&) {
    return {Code::System, "no memory to connect"};
  }
  dials_.splice(dials_.end(), one);
  return {};
}

std::unique_ptr<transport::Link> Endpoint::finished(std::unique_ptr<transport::Link> link) const {
  if (seal_ == transport::Seal::Nothing) return link;
  return transport::sealed(std::move(link), seal_);
}

Result<std::unique_ptr<transport::Link>> Endpoint::connect(const transport::Card& peer) {
  std::string reasons;
  Status lacking;  // what kept us from trying; it counts where no attempt failed otherwise
  bool refused = false;
  for (const auto& transport : transports_) {
    std::string why = transport->refuses(card_, peer);
    if (why.empty()) {
      const Deadline deadline = Deadline::after(kDialSeconds);
      auto link = transport->connect(peer, deadline);
      // A listener that is busy with strangers closes; while the process lives it is worth a wait.
      while (!link.ok() && link.status().code() == Code::PeerLost && !deadline.passed() &&
             peer.machine == card_.machine && !process_is_gone(static_cast<pid_t>(peer.pid)) &&
             !ending_.load(std::memory_order_relaxed)) {
        std::this_thread::sleep_for(kBusyPause);
        link = transport->connect(peer, deadline);
      }
      if (link.ok()) return finished(std::move(link).value());
      if (link.status().code() == Code::Aborted) return link;
      if (link.status().code() == Code::System) {
        lacking = link.status();
      } else {
        refused = true;
      }
      why = link.status().text();
      HCCOMM_LOG(Info, "cannot reach pid ", peer.pid, " by ", transport->name(), ": ", why);
    }
    reasons += text("; ", transport->name(), ": ", why);
  }
  for (const Refusal& each : closed_) reasons += text("; ", each.transport, ": ", each.reason);
  if (!lacking.ok() && !refused) return lacking;
  return Status(Code::PeerLost,
                text("cannot connect to pid ", peer.pid, " on host ", peer.host, reasons));
}

std::vector<Refusal> Endpoint::refusals(const transport::Card& peer) const {
  std::vector<Refusal> all = closed_;
  for (const auto& transport : transports_) {
    std::string why = transport->refuses(card_, peer);
    if (!why.empty()) all.push_back({transport->name(), std::move(why)});
  }
  return all;
}

Status Endpoint::enroll(std::byte* data, std::size_t bytes) {
  for (std::size_t i = 0; i < transports_.size(); ++i) {
    Status status = transports_[i]->enroll(data, bytes);
    if (status.ok()) continue;
    while (i-- > 0) transports_[i]->expel(data, bytes);
    return status;
  }
  return {};
}

void Endpoint::expel(std::byte* data, std::size_t bytes) noexcept {
  for (const auto& transport : transports_) transport->expel(data, bytes);
}

// One transport that can is enough; what one with cards says is worth more than that others have
// none.
Status Endpoint::enroll(const transport::DeviceMemory& memory) {
  Status status = engine::Dialer::enroll(memory);
  for (const auto& transport : transports_) {
    Status said = transport->enroll(memory);
    if (said.ok()) return said;
    if (said.code() != Code::Unavailable) status = std::move(said);
  }
  return status;
}

void Endpoint::expel(const transport::DeviceMemory& memory) noexcept {
  for (const auto& transport : transports_) transport->expel(memory);
}

Result<std::unique_ptr<transport::Shared>> Endpoint::share(std::size_t bytes) {
  Status status = engine::Dialer::share(bytes).status();
  for (const auto& transport : transports_) {
    auto shared = transport->share(bytes);
    if (shared.ok()) return shared;
    if (shared.status().code() != Code::Unavailable) status = shared.status();
  }
  return status;
}

std::vector<std::string> Endpoint::candidates(const transport::Card& peer) const {
  std::vector<std::string> names;
  for (const auto& transport : transports_) {
    if (transport->refuses(card_, peer).empty()) names.emplace_back(transport->name());
  }
  return names;
}

}  // namespace hccomm::comm
