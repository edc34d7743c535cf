// SPDX-License-Identifier: Apache-2.0
//
// The bytes. Everything is little-endian and of fixed size, except `extra` and the texts, whose
// lengths are checked before a byte of them is stored.
#include "wire/handshake.hpp"

#include <algorithm>
#include <cstring>

#include "wire/crypto.hpp"
#include "wire/frame.hpp"

namespace hccomm::wire {
namespace {

constexpr char kMagic[8] = {'h', 'c', 'c', 'o', 'm', 'm', '\r', '\n'};
constexpr std::size_t kUuidBytes = 16;
constexpr std::size_t kJobBytes = 16;
constexpr std::size_t kNonceBytes = 32;
constexpr std::size_t kMaxText = 200;

enum class Kind : std::uint8_t { Call = 1, Answer = 2, Refusal = 3 };
// How the proofs are made. Without keys both sides use the lesser of their modes.
enum class Mode : std::uint8_t { Compare = 1, JobId = 2, Key = 3 };
// Bits of Hello::capabilities.
constexpr std::uint32_t kEncrypts = 1, kKernelTls = 2;

// What every version of hccomm sends first, for ever; `bytes` is the rest of the message.
struct Opening {
  char magic[8];
  std::uint16_t major;
  std::uint16_t minor;
  Kind kind;
  std::uint8_t reserved;
  std::uint16_t bytes;
};
static_assert(sizeof(Opening) == 16);

// Call and Answer, after the Opening; `extra` follows.
struct Hello {
  Mode mode;
  std::uint8_t reserved[3];
  std::uint32_t capabilities;  // unknown ones are ignored
  char transport[8];           // padded with zeros
  char uuid[kUuidBytes];
  char peer_uuid[kUuidBytes];
  char nonce[kNonceBytes];
};
static_assert(sizeof(Hello) == 80);

struct VerdictHead {
  Verdict verdict;
  std::uint8_t text_bytes;
};
static_assert(sizeof(VerdictHead) == 2);

template <typename T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

template <typename T>
T value_of(const std::string& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::string printable(std::string_view bytes, std::size_t most) {
  std::string out(bytes.substr(0, most));
  for (char& each : out) {
    if (static_cast<unsigned char>(each) < 0x20 || static_cast<unsigned char>(each) > 0x7e)
      each = '.';
  }
  return out;
}

Status refused(std::string why) { return {Code::Unavailable, "handshake: " + std::move(why)}; }

std::string role_key(const Terms& terms, Role role) {
  const std::string& secret = terms.key.empty() ? terms.job : terms.key;
  return hkdf_sha256(secret, terms.job,
                     role == Role::Initiator ? "hccomm/1 initiator" : "hccomm/1 acceptor",
                     kDigestBytes);
}

Mode mode_of(const Terms& terms) {
  if (!terms.key.empty()) return Mode::Key;
  return crypto_available().ok() ? Mode::JobId : Mode::Compare;
}

}  // namespace

std::string refusal(std::string_view why) {
  why = why.substr(0, kMaxText);
  Opening opening{};
  std::memcpy(opening.magic, kMagic, sizeof kMagic);
  opening.major = kVersionMajor;
  opening.minor = kVersionMinor;
  opening.kind = Kind::Refusal;
  opening.bytes = static_cast<std::uint16_t>(why.size());
  return bytes_of(opening) + std::string(why);
}

bool begins_handshake(std::string_view bytes) noexcept {
  const std::size_t have = std::min<std::size_t>(bytes.size(), 4);
  return std::memcmp(bytes.data(), kMagic, have) == 0;
}

Status usable(const Terms& terms) {
  const auto wrong = [](const char* what, std::size_t bytes) {
    return Status(Code::InvalidArgument, text("handshake: ", what, " of ", bytes, " bytes"));
  };
  if (terms.job.size() != kJobBytes) return wrong("a job id", terms.job.size());
  if (terms.uuid.size() != kUuidBytes) return wrong("a uuid", terms.uuid.size());
  if (!terms.key.empty() && terms.key.size() != 32) return wrong("a job key", terms.key.size());
  if (terms.extra.size() > kMaxExtra) return wrong("extra data", terms.extra.size());
  if (terms.transport.empty() || terms.transport.size() > sizeof(Hello::transport)) {
    return wrong("a transport name", terms.transport.size());
  }
  if (terms.encrypts && terms.key.empty()) {
    return {Code::InvalidArgument,
            "handshake: HCCOMM_ENCRYPT=1 needs a job key; set HCCOMM_KEY_FILE on all ranks"};
  }
  return terms.key.empty() ? Status() : crypto_available();
}

// Where a handshake stands: what the next byte that arrives belongs to.
enum class Stage : std::uint8_t {
  Opening,
  Hello,
  Refusal,
  Proof,
  Undecided,
  Verdict,
  Text,
  Done,
  Failed
};

struct Handshake::State {
  Role role;
  Terms terms;
  Mode mode;
  Stage stage = Stage::Opening;
  std::string out;  // to be sent
  std::string in;   // the part in arrival
  std::size_t need = sizeof(Opening);
  std::string mine, theirs;  // both Hello messages, with their Openings: the transcript
  bool proven = false;
  bool peer_kernel_tls = false;
  Verdict verdict = Verdict::Refused;
  std::string peer_uuid, peer_extra, verdict_text;

  void expect(Stage next, std::size_t bytes) {
    stage = next;
    need = bytes;
    in.clear();
  }
  Status fail(std::string why) {
    expect(Stage::Failed, 0);
    return refused(std::move(why));
  }

  void say_hello();
  std::string proof(Role by) const;
  std::string transcript() const;
  void refuse(std::string_view why);
  Status check_opening_so_far() const;
  Status take();  // the part is whole
  Status take_opening();
  Status take_hello();
  std::string objection(const Hello& hello) const;
  Status take_proof();
  Status take_verdict();
};

void Handshake::State::say_hello() {
  Opening opening{};
  std::memcpy(opening.magic, kMagic, sizeof kMagic);
  opening.major = kVersionMajor;
  opening.minor = kVersionMinor;
  opening.kind = role == Role::Initiator ? Kind::Call : Kind::Answer;
  opening.bytes = static_cast<std::uint16_t>(sizeof(Hello) + terms.extra.size());
  Hello hello{};
  hello.mode = mode;
  hello.capabilities = (terms.encrypts ? kEncrypts : 0) | (terms.kernel_tls ? kKernelTls : 0);
  std::memcpy(hello.transport, terms.transport.data(), terms.transport.size());
  std::memcpy(hello.uuid, terms.uuid.data(), kUuidBytes);
  std::memcpy(hello.peer_uuid, peer_uuid.data(), kUuidBytes);
  std::memcpy(hello.nonce, random_bytes(kNonceBytes).data(), kNonceBytes);
  mine = bytes_of(opening) + bytes_of(hello) + terms.extra;
  out += mine;
}

std::string Handshake::State::proof(Role by) const {
  if (mode == Mode::Compare) return terms.job + std::string(kDigestBytes - kJobBytes, '\0');
  return hmac_sha256(role_key(terms, by), terms.job + transcript());
}

std::string Handshake::State::transcript() const {
  return role == Role::Initiator ? mine + theirs : theirs + mine;
}

// What the acceptor sends in place of an Answer, so that the dialing side can say why.
void Handshake::State::refuse(std::string_view why) {
  if (role != Role::Acceptor) return;
  out = refusal(why);
}

// Strangers are known by their first bytes: no need to wait for sixteen of them.
Status Handshake::State::check_opening_so_far() const {
  const std::size_t have = std::min(in.size(), sizeof kMagic);
  if (std::memcmp(in.data(), kMagic, have) == 0) return {};
  return refused("not an hccomm peer: it sent \"" + printable(in, 8) + "\"");
}

Status Handshake::State::take_opening() {
  const auto opening = value_of<Opening>(in);
  if (opening.kind == Kind::Refusal && role == Role::Initiator) {
    if (opening.bytes > kMaxText) return fail("a refusal of an impossible length");
    theirs = in;
    if (opening.bytes == 0) return fail("the peer refused without a reason");
    expect(Stage::Refusal, opening.bytes);
    return {};
  }
  if (opening.major != kVersionMajor) {
    const std::string why = text("the peer speaks wire version ", opening.major, ".", opening.minor,
                                 ", this side ", kVersionMajor, ".", kVersionMinor,
                                 "; use builds of hccomm with equal major wire versions");
    refuse(text("wire version ", kVersionMajor, ".", kVersionMinor, " does not talk to version ",
                opening.major, "; use builds of hccomm with equal major wire versions"));
    return fail(why);
  }
  const Kind wanted = role == Role::Initiator ? Kind::Answer : Kind::Call;
  if (opening.kind != wanted) return fail("the peer speaks out of turn (its own echo?)");
  if (opening.bytes < sizeof(Hello) || opening.bytes > sizeof(Hello) + kMaxExtra) {
    return fail(text("a hello of ", opening.bytes, " bytes is impossible"));
  }
  theirs = in;
  expect(Stage::Hello, opening.bytes);
  return {};
}

// Why I cannot talk to who sent this, or "".
std::string Handshake::State::objection(const Hello& hello) const {
  const std::string_view uuid(hello.uuid, kUuidBytes), target(hello.peer_uuid, kUuidBytes);
  char transport[sizeof(Hello::transport)] = {};
  std::memcpy(transport, terms.transport.data(), terms.transport.size());
  if (std::memcmp(hello.transport, transport, sizeof transport) != 0) {
    return text("transport ", terms.transport, " was met by transport ",
                printable({hello.transport, strnlen(hello.transport, sizeof transport)}, 8));
  }
  if (hello.mode != Mode::Compare && hello.mode != Mode::JobId && hello.mode != Mode::Key) {
    return text("unknown authentication mode ", static_cast<int>(hello.mode));
  }
  if ((mode == Mode::Key) != (hello.mode == Mode::Key)) {
    return text(
        "one side has a job key and the other has none; give all ranks the same "
        "HCCOMM_KEY_FILE or HCCOMM_KEY, or none");
  }
  if (terms.encrypts != ((hello.capabilities & kEncrypts) != 0)) {
    return "one side has HCCOMM_ENCRYPT=1 and the other has not; set it alike on all ranks";
  }
  if (target != terms.uuid) return "the dialing side looks for another process at this address";
  if (uuid == terms.uuid) return "a process does not connect to itself";
  if (role == Role::Initiator && uuid != peer_uuid)
    return "another process answers at this address";
  return {};
}

Status Handshake::State::take_hello() {
  const auto hello = value_of<Hello>(in);
  if (const std::string why = objection(hello); !why.empty()) {
    refuse(why);
    return fail(why);
  }
  theirs += in;
  peer_uuid.assign(hello.uuid, kUuidBytes);
  peer_extra = in.substr(sizeof hello);
  peer_kernel_tls = (hello.capabilities & kKernelTls) != 0;
  mode = std::min(mode, hello.mode);
  if (role == Role::Acceptor) {
    say_hello();
    out += proof(Role::Acceptor);
  }
  expect(Stage::Proof, kDigestBytes);
  return {};
}

Status Handshake::State::take_proof() {
  const Role other = role == Role::Initiator ? Role::Acceptor : Role::Initiator;
  if (!same_secret(in, proof(other))) {
    static constexpr const char* kWhy =
        "the proof does not hold: the two sides have different job keys or belong to different "
        "jobs";
    if (role == Role::Acceptor) {
      out = bytes_of(VerdictHead{Verdict::Refused, static_cast<std::uint8_t>(std::strlen(kWhy))}) +
            kWhy;
    }
    return fail(kWhy);
  }
  proven = true;
  if (role == Role::Initiator) {
    out += proof(Role::Initiator);
    expect(Stage::Verdict, sizeof(VerdictHead));
  } else {
    expect(Stage::Undecided, 0);
  }
  return {};
}

Status Handshake::State::take_verdict() {
  const auto head = value_of<VerdictHead>(in);
  if (head.verdict != Verdict::Accepted && head.verdict != Verdict::Duplicate &&
      head.verdict != Verdict::Refused) {
    return fail(text("unknown verdict ", static_cast<int>(head.verdict)));
  }
  if (head.text_bytes > kMaxText) return fail("a verdict with an impossible text");
  verdict = head.verdict;
  if (head.text_bytes == 0) {
    expect(Stage::Done, 0);
  } else {
    expect(Stage::Text, head.text_bytes);
  }
  return {};
}

Status Handshake::State::take() {
  switch (stage) {
    case Stage::Opening: return take_opening();
    case Stage::Hello: return take_hello();
    case Stage::Refusal: return fail("the peer refused: " + printable(in, kMaxText));
    case Stage::Proof: return take_proof();
    case Stage::Verdict: return take_verdict();
    case Stage::Text:
      verdict_text = printable(in, kMaxText);
      expect(Stage::Done, 0);
      return {};
    case Stage::Undecided:
    case Stage::Done:
    case Stage::Failed: break;
  }
  return {};
}

Handshake::Handshake(Role role, Terms terms) : state_(std::make_unique<State>()) {
  HCCOMM_CHECK(usable(terms).ok(), "transports ask usable() before they shake hands");
  HCCOMM_CHECK(role == Role::Acceptor || terms.peer_uuid.size() == kUuidBytes,
               "the dialing side knows whom it dials");
  state_->role = role;
  state_->mode = mode_of(terms);
  state_->peer_uuid = terms.peer_uuid;
  state_->terms = std::move(terms);
  if (role == Role::Initiator) state_->say_hello();
}

Handshake::Handshake(Handshake&&) noexcept = default;
Handshake::~Handshake() = default;

std::string Handshake::output() { return std::exchange(state_->out, {}); }

std::size_t Handshake::wants() const noexcept { return state_->need - state_->in.size(); }

Status Handshake::feed(std::string_view bytes, std::size_t& used) {
  State& state = *state_;
  used = 0;
  if (state.stage == Stage::Failed) return refused("it has failed already");
  while (used < bytes.size() && wants() > 0) {
    const std::size_t part = std::min(wants(), bytes.size() - used);
    state.in.append(bytes.substr(used, part));
    used += part;
    if (state.stage == Stage::Opening) {
      if (Status strange = state.check_opening_so_far(); !strange.ok()) {
        state.expect(Stage::Failed, 0);
        return strange;
      }
    }
    if (wants() > 0) break;
    if (Status status = state.take(); !status.ok()) return status;
  }
  return {};
}

void Handshake::decide(Verdict verdict, std::string_view why) {
  State& state = *state_;
  HCCOMM_CHECK(state.role == Role::Acceptor && state.stage == Stage::Undecided,
               "the acceptor decides once, about a proven peer");
  why = why.substr(0, kMaxText);
  state.verdict = verdict;
  state.verdict_text = why;
  state.out =
      bytes_of(VerdictHead{verdict, static_cast<std::uint8_t>(why.size())}) + std::string(why);
  state.expect(Stage::Done, 0);
}

std::string Handshake::secret(std::string_view purpose) const {
  const State& state = *state_;
  HCCOMM_CHECK(state.proven && !state.terms.key.empty(), "a secret comes of a proven key");
  return hkdf_sha256(state.terms.key, state.terms.job,
                     "hccomm/1 " + std::string(purpose) + state.transcript(), kDigestBytes);
}

bool Handshake::peer_kernel_tls() const noexcept { return state_->peer_kernel_tls; }
bool Handshake::proven() const noexcept { return state_->proven; }
bool Handshake::done() const noexcept {
  return state_->stage == Stage::Done && state_->out.empty();
}
Verdict Handshake::verdict() const noexcept { return state_->verdict; }
const std::string& Handshake::peer_uuid() const noexcept { return state_->peer_uuid; }
const std::string& Handshake::peer_extra() const noexcept { return state_->peer_extra; }
const std::string& Handshake::verdict_text() const noexcept { return state_->verdict_text; }

}  // namespace hccomm::wire
