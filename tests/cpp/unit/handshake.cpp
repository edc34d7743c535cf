// SPDX-License-Identifier: Apache-2.0
#include "wire/handshake.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include "support/terms.hpp"
#include "wire/crypto.hpp"
#include "wire/frame.hpp"
#include "wire/key.hpp"

namespace hccomm::wire {
namespace {

using test::dialer_terms;
using test::kKey;
using test::server_terms;

// Two ends in one thread, with the bytes between them in the test's hands.
struct Pair {
  explicit Pair(const Terms& dialer, const Terms& server)
      : initiator(Role::Initiator, dialer), acceptor(Role::Acceptor, server) {}

  static Status pass(Handshake& from, Handshake& to, std::string* seen = nullptr) {
    const std::string bytes = from.output();
    if (seen != nullptr) *seen = bytes;
    std::size_t used = 0;
    Status status = to.feed(bytes, used);
    if (status.ok()) {
      EXPECT_EQ(used, bytes.size());
    }
    return status;
  }
  // Up to the moment of the verdict.
  Status prove() {
    if (Status status = pass(initiator, acceptor); !status.ok()) return status;
    if (Status status = pass(acceptor, initiator); !status.ok()) return status;
    return pass(initiator, acceptor);
  }

  Handshake initiator, acceptor;
};

class BothWays : public testing::TestWithParam<std::string> {};

TEST_P(BothWays, PeersLearnEachOthersExtraAndTheVerdict) {
  Pair pair(dialer_terms(GetParam()), server_terms(GetParam()));

  ASSERT_EQ(pair.prove(), Status());
  EXPECT_TRUE(pair.acceptor.proven());
  EXPECT_FALSE(pair.acceptor.done());
  pair.acceptor.decide(Verdict::Accepted);
  ASSERT_EQ(Pair::pass(pair.acceptor, pair.initiator), Status());

  EXPECT_TRUE(pair.initiator.done());
  EXPECT_TRUE(pair.acceptor.done());
  EXPECT_EQ(pair.initiator.verdict(), Verdict::Accepted);
  EXPECT_EQ(pair.initiator.peer_extra(), "from the server");
  EXPECT_EQ(pair.acceptor.peer_extra(), "from the dialer");
  EXPECT_EQ(pair.acceptor.peer_uuid(), test::kDialer);
}

TEST_P(BothWays, AnyCutOfTheBytesGivesTheSameOutcome) {
  Pair pair(dialer_terms(GetParam()), server_terms(GetParam()));
  const auto drip = [](Handshake& from, Handshake& to) {
    for (const char each : from.output()) {
      std::size_t used = 0;
      ASSERT_GT(to.wants(), 0u);
      ASSERT_EQ(to.feed({&each, 1}, used), Status());
      ASSERT_EQ(used, 1u);
    }
  };

  drip(pair.initiator, pair.acceptor);
  drip(pair.acceptor, pair.initiator);
  drip(pair.initiator, pair.acceptor);
  pair.acceptor.decide(Verdict::Duplicate, "we have a link already");
  drip(pair.acceptor, pair.initiator);

  EXPECT_TRUE(pair.initiator.done());
  EXPECT_EQ(pair.initiator.verdict(), Verdict::Duplicate);
  EXPECT_EQ(pair.initiator.verdict_text(), "we have a link already");
}

TEST_P(BothWays, EveryTruncationLeavesTheHandshakeWaitingForMore) {
  for (std::size_t keep = 0;; ++keep) {
    Pair pair(dialer_terms(GetParam()), server_terms(GetParam()));
    const std::string hello = pair.initiator.output();
    if (keep == hello.size()) break;
    std::size_t used = 0;

    ASSERT_EQ(pair.acceptor.feed(std::string_view(hello).substr(0, keep), used), Status());

    EXPECT_FALSE(pair.acceptor.proven());
    EXPECT_GT(pair.acceptor.wants(), 0u);
    EXPECT_LE(pair.acceptor.wants(), hello.size() - keep);
    EXPECT_TRUE(pair.acceptor.output().empty());
  }
}

TEST_P(BothWays, BytesAfterTheHandshakeAreLeftAlone) {
  Pair pair(dialer_terms(GetParam()), server_terms(GetParam()));
  ASSERT_EQ(pair.prove(), Status());
  pair.acceptor.decide(Verdict::Accepted);
  const std::string verdict = pair.acceptor.output();
  std::size_t used = 0;

  ASSERT_EQ(pair.initiator.feed(verdict + "frames", used), Status());

  EXPECT_EQ(used, verdict.size());
  EXPECT_EQ(pair.initiator.wants(), 0u);
}

TEST_P(BothWays, EveryFlippedByteOfTheProofedPartIsNoticed) {
  Pair sample(dialer_terms(GetParam()), server_terms(GetParam()));
  std::string hello = sample.initiator.output();
  for (std::size_t at = 0; at < hello.size(); ++at) {
    Pair pair(dialer_terms(GetParam()), server_terms(GetParam()));
    std::string bytes = pair.initiator.output();
    bytes[at] = static_cast<char>(bytes[at] ^ 0x20);
    std::size_t used = 0;

    Status status = pair.acceptor.feed(bytes, used);
    if (status.ok() && pair.acceptor.wants() == 32)
      status = Pair::pass(pair.acceptor, pair.initiator);
    if (status.ok() && pair.acceptor.wants() == 32)
      status = Pair::pass(pair.initiator, pair.acceptor);

    EXPECT_FALSE(pair.acceptor.proven()) << "byte " << at;
    EXPECT_FALSE(pair.initiator.proven()) << "byte " << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Keys, BothWays, testing::Values(std::string(), kKey),
                         [](const auto& each) { return each.param.empty() ? "NoKey" : "Key"; });

TEST(Handshake, ADifferentKeyIsRefusedByBothSides) {
  Pair pair(dialer_terms(kKey), server_terms(std::string(32, 'x')));
  std::size_t used = 0;
  ASSERT_EQ(Pair::pass(pair.initiator, pair.acceptor), Status());

  const Status dialer = Pair::pass(pair.acceptor, pair.initiator);
  const Status server = pair.acceptor.feed(std::string(32, 'p'), used);

  EXPECT_NE(dialer.text().find("different job keys"), std::string::npos) << dialer.text();
  EXPECT_NE(server.text().find("different job keys"), std::string::npos) << server.text();
  EXPECT_FALSE(pair.acceptor.proven());
}

TEST(Handshake, ADifferentJobIsRefusedWithoutKeys) {
  Terms stray = dialer_terms();
  stray.job = std::string(16, 'x');
  Pair pair(stray, server_terms());

  const Status status = pair.prove();

  EXPECT_NE(status.text().find("different jobs"), std::string::npos) << status.text();
  EXPECT_FALSE(pair.acceptor.proven());
}

TEST(Handshake, TheSameKeyInADifferentJobIsRefused) {
  Terms stray = dialer_terms(kKey);
  stray.job = std::string(16, 'x');
  Pair pair(stray, server_terms(kKey));

  EXPECT_FALSE(pair.prove().ok());
  EXPECT_FALSE(pair.acceptor.proven());
}

TEST(Handshake, OneSideWithoutAKeyIsRefusedAndTold) {
  for (const bool dialer_has : {true, false}) {
    Pair pair(dialer_terms(dialer_has ? kKey : ""), server_terms(dialer_has ? "" : kKey));

    const Status server = Pair::pass(pair.initiator, pair.acceptor);
    const Status dialer = Pair::pass(pair.acceptor, pair.initiator);

    EXPECT_NE(server.text().find("HCCOMM_KEY_FILE"), std::string::npos) << server.text();
    EXPECT_NE(dialer.text().find("the peer refused: one side has a job key"), std::string::npos)
        << dialer.text();
  }
}

TEST(Handshake, AReplayedHandshakeFails) {
  Pair recorded(dialer_terms(kKey), server_terms(kKey));
  std::string hello, answer, proof;
  ASSERT_EQ(Pair::pass(recorded.initiator, recorded.acceptor, &hello), Status());
  ASSERT_EQ(Pair::pass(recorded.acceptor, recorded.initiator, &answer), Status());
  ASSERT_EQ(Pair::pass(recorded.initiator, recorded.acceptor, &proof), Status());
  ASSERT_TRUE(recorded.acceptor.proven());
  Handshake victim(Role::Acceptor, server_terms(kKey));
  Handshake dialer(Role::Initiator, dialer_terms(kKey));
  std::size_t used = 0;

  const Status replayed = victim.feed(hello + proof, used);
  const Status answered = dialer.feed(answer, used);

  EXPECT_FALSE(replayed.ok());
  EXPECT_FALSE(victim.proven());
  EXPECT_FALSE(answered.ok());
  EXPECT_FALSE(dialer.proven());
}

TEST(Handshake, AReflectedProofFails) {
  Handshake victim(Role::Acceptor, server_terms(kKey));
  Handshake dialer(Role::Initiator, dialer_terms(kKey));
  std::size_t used = 0;
  ASSERT_EQ(victim.feed(dialer.output(), used), Status());
  const std::string answer = victim.output();

  const Status reflected = victim.feed(std::string_view(answer).substr(answer.size() - 32), used);

  EXPECT_FALSE(reflected.ok());
  EXPECT_FALSE(victim.proven());
}

TEST(Handshake, AnEchoOfTheHelloFails) {
  Handshake dialer(Role::Initiator, dialer_terms());
  std::size_t used = 0;

  const Status status = dialer.feed(dialer.output(), used);

  EXPECT_NE(status.text().find("out of turn"), std::string::npos) << status.text();
}

TEST(Handshake, AnotherProcessAtTheAddressIsNamed) {
  Terms lost = dialer_terms();
  lost.peer_uuid = std::string(16, 'x');
  Pair pair(lost, server_terms());

  const Status server = Pair::pass(pair.initiator, pair.acceptor);
  const Status dialer = Pair::pass(pair.acceptor, pair.initiator);

  EXPECT_NE(server.text().find("another process"), std::string::npos) << server.text();
  EXPECT_NE(dialer.text().find("another process"), std::string::npos) << dialer.text();
}

TEST(Handshake, AnotherTransportIsNamed) {
  Terms other = dialer_terms();
  other.transport = "other";
  Pair pair(other, server_terms());

  const Status status = pair.prove();

  EXPECT_NE(status.text().find("transport test was met by transport other"), std::string::npos)
      << status.text();
}

TEST(Handshake, AnotherMajorVersionIsNamedOnBothSides) {
  Pair pair(dialer_terms(), server_terms());
  std::string hello = pair.initiator.output();
  hello[8] = 9;
  std::size_t used = 0;

  const Status server = pair.acceptor.feed(hello, used);
  const Status dialer = Pair::pass(pair.acceptor, pair.initiator);

  const std::string theirs = text("wire version 9.", kVersionMinor);
  EXPECT_NE(server.text().find(theirs), std::string::npos) << server.text();
  EXPECT_NE(dialer.text().find("does not talk to version 9"), std::string::npos) << dialer.text();
}

TEST(Handshake, AnotherMinorVersionIsWelcome) {
  Pair pair(dialer_terms(), server_terms());
  std::string hello = pair.initiator.output();
  hello[10] = 7;
  std::size_t used = 0;

  EXPECT_EQ(pair.acceptor.feed(hello, used), Status());
}

TEST(Handshake, StrangersAreKnownByTheirFirstByte) {
  for (const Role role : {Role::Acceptor, Role::Initiator}) {
    Handshake mine(role, role == Role::Acceptor ? server_terms() : dialer_terms());
    std::size_t used = 0;

    const Status status = mine.feed("GET / HTTP/1.1\r\nHost: x\r\n", used);

    EXPECT_NE(status.text().find("\"GET / HT\""), std::string::npos) << status.text();
    EXPECT_EQ(mine.wants(), 0u);
    EXPECT_FALSE(mine.feed("more", used).ok());
  }
}

TEST(Handshake, AnImpossibleLengthIsRefusedBeforeItIsRead) {
  Handshake dialer(Role::Initiator, dialer_terms());
  std::string hello = dialer.output();
  hello[14] = '\xff';
  hello[15] = '\xff';
  Handshake mine(Role::Acceptor, server_terms());
  std::size_t used = 0;

  const Status status = mine.feed(hello, used);

  EXPECT_NE(status.text().find("65535 bytes is impossible"), std::string::npos) << status.text();
  EXPECT_EQ(used, 16u);
}

TEST(Handshake, TermsOfTheWrongSizeAreNamed) {
  Terms terms = server_terms();
  terms.extra.assign(kMaxExtra + 1, 'x');
  EXPECT_EQ(usable(terms).code(), Code::InvalidArgument);
  terms = server_terms("short");
  EXPECT_NE(usable(terms).text().find("a job key of 5 bytes"), std::string::npos);
}

std::string unhex(std::string_view digits) {
  std::string out;
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16)));
  }
  return out;
}

TEST(Handshake, BothEndsDeriveOneSecretAndNoOtherConnectionThat) {
  Pair one(dialer_terms(kKey), server_terms(kKey)), two(dialer_terms(kKey), server_terms(kKey));
  ASSERT_EQ(one.prove(), Status());
  ASSERT_EQ(two.prove(), Status());

  EXPECT_EQ(one.initiator.secret("tls"), one.acceptor.secret("tls"));
  EXPECT_EQ(one.initiator.secret("tls").size(), 32u);
  EXPECT_NE(one.initiator.secret("tls"), two.initiator.secret("tls"));
  EXPECT_NE(one.initiator.secret("tls"), one.initiator.secret("other"));
}

TEST(Handshake, EncryptionMustBeWantedByBoth) {
  for (const bool server_wants : {false, true}) {
    Terms dialer = dialer_terms(kKey), server = server_terms(kKey);
    dialer.encrypts = !server_wants;
    server.encrypts = server_wants;
    Pair pair(dialer, server);

    const Status refused = Pair::pass(pair.initiator, pair.acceptor);
    const Status told = Pair::pass(pair.acceptor, pair.initiator);

    EXPECT_NE(refused.text().find("HCCOMM_ENCRYPT"), std::string::npos) << refused.text();
    EXPECT_NE(told.text().find("HCCOMM_ENCRYPT"), std::string::npos) << told.text();
  }
}

TEST(Handshake, EncryptionWithoutAKeyIsNamed) {
  Terms terms = server_terms();
  terms.encrypts = true;

  EXPECT_NE(usable(terms).text().find("needs a job key"), std::string::npos);
}

TEST(Handshake, ARefusalWithoutAHandshakeIsUnderstood) {
  Handshake dialer(Role::Initiator, dialer_terms(kKey));
  EXPECT_TRUE(begins_handshake(dialer.output()));
  EXPECT_FALSE(begins_handshake("hcst"));
  std::size_t used = 0;

  const Status status = dialer.feed(refusal("not today"), used);

  EXPECT_NE(status.text().find("the peer refused: not today"), std::string::npos) << status.text();
}

TEST(Crypto, HkdfGivesTheFirstVectorOfRfc5869) {
  ASSERT_EQ(crypto_available(), Status());

  const std::string out = hkdf_sha256(std::string(22, '\x0b'), unhex("000102030405060708090a0b0c"),
                                      unhex("f0f1f2f3f4f5f6f7f8f9"), 42);

  EXPECT_EQ(out, unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf3400720"
                       "8d5b887185865"));
}

TEST(Crypto, HmacGivesTheSecondVectorOfRfc4231) {
  EXPECT_EQ(hmac_sha256("Jefe", "what do ya want for nothing?"),
            unhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
}

TEST(Crypto, SecretsCompareByContentAndLength) {
  EXPECT_TRUE(same_secret("abc", "abc"));
  EXPECT_FALSE(same_secret("abc", "abd"));
  EXPECT_FALSE(same_secret("abc", "ab"));
  EXPECT_NE(random_bytes(32), random_bytes(32));
}

// A key file in a folder of its own, named by HCCOMM_KEY_FILE while it lives.
class KeyFile : public testing::Test {
 protected:
  KeyFile() {
    char folder[] = "/tmp/hccomm-key-XXXXXX";
    folder_ = mkdtemp(folder);
    path_ = folder_ + "/key";
    setenv("HCCOMM_KEY_FILE", path_.c_str(), 1);
  }
  ~KeyFile() override {
    unsetenv("HCCOMM_KEY_FILE");
    unlink(path_.c_str());
    unlink((folder_ + "/link").c_str());
    rmdir(folder_.c_str());
  }
  void write(const std::string& content, mode_t mode = 0600) {
    std::ofstream(path_) << content;
    chmod(path_.c_str(), mode);
  }
  std::string folder_, path_;
};

constexpr const char* kBase64 = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

TEST_F(KeyFile, HoldsRawBytesOrBase64) {
  write(kKey);
  EXPECT_EQ(load_job_key().take(), kKey);
  write(std::string(kBase64) + "\n");
  EXPECT_EQ(load_job_key().take(), kKey);
}

TEST_F(KeyFile, ThatOthersMayReadIsRefusedWithTheRemedy) {
  write(kKey, 0640);

  const auto key = load_job_key();

  ASSERT_FALSE(key.ok());
  EXPECT_EQ(key.status().code(), Code::InvalidArgument);
  EXPECT_NE(key.status().text().find("chmod 600 " + path_), std::string::npos);
}

TEST_F(KeyFile, ThatIsALinkAbsentOrNoKeyIsRefused) {
  EXPECT_FALSE(load_job_key().ok());
  write("too short");
  EXPECT_NE(load_job_key().status().text().find("neither 32 bytes nor base64"), std::string::npos);
  write(std::string(kBase64) + "AAAA");
  EXPECT_FALSE(load_job_key().ok());
  write(kKey);
  ASSERT_EQ(symlink(path_.c_str(), (folder_ + "/link").c_str()), 0);
  setenv("HCCOMM_KEY_FILE", (folder_ + "/link").c_str(), 1);
  EXPECT_NE(load_job_key().status().text().find("symbolic link"), std::string::npos);
  setenv("HCCOMM_KEY_FILE", folder_.c_str(), 1);
  EXPECT_NE(load_job_key().status().text().find("not a regular file"), std::string::npos);
}

TEST(KeyVariable, IsRememberedAndLeavesTheEnvironment) {
  EXPECT_EQ(load_job_key().take(), "");
  setenv("HCCOMM_KEY", "no key", 1);
  EXPECT_EQ(load_job_key().status().code(), Code::InvalidArgument);
  setenv("HCCOMM_KEY", kBase64, 1);

  EXPECT_EQ(load_job_key().take(), kKey);

  EXPECT_EQ(getenv("HCCOMM_KEY"), nullptr);
  EXPECT_EQ(load_job_key().take(), kKey);
}

}  // namespace
}  // namespace hccomm::wire
