// SPDX-License-Identifier: Apache-2.0
//
// A session writes records of up to 16 KiB from a buffer of its own: OpenSSL wants an unfinished
// write repeated with the same bytes, and the engine may offer another frame instead. Its writes go
// through a BIO that is OpenSSL's for sockets in all but two things: a peer that is gone is an
// error, not SIGPIPE; and once the keys are agreed sealed records are gathered, as a system call
// for each would cost more than its encryption.
#include "transport/tls.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>

#include "base/unique_fd.hpp"
#include "transport/tls_library.hpp"

namespace hccomm::transport {

using namespace tls;

// From OpenSSL's headers, the same since 1.1.1.
static constexpr int kSetMinimum = 123, kSetMaximum = 124, kMode = 33, kReadAhead = 41;
static constexpr int kTls13 = 0x0304;
static constexpr std::uint64_t kOptionKernel = 1u << 3, kOptionNoRenegotiation = 1u << 30;
static constexpr std::uint64_t kOptionIgnoreEnd = 1u << 7;  // the end without a farewell is an end
static constexpr long kModePartialWrite = 0x1;
static constexpr int kVerifyPeer = 1;
static constexpr int kErrorRead = 2, kErrorWrite = 3, kErrorSyscall = 5, kErrorClosed = 6;
static constexpr int kSetFd = 104, kNoClose = 0;
static constexpr int kBioWriteRetry = 0x02 | 0x08, kBioRetryBits = 0x0f, kBioKernelControl = 0x1000;
static constexpr int kTypeSocket = 0x0400 | 0x0100;  // a source of bytes with a descriptor

static constexpr std::size_t kRecordBytes = 16 * 1024;
static constexpr std::size_t kReadBytes = 128 * 1024;    // one system call for several records
static constexpr std::size_t kGatherBytes = 128 * 1024;  // the same on the way out
static constexpr char kIdentity[] = "hccomm";

// Sealed records on their way out.
struct Gathering {
  bool on = false;  // once the handshake is over, unless the kernel does the records
  std::string bytes;
  std::size_t sent = 0;
};

struct Tls::State {
  int fd = -1;
  Options options;
  std::string secret;
  Ssl* ssl = nullptr;
  std::array<char, kRecordBytes> out;
  std::size_t pending = 0;  // bytes of `out` that OpenSSL has not taken
  bool begun = false;       // OpenSSL has sealed it and wants the very same call again
  std::uint64_t records = 0;
  bool dry = true;  // the last read found nothing
  int over = -1;    // what ended reading, as errno; 0: the peer closed
  std::string why;

  ~State() {
    if (ssl != nullptr) library().SSL_free(ssl);
    explicit_bzero(secret.data(), secret.size());
  }
  Gathering gathering;

  bool write_out() noexcept;
  bool flush() noexcept;
  int explain(int error) noexcept;
};

Status tls_available() { return library().status; }

bool kernel_tls() noexcept {
  static const bool found = [] {
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Without a connection a kernel that can says ENOTCONN, one that cannot ENOENT.
    return setsockopt(fd.get(), IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") == 0 ||
           errno == ENOTCONN;
  }();
  return found;
}

// As OpenSSL's own, but MSG_NOSIGNAL. A control record of the kernel's TLS is left to it.
static int bio_write(Bio* bio, const char* data, int bytes) {
  static const auto original = library().BIO_meth_get_write(library().BIO_s_socket());
  if (library().BIO_test_flags(bio, kBioKernelControl) != 0) return original(bio, data, bytes);
  auto* const gathering = static_cast<Gathering*>(library().BIO_get_ex_data(bio, 0));
  if (gathering->on) {
    library().BIO_clear_flags(bio, kBioRetryBits);
    gathering->bytes.append(data, static_cast<std::size_t>(bytes));
    return bytes;
  }
  int fd = -1;
  library().BIO_ctrl(bio, kSetFd + 1, 0, &fd);  // BIO_C_GET_FD
  const ssize_t sent =
      ::send(fd, data, static_cast<std::size_t>(bytes), MSG_NOSIGNAL | MSG_DONTWAIT);
  library().BIO_clear_flags(bio, kBioRetryBits);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS)) {
    library().BIO_set_flags(bio, kBioWriteRetry);
  }
  return static_cast<int>(sent);
}

static const BioMethod* socket_method() {
  static const BioMethod* const made = [] {
    const Library& ssl = library();
    const BioMethod* model = ssl.BIO_s_socket();
    BioMethod* method = ssl.BIO_meth_new(ssl.BIO_get_new_index() | kTypeSocket, "hccomm socket");
    if (method == nullptr) return method;
    ssl.BIO_meth_set_write(method, bio_write);
    ssl.BIO_meth_set_read(method, ssl.BIO_meth_get_read(model));
    ssl.BIO_meth_set_ctrl(method, ssl.BIO_meth_get_ctrl(model));
    ssl.BIO_meth_set_create(method, ssl.BIO_meth_get_create(model));
    ssl.BIO_meth_set_destroy(method, ssl.BIO_meth_get_destroy(model));
    return method;
  }();
  return made;
}

static const std::string& secret_of(const Ssl* ssl) {
  return *static_cast<const std::string*>(library().SSL_get_ex_data(ssl, 0));
}

static unsigned give(const std::string& secret, unsigned char* psk, unsigned room) {
  if (secret.size() > room) return 0;
  std::memcpy(psk, secret.data(), secret.size());
  return static_cast<unsigned>(secret.size());
}

static unsigned psk_of_client(Ssl* ssl, const char*, char* identity, unsigned identity_room,
                              unsigned char* psk, unsigned room) {
  if (identity_room < sizeof kIdentity) return 0;
  std::memcpy(identity, kIdentity, sizeof kIdentity);
  return give(secret_of(ssl), psk, room);
}

static unsigned psk_of_server(Ssl* ssl, const char* identity, unsigned char* psk, unsigned room) {
  if (std::strcmp(identity, kIdentity) != 0) return 0;
  return give(secret_of(ssl), psk, room);
}

// One for all sessions of a kind; never freed.
static Context* make_context(bool kernel) {
  const Library& ssl = library();
  Context* context = ssl.SSL_CTX_new(ssl.TLS_method());
  if (context == nullptr) return nullptr;
  ssl.SSL_CTX_ctrl(context, kSetMinimum, kTls13, nullptr);
  ssl.SSL_CTX_ctrl(context, kSetMaximum, kTls13, nullptr);
  ssl.SSL_CTX_ctrl(context, kMode, kModePartialWrite, nullptr);
  ssl.SSL_CTX_ctrl(context, kReadAhead, kernel ? 0 : 1, nullptr);
  ssl.SSL_CTX_set_default_read_buffer_len(context, kReadBytes);
  ssl.SSL_CTX_set_options(context,
                          kOptionNoRenegotiation | kOptionIgnoreEnd | (kernel ? kOptionKernel : 0));
  ssl.SSL_CTX_set_num_tickets(context, 0);
  ssl.SSL_CTX_set_psk_client_callback(context, psk_of_client);
  ssl.SSL_CTX_set_psk_server_callback(context, psk_of_server);
  if (ssl.SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1) return context;
  ssl.SSL_CTX_free(context);
  return nullptr;
}

static Context* context_for(bool kernel) {
  static Context* const plain = make_context(false);
  static Context* const in_kernel = kernel_tls() ? make_context(true) : nullptr;
  return kernel && in_kernel != nullptr ? in_kernel : plain;
}

Tls::Tls(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tls::~Tls() = default;

Result<std::unique_ptr<Tls>> Tls::make(int fd, wire::Role role, const std::string& secret,
                                       const Options& options) {
  HCCOMM_CHECK(tls_available().ok(), "the caller asks tls_available() first");
  const Library& ssl = library();
  const Status failed(Code::System, "tls: OpenSSL could not make a session; is memory short?");
  if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0) {
    return Status::from_errno(errno, "tls: the socket cannot be made non-blocking");
  }
  auto state = std::make_unique<State>();
  state->fd = fd;
  state->options = options;
  state->secret = secret;
  Context* const context = context_for(options.kernel);
  if (context == nullptr || socket_method() == nullptr) return failed;
  state->ssl = ssl.SSL_new(context);
  Bio* const bio = state->ssl == nullptr ? nullptr : ssl.BIO_new(socket_method());
  if (bio == nullptr) return failed;
  ssl.BIO_ctrl(bio, kSetFd, kNoClose, &fd);
  ssl.BIO_set_ex_data(bio, 0, &state->gathering);
  ssl.SSL_set_bio(state->ssl, bio, bio);
  ssl.SSL_set_ex_data(state->ssl, 0, &state->secret);
  if (role == wire::Role::Initiator) {
    // A server that shows a certificate instead of the key is refused: there is none to trust.
    ssl.SSL_set_verify(state->ssl, kVerifyPeer, nullptr);
    ssl.SSL_set_connect_state(state->ssl);
  } else {
    ssl.SSL_set_accept_state(state->ssl);
  }
  return std::unique_ptr<Tls>(new Tls(std::move(state)));
}

Result<std::unique_ptr<Tls>> Tls::open(int fd, wire::Role role, const std::string& secret,
                                       const Options& options, Deadline deadline) {
  auto made = make(fd, role, secret, options);
  if (!made) return made;
  for (;;) {
    const Step step = made.value()->shake();
    if (step == Step::Done) return made;
    if (step == Step::Failed) {
      return Status(errno == EPROTO ? Code::Unavailable : Code::PeerLost,
                    "tls: the handshake failed: " + made.value()->why());
    }
    if (deadline.passed()) return Status(Code::Timeout, "tls: the peer did not answer in time");
    pollfd entry{fd, static_cast<short>(step == Step::WantsRead ? POLLIN : POLLOUT), 0};
    poll(&entry, 1, deadline.left_ms());
  }
}

// What an unsuccessful call means, as errno: 0 for the end of the connection.
int Tls::State::explain(int error) noexcept try {
  const int err = errno;
  const Library& lib = library();
  if (error == kErrorRead || error == kErrorWrite) return EAGAIN;
  if (error == kErrorClosed) return 0;
  const unsigned long code = lib.ERR_get_error();
  if (error == kErrorSyscall && code == 0) {
    why = err == 0 ? "the peer closed the connection" : std::strerror(err);
    return err;
  }
  char text[160] = "OpenSSL gives no reason";
  if (code != 0) lib.ERR_error_string_n(code, text, sizeof text);
  if (why.empty()) why = text;
  return EPROTO;
} catch (const std::bad_alloc&) {  // for the words
  return EPROTO;
}

Tls::Step Tls::shake() noexcept try {
  const Library& ssl = library();
  ssl.ERR_clear_error();
  errno = 0;
  const int result = ssl.SSL_do_handshake(state_->ssl);
  if (result == 1) {
    if (ssl.SSL_session_reused(state_->ssl) == 1) {
      state_->dry = false;  // what follows may have come with the last flight
      state_->gathering.bytes.reserve(kGatherBytes + 2 * kRecordBytes);
      state_->gathering.on = !state_->options.kernel;
      return Step::Done;
    }
    state_->why = "the peer did not use the key";
    errno = EPROTO;
    return Step::Failed;
  }
  const int error = ssl.SSL_get_error(state_->ssl, result);
  if (error == kErrorRead) return Step::WantsRead;
  if (error == kErrorWrite) return Step::WantsWrite;
  const int err = state_->explain(error);
  if (err == 0) state_->why = "the peer closed the connection";
  errno = err == 0 ? ECONNRESET : err;
  return Step::Failed;
} catch (const std::bad_alloc&) {
  errno = ENOMEM;
  return Step::Failed;
}

// Passes the waiting record on. False with errno set when it could not.
bool Tls::State::write_out() noexcept {
  const Library& lib = library();
  if (pending == 0) return true;
  if (!begun && options.records_per_key != 0 && ++records % options.records_per_key == 0) {
    lib.SSL_key_update(ssl, 0);  // the peer's direction keeps its key
  }
  begun = true;
  lib.ERR_clear_error();
  errno = 0;
  const int taken = lib.SSL_write(ssl, out.data(), static_cast<int>(pending));
  if (taken > 0) {
    pending = 0;  // a record goes whole
    begun = false;
    return true;
  }
  const int err = explain(lib.SSL_get_error(ssl, taken));
  errno = err == 0 ? EPIPE : err;
  return false;
}

// Sends what has been gathered. False with errno set when some of it is left.
bool Tls::State::flush() noexcept {
  while (gathering.sent < gathering.bytes.size()) {
    const ssize_t passed =
        ::send(fd, gathering.bytes.data() + gathering.sent, gathering.bytes.size() - gathering.sent,
               MSG_NOSIGNAL | MSG_DONTWAIT);
    if (passed < 0 && errno == EINTR) continue;
    if (passed < 0 && errno == ENOBUFS) errno = EAGAIN;
    if (passed < 0) return false;
    gathering.sent += static_cast<std::size_t>(passed);
  }
  gathering.bytes.clear();
  gathering.sent = 0;
  return true;
}

ssize_t Tls::send(const iovec* parts, std::size_t count) noexcept {
  State& state = *state_;
  std::size_t taken = 0, part = 0, offset = 0;
  for (;;) {
    const bool last = part == count && state.pending == 0;
    const bool due =
        last || state.gathering.sent > 0 || state.gathering.bytes.size() >= kGatherBytes;
    if ((due && !state.flush()) || !state.write_out()) {
      if (errno != EAGAIN || taken == 0) return -1;
      return static_cast<ssize_t>(taken);
    }
    if (last) return static_cast<ssize_t>(taken);
    while (part < count && state.pending < state.out.size()) {
      const std::size_t bytes =
          std::min(parts[part].iov_len - offset, state.out.size() - state.pending);
      if (bytes > 0) {
        std::memcpy(state.out.data() + state.pending,
                    static_cast<const char*>(parts[part].iov_base) + offset, bytes);
      }
      state.pending += bytes;
      offset += bytes;
      taken += bytes;
      if (offset == parts[part].iov_len) {
        ++part;
        offset = 0;
      }
    }
  }
}

ssize_t Tls::receive(const iovec* parts, std::size_t count) noexcept {
  const Library& lib = library();
  State& state = *state_;
  std::size_t got = 0;
  if (state.over >= 0) {
    errno = state.over;
    return state.over == 0 ? 0 : -1;
  }
  state.dry = false;
  for (std::size_t part = 0, offset = 0; part < count;) {
    if (offset == parts[part].iov_len) {
      ++part;
      offset = 0;
      continue;
    }
    const auto room = std::min<std::size_t>(parts[part].iov_len - offset, 1 << 30);
    lib.ERR_clear_error();
    errno = 0;
    const int bytes = lib.SSL_read(state.ssl, static_cast<char*>(parts[part].iov_base) + offset,
                                   static_cast<int>(room));
    if (bytes > 0) {
      got += static_cast<std::size_t>(bytes);
      offset += static_cast<std::size_t>(bytes);
      continue;
    }
    const int err = state.explain(lib.SSL_get_error(state.ssl, bytes));
    state.dry = err == EAGAIN;
    if (err != EAGAIN) state.over = err;
    if (got > 0) return static_cast<ssize_t>(got);  // the rest of the news comes next time
    errno = err;
    return err == 0 ? 0 : -1;
  }
  return static_cast<ssize_t>(got);
}

bool Tls::unsent() const noexcept {
  return state_->pending > 0 || !state_->gathering.bytes.empty();
}
bool Tls::holds() const noexcept { return !state_->dry; }
std::string Tls::why() const { return state_->why; }

}  // namespace hccomm::transport
