// SPDX-License-Identifier: Apache-2.0
#include "comm/join.hpp"

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <set>

#include "base/config.hpp"
#include "base/log.hpp"
#include "comm/islands.hpp"
#include "native/islands.hpp"
#include "rendezvous/key_door.hpp"
#include "rendezvous/meet.hpp"
#include "transport/route_hint.hpp"
#include "wire/crypto.hpp"
#include "wire/key.hpp"

namespace hccomm::comm {

// Rank and size as launchers tell them: torchrun, Open MPI, MPICH and Intel MPI, Slurm.
static constexpr std::array<std::pair<const char*, const char*>, 4> kLaunchers = {{
    {"RANK", "WORLD_SIZE"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_NTASKS"},
}};

static int number_in(const char* variable) {
  const char* value = std::getenv(variable);
  int number = -1;
  const auto [rest, error] = std::from_chars(value, value + std::strlen(value), number);
  if (error != std::errc() || *rest != '\0' || number < 0) {
    throw Error(Code::InvalidArgument,
                text("init: ", variable, "=\"", value, "\" is not a number from 0 up"));
  }
  return number;
}

static void ask_launcher(Meeting& meeting) {
  if (meeting.rank >= 0 && meeting.size > 0) return;
  for (const auto& [rank, size] : kLaunchers) {
    if (std::getenv(rank) == nullptr || std::getenv(size) == nullptr) continue;
    meeting.rank = number_in(rank);
    meeting.size = number_in(size);
    return;
  }
  meeting.rank = 0;
  meeting.size = 1;
}

static void check(const Meeting& meeting) {
  if (meeting.size < 1 || meeting.rank < 0 || meeting.rank >= meeting.size) {
    throw Error(Code::InvalidArgument,
                text("init: rank=", meeting.rank, " is outside 0..", meeting.size - 1,
                     "; give every process its own rank and the same size"));
  }
}

// Whether the launcher says that all ranks of this meeting are on one host: alike on all of them.
static bool on_one_host(const Meeting& meeting) {
  static constexpr std::array<std::pair<const char*, const char*>, 3> kSizes = {{
      {"WORLD_SIZE", "LOCAL_WORLD_SIZE"},
      {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      {"PMI_SIZE", "MPI_LOCALNRANKS"},
  }};
  if (meeting.own_endpoint || meeting.size < 2) return false;
  for (const auto& [all, local] : kSizes) {
    if (std::getenv(all) == nullptr || std::getenv(local) == nullptr) continue;
    return number_in(all) == meeting.size && number_in(local) == meeting.size;
  }
  return false;
}

// The job key, where this rank was given one, and whether it is to encrypt.
static rendezvous::Credentials load_credentials() {
  rendezvous::Credentials found{wire::load_job_key().take(), config::flag("HCCOMM_ENCRYPT")};
  const std::string mode = config::raw("HCCOMM_AUTH");
  if (mode == "off" && found.encrypts) {
    throw Error(Code::InvalidArgument,
                "init: HCCOMM_ENCRYPT=1 needs the job key that HCCOMM_AUTH=off forbids; unset one");
  }
  if (mode == "off") found.key.clear();
  return found;
}

static void check_credentials(const rendezvous::Credentials& found) {
  static constexpr const char* kRemedy =
      "; make one with `hccomm keygen FILE` and set HCCOMM_KEY_FILE on all ranks";
  if (!found.key.empty()) return;
  if (config::raw("HCCOMM_AUTH") == "require") {
    throw Error(Code::InvalidArgument,
                text("init: HCCOMM_AUTH=require, but there is no job key", kRemedy));
  }
  if (found.encrypts) {
    throw Error(Code::InvalidArgument,
                text("init: HCCOMM_ENCRYPT=1, but there is no job key", kRemedy));
  }
}

static constexpr const char* kNoDoor = "none";

// On one host ranks that were given no key get one from rank 0, who keeps the door open while they
// meet. Rank 0 says in the store where it is, and also that there is none.
static std::unique_ptr<rendezvous::KeyDoor> share_key(const Meeting& meeting,
                                                      rendezvous::Store& store,
                                                      const std::string& kept,
                                                      rendezvous::Credentials& with,
                                                      Deadline deadline) {
  const std::string place = meeting.name + "/door";
  const bool wanted = with.key.empty() && config::raw("HCCOMM_AUTH") != "off";
  if (meeting.rank != 0) {
    if (!wanted) return nullptr;
    const std::string name = store.get(place, deadline).take();
    if (name != kNoDoor) with.key = rendezvous::fetch_key(name, deadline).take();
    return nullptr;
  }
  std::unique_ptr<rendezvous::KeyDoor> door;
  if (wanted && wire::crypto_available().ok()) {
    const std::string key = kept.empty() ? wire::random_bytes(wire::kKeyBytes) : kept;
    auto opened = rendezvous::KeyDoor::open(key);
    if (opened.ok()) door = std::move(opened).value();
    if (!opened.ok()) HCCOMM_LOG(Info, "init: ", opened.status().text());
  }
  if (Status status = store.set(place, door ? door->name() : kNoDoor); !status.ok()) {
    throw Error(status);
  }
  if (door) with.key = door->key();
  return door;
}

// The endpoint of this process where its job is the meeting's, else a new one.
static std::shared_ptr<Endpoint> endpoint_for(const Meeting& meeting, const std::string& job,
                                              const rendezvous::Credentials& with) {
  std::shared_ptr<Endpoint> shared = meeting.own_endpoint ? nullptr : Endpoint::of_process();
  if (shared != nullptr && shared->job() == job) return shared;
  auto made = std::make_shared<Endpoint>(job, with.key, with.encrypts);
  if (shared == nullptr && !meeting.own_endpoint) Endpoint::set_of_process(made);
  return made;
}

static void say_whether_authenticated(const Endpoint& endpoint,
                                      const std::vector<transport::Card>& cards) {
  std::set<std::string> machines;
  for (const transport::Card& card : cards) machines.insert(card.machine);
  if (endpoint.authenticated() || machines.size() < 2) return;
  log::write_once(log::Level::Warn, "auth",
                  "no job key: connections between hosts carry a random job id against strays, but "
                  "do not prove who dials (`hccomm keygen`, HCCOMM_KEY_FILE; HCCOMM_AUTH=require "
                  "refuses to run so)");
}

// Ranks that choose algorithms by different rules would run different plans.
static void check_choices(const std::vector<transport::Card>& cards) {
  for (std::size_t rank = 1; rank < cards.size(); ++rank) {
    const std::uint64_t differs = cards[rank].choices ^ cards[0].choices;
    if (differs == 0) continue;
    const bool built_in = (differs & kBuiltIn) != 0;
    const char* what = built_in                     ? "built-in choice of algorithms"
                       : (differs & kEncrypts) != 0 ? "HCCOMM_ENCRYPT"
                       : (differs & (kChecksFrames | kChecksCopies)) != 0
                           ? "HCCOMM_INTEGRITY"
                           : "HCCOMM_ALGO, HCCOMM_SEGMENT or "
                             "HCCOMM_TABLE (its content)";
    throw Error(
        Code::Mismatch,
        text("init: rank ", rank, " (host ", cards[rank].host, ", pid ", cards[rank].pid,
             ") has another ", what, " than rank 0; ",
             built_in ? "install the same build of hccomm on both" : "set it alike on all ranks"),
        static_cast<int>(rank));
  }
}

static std::unique_ptr<Communicator> alone(const Meeting& meeting,
                                           const rendezvous::Credentials& with) {
  const std::shared_ptr<Endpoint> shared = Endpoint::of_process();
  const std::string job = shared != nullptr ? shared->job() : wire::random_bytes(16);
  const auto endpoint = endpoint_for(meeting, job, with);
  std::uint64_t id = 0;
  const std::string random = wire::random_bytes(8);
  std::memcpy(&id, random.data(), sizeof id);
  return std::make_unique<Communicator>(endpoint, meeting.name, id | 1, 0,
                                        std::vector{endpoint->card()}, meeting.timeout);
}

// How this rank takes part in a meeting whose job is known.
struct Seat {
  std::unique_ptr<rendezvous::KeyDoor> door;  // open until all have met
  std::shared_ptr<Endpoint> endpoint;
  transport::Card card;
};

static Seat take_seat(const Meeting& meeting, rendezvous::Store& store, const std::string& job,
                      rendezvous::Credentials with, Deadline deadline) {
  Seat seat;
  if (on_one_host(meeting)) {
    const auto shared = meeting.own_endpoint ? nullptr : Endpoint::of_process();
    const bool same = shared != nullptr && shared->job() == job;
    seat.door = share_key(meeting, store, same ? shared->key() : std::string(), with, deadline);
  }
  check_credentials(with);
  seat.endpoint = endpoint_for(meeting, job, with);
  seat.card = seat.endpoint->card();
  // No transport takes it.
  seat.card.addresses.emplace_back("islands", Islands::hint(meeting.rank));
  return seat;
}

// The others wait for this rank, which cannot join. Whether they can be told changes nothing here.
static void refuse(const Meeting& meeting, rendezvous::Store& store, const Status& why,
                   Deadline deadline) {
  const Status told =
      rendezvous::refuse(store, meeting.name, meeting.rank, meeting.size, why, deadline);
  if (!told.ok()) HCCOMM_LOG(Info, "init: the other ranks were not told: ", told.text());
}

static std::unique_ptr<Communicator> meet(const Meeting& meeting, rendezvous::Store& store,
                                          const rendezvous::Credentials& with, Deadline deadline) {
  const std::shared_ptr<Endpoint> shared = meeting.own_endpoint ? nullptr : Endpoint::of_process();
  const std::string mine = shared != nullptr ? shared->job() : std::string();
  const std::string job =
      rendezvous::agree_job(store, meeting.name, meeting.rank, meeting.size, mine, deadline).take();
  Seat seat;
  try {
    seat = take_seat(meeting, store, job, with, deadline);
  } catch (const Error& error) {
    refuse(meeting, store, error.status(), deadline);
    throw;
  }
  rendezvous::Book book = rendezvous::exchange_cards(store, meeting.name, meeting.rank,
                                                     meeting.size, seat.card, deadline)
                              .take();
  check_choices(book.cards);
  say_whether_authenticated(*seat.endpoint, book.cards);
  return std::make_unique<Communicator>(seat.endpoint, meeting.name, book.session, meeting.rank,
                                        std::move(book.cards), meeting.timeout);
}

// What this rank alone may have been given wrong.
static rendezvous::Credentials check_settings(Meeting& meeting) {
  config::check_all();
  if (meeting.timeout.count() <= 0) meeting.timeout = config::seconds("HCCOMM_TIMEOUT");
  (void)native::label_of(config::raw("HCCOMM_ISLAND"), meeting.rank);  // or it is refused
  rendezvous::Credentials with = load_credentials();
  if (!on_one_host(meeting)) check_credentials(with);
  return with;
}

static std::string place_of(const Meeting& meeting) {
  return meeting.url.empty() ? config::raw("HCCOMM_RENDEZVOUS") : meeting.url;
}

static std::unique_ptr<rendezvous::Store> open(const std::string& url, int rank,
                                               const rendezvous::Credentials& with,
                                               Deadline deadline) {
  return rendezvous::open_store(url, rank, deadline, {with.key, with.encrypts && !with.key.empty()})
      .take();
}

// check_settings() has thrown `why`: so much time is given to tell the others, who may be on their
// way still. One that proves a key to a store of ours can't be told by a rank that has none.
static void tell_others(const Meeting& meeting, const Status& why) noexcept try {
  constexpr Seconds kTellSeconds{3};
  if (meeting.size == 1) return;
  const Deadline deadline = Deadline::after(kTellSeconds);
  if (meeting.store != nullptr) return refuse(meeting, *meeting.store, why, deadline);
  const std::string url = place_of(meeting);
  if (url.empty()) return;
  rendezvous::Credentials with;
  try {
    with = load_credentials();
  } catch (const Error&) {  // it may be the very cause
  }
  const auto store = open(url, meeting.rank, with, deadline);
  refuse(meeting, *store, why, deadline);
  store->finish(deadline);
} catch (const std::exception& error) {
  HCCOMM_LOG(Info, "init: the other ranks were not told: ", error.what());
}

std::unique_ptr<Communicator> join(const Meeting& asked) {
  Meeting meeting = asked;
  if (Endpoint::forked()) {
    throw Error(Code::InvalidArgument,
                "init: this process was forked from one that uses hccomm; start it with the spawn "
                "method instead");
  }
  ask_launcher(meeting);
  check(meeting);
  log::set_rank(meeting.rank);
  rendezvous::Credentials with;
  try {
    with = check_settings(meeting);
  } catch (const Error& error) {
    tell_others(meeting, error.status());
    throw;
  }
  const Deadline deadline = Deadline::after(meeting.timeout);
  if (meeting.size == 1 && meeting.store == nullptr) return alone(meeting, with);
  if (const char* master = std::getenv("MASTER_ADDR")) transport::set_route_hint(master);
  if (meeting.store != nullptr) return meet(meeting, *meeting.store, with, deadline);

  const std::string url = place_of(meeting);
  if (url.empty()) {
    throw Error(Code::InvalidArgument,
                text("init: ", meeting.size,
                     " ranks, but no place to meet; pass a store or a "
                     "rendezvous, or set HCCOMM_RENDEZVOUS=tcp://host:port or file:///directory"));
  }
  if (url.starts_with("tcp://")) {
    transport::set_route_hint(url.substr(6, url.rfind(':') - 6));
  }
  const auto store = open(url, meeting.rank, with, deadline);
  auto made = meet(meeting, *store, with, deadline);
  store->finish(deadline);
  return made;
}

}  // namespace hccomm::comm
