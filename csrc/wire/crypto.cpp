// SPDX-License-Identifier: Apache-2.0
#include "wire/crypto.hpp"

#include <sys/random.h>

#include <cerrno>

#include "base/dynlib.hpp"

namespace hccomm::wire {
namespace {

// Two of libcrypto's functions; both have kept this shape since OpenSSL 0.9.
using Sha256 = const void*();
using Hmac = unsigned char*(const void* digest, const void* key, int key_bytes,
                            const unsigned char* message, std::size_t bytes, unsigned char* out,
                            unsigned int* out_bytes);

struct LibCrypto {
  Sha256* sha256 = nullptr;
  Hmac* hmac = nullptr;
  Status status;
};

LibCrypto load() {
  LibCrypto found;
  auto library = DynamicLibrary::open({"libcrypto.so.3", "libcrypto.so.1.1"});
  if (!library) {
    found.status = Status(
        Code::Unavailable,
        text("the job key needs OpenSSL's libcrypto (install libssl3): ", library.status().text()));
    return found;
  }
  found.sha256 = library.value().find_as<Sha256>("EVP_sha256");
  found.hmac = library.value().find_as<Hmac>("HMAC");
  if (found.sha256 == nullptr || found.hmac == nullptr) {
    found.status = Status(Code::Unavailable, text(library.value().path(),
                                                  " has no HMAC or EVP_sha256; install libssl3"));
  }
  return found;
}

const LibCrypto& libcrypto() {
  static const LibCrypto loaded = load();
  return loaded;
}

}  // namespace

Status crypto_available() { return libcrypto().status; }

std::string hmac_sha256(std::string_view key, std::string_view message) {
  const LibCrypto& crypto = libcrypto();
  HCCOMM_CHECK(crypto.status.ok(), "the caller asks crypto_available() first");
  unsigned char digest[kDigestBytes];
  unsigned int bytes = 0;
  const auto* result = crypto.hmac(crypto.sha256(), key.data(), static_cast<int>(key.size()),
                                   reinterpret_cast<const unsigned char*>(message.data()),
                                   message.size(), digest, &bytes);
  if (result == nullptr || bytes != kDigestBytes) {
    throw Error(Code::System, "libcrypto computes no HMAC-SHA-256: is there too little memory?");
  }
  return {reinterpret_cast<const char*>(digest), kDigestBytes};
}

std::string hkdf_sha256(std::string_view secret, std::string_view salt, std::string_view info,
                        std::size_t bytes) {
  HCCOMM_CHECK(bytes <= 255 * kDigestBytes, "RFC 5869 limits the output");
  const std::string zeros(kDigestBytes, '\0');
  const std::string master = hmac_sha256(salt.empty() ? std::string_view(zeros) : salt, secret);
  std::string out, block;
  for (unsigned char round = 1; out.size() < bytes; ++round) {
    block.append(info).push_back(static_cast<char>(round));
    block = hmac_sha256(master, block);
    out += block;
  }
  out.resize(bytes);
  return out;
}

std::string random_bytes(std::size_t bytes) {
  std::string out(bytes, '\0');
  for (std::size_t have = 0; have < bytes;) {
    const ssize_t got = getrandom(out.data() + have, bytes - have, 0);
    if (const int err = errno; got < 0) {
      if (err == EINTR) continue;
      throw Error(Status::from_errno(err, "random bytes from the kernel"));
    }
    have += static_cast<std::size_t>(got);
  }
  return out;
}

bool same_secret(std::string_view left, std::string_view right) noexcept {
  if (left.size() != right.size()) return false;
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < left.size(); ++i) {
    difference = static_cast<unsigned char>(difference | (left[i] ^ right[i]));
  }
  return difference == 0;
}

}  // namespace hccomm::wire
