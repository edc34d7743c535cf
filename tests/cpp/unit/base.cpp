// SPDX-License-Identifier: Apache-2.0
//
// The ground everyone stands on: errors, deadlines, settings, descriptors, optional libraries.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <set>
#include <string>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/crc32c.hpp"
#include "base/dynlib.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "base/log.hpp"
#include "base/text.hpp"
#include "base/unique_fd.hpp"

namespace hccomm {
namespace {

// Sets a variable for one test and gives the old value back.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) {
      had_ = true;
      old_ = old;
    }
    setenv(name, value, 1);
  }
  ~Setting() {
    if (had_) {
      setenv(name_, old_.c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

// What a call that must be refused said.
template <typename Function>
Status refusal(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.status();
  }
  return {};
}

bool says(const Status& status, const std::string& part) {
  return status.text().find(part) != std::string::npos;
}

// ---- errors

TEST(Status, IsOkUnlessItSaysOtherwise) {
  const Status fine;
  const Status lost(Code::PeerLost, "rank 3 is gone", 3);

  EXPECT_TRUE(fine.ok());
  EXPECT_EQ(fine.rank(), -1);
  EXPECT_FALSE(lost.ok());
  EXPECT_EQ(lost.code(), Code::PeerLost);
  EXPECT_EQ(lost.rank(), 3);
  EXPECT_EQ(lost.text(), "rank 3 is gone");
}

TEST(Status, OfABrokenConnectionIsPeerLost) {
  for (const int err : {EPIPE, ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ECONNABORTED}) {
    const Status status = Status::from_errno(err, "send to rank 1");

    EXPECT_EQ(status.code(), Code::PeerLost) << status.text();
    EXPECT_TRUE(status.text().starts_with("send to rank 1: ")) << status.text();
  }
}

TEST(Status, OfAnyOtherSystemErrorIsSystem) {
  const Status status = Status::from_errno(ENOMEM, "map the ring");

  EXPECT_EQ(status.code(), Code::System);
  EXPECT_TRUE(says(status, "memory")) << status.text();
}

TEST(Status, OfDescriptorsThatHaveRunOutNamesTheLimit) {
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);

  const Status ours = Status::from_errno(EMFILE, "dial");
  const Status machine = Status::from_errno(ENFILE, "dial");

  EXPECT_EQ(ours.code(), Code::System);
  EXPECT_TRUE(says(ours, text("raise `ulimit -n`, ", limit.rlim_cur, " now").c_str()))
      << ours.text();
  EXPECT_TRUE(says(machine, "fs.file-max")) << machine.text();
}

TEST(Code, HasANameForEachNumberOfTheAbi) {
  std::set<std::string> names;

  for (int number = 0; number <= 9; ++number) names.insert(name(static_cast<Code>(number)));

  EXPECT_EQ(names.size(), 10u);
  EXPECT_EQ(names.count("unknown"), 0u);
  EXPECT_STREQ(name(static_cast<Code>(10)), "unknown");
}

TEST(Result, HoldsAValueOrTheReasonWhyThereIsNone) {
  const Result<int> good(7);
  const Result<int> bad(Status(Code::Unavailable, "no fabric here"));

  EXPECT_TRUE(good.ok());
  EXPECT_FALSE(static_cast<bool>(bad));
  EXPECT_EQ(Result<int>(good).take(), 7);
  EXPECT_EQ(bad.status().text(), "no fabric here");
  EXPECT_EQ(refusal([&] { (void)Result<int>(bad).take(); }).code(), Code::Unavailable);
}

TEST(CheckDeathTest, StopsTheProcessAndSaysWhy) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");

  EXPECT_DEATH(HCCOMM_CHECK(1 + 1 == 3, "sums are sums"), "base.cpp.*sums are sums.*1 \\+ 1 == 3");
}

TEST(Text, JoinsItsParts) {
  EXPECT_EQ(text("rank ", 3, " of ", 4u, ": ", std::string("gone")), "rank 3 of 4: gone");
}

// ---- JSON

TEST(Json, NestsAndKeepsTheOrderOfItsMembers) {
  Json peers = Json::array();
  peers.push(Json::object().add("rank", 1).add("host", "beta")).push(Json::object());

  const Json all = Json::object().add("size", 2u).add("idle", false).add("peers", peers);

  EXPECT_EQ(all.str(), R"({"size":2,"idle":false,"peers":[{"rank":1,"host":"beta"},{}]})");
  EXPECT_EQ(Json::array().str(), "[]");
}

TEST(Json, EscapesWhatATextMayHold) {
  EXPECT_EQ(json_quote("a \"b\" \\ c\n\x01"), R"("a \"b\" \\ c\u000a\u0001")");
  EXPECT_EQ(json_quote("ä"), "\"ä\"");
}

// ---- deadlines

TEST(Deadline, OfZeroOrLessHasPassed) {
  EXPECT_TRUE(Deadline::after(Seconds(0)).passed());
  EXPECT_TRUE(Deadline::after(Seconds(-5)).passed());
  EXPECT_EQ(Deadline::after(Seconds(-5)).left_ms(), 0);
}

TEST(Deadline, OfAHugeTimeIsNever) {
  const Deadline never = Deadline::after(Seconds(1e18));

  EXPECT_FALSE(never.finite());
  EXPECT_FALSE(never.passed());
  EXPECT_EQ(never.left_ms(250), 250);
  EXPECT_GE(never.left().count(), 3e8);
}

TEST(Deadline, CountsDownAndCapsItsMilliseconds) {
  const Deadline later = Deadline::after(Seconds(3600));

  EXPECT_TRUE(later.finite());
  EXPECT_FALSE(later.passed());
  EXPECT_EQ(later.left_ms(1000), 1000);
  EXPECT_LE(later.left().count(), 3600);
  EXPECT_GT(later.left_ms(10'000'000), 1000);
}

// ---- settings

TEST(Config, TableHasUniqueNamesWithMeanings) {
  std::set<std::string> names;

  for (const config::Setting& each : config::settings()) {
    EXPECT_TRUE(std::string(each.name).starts_with("HCCOMM_")) << each.name;
    EXPECT_NE(std::string(each.kind), "") << each.name;
    EXPECT_TRUE(std::string(each.meaning).ends_with(".")) << each.name;
    EXPECT_TRUE(names.insert(each.name).second) << each.name << " is listed twice";
  }
}

TEST(Config, AnUnsetOrEmptyVariableGivesItsDefault) {
  const Setting empty("HCCOMM_TIMEOUT", "");

  EXPECT_FALSE(config::is_set("HCCOMM_TIMEOUT"));
  EXPECT_EQ(config::seconds("HCCOMM_TIMEOUT").count(), 300);
}

TEST(Config, ReadsSizesInPowersOf1024) {
  EXPECT_EQ(config::parse_bytes("0", "n"), 0u);
  EXPECT_EQ(config::parse_bytes("4096", "n"), 4096u);
  EXPECT_EQ(config::parse_bytes("64K", "n"), 65536u);
  EXPECT_EQ(config::parse_bytes("1m", "n"), 1048576u);
  EXPECT_EQ(config::parse_bytes("3G", "n"), 3221225472u);
}

TEST(Config, RefusesASizeThatIsNone) {
  for (const char* value : {"", "K", "12Q", "1KB", "-1", " 4K", "4 K", "1.5M", "0x10",
                            "99999999999999999999", "18446744073709551615K"}) {
    const Status status = refusal([&] { config::parse_bytes(value, "HCCOMM_EAGER"); });

    EXPECT_EQ(status.code(), Code::InvalidArgument) << value;
    EXPECT_TRUE(says(status, text("HCCOMM_EAGER=\"", value, "\""))) << status.text();
  }
}

TEST(Config, ReadsNumbersSecondsAndLists) {
  const Setting spin("HCCOMM_SPIN_US", "-12");
  const Setting timeout("HCCOMM_TIMEOUT", "2.5");
  const Setting transports("HCCOMM_TRANSPORTS", " shm , tcp,,");

  EXPECT_EQ(config::integer("HCCOMM_SPIN_US"), -12);
  EXPECT_EQ(config::seconds("HCCOMM_TIMEOUT").count(), 2.5);
  EXPECT_EQ(config::list("HCCOMM_TRANSPORTS"), (std::vector<std::string>{"shm", "tcp"}));
}

TEST(Config, RefusesSecondsThatAreNoPositiveNumber) {
  for (const char* value : {"0", "-3", "soon", "5s", "nan"}) {
    const Setting timeout("HCCOMM_TIMEOUT", value);

    const Status status = refusal([] { config::seconds("HCCOMM_TIMEOUT"); });

    EXPECT_EQ(status.code(), Code::InvalidArgument) << value;
    EXPECT_TRUE(says(status, "positive number of seconds")) << status.text();
  }
}

TEST(Config, ChecksTheValuesOfAllVariablesAtOnce) {
  EXPECT_TRUE(refusal(config::check_all).ok());
  {
    const Setting word("HCCOMM_AUTH", "require");
    EXPECT_TRUE(refusal(config::check_all).ok());
  }
  const Setting wrong("HCCOMM_AUTH", "perhaps");

  const Status status = refusal(config::check_all);

  EXPECT_EQ(status.code(), Code::InvalidArgument);
  EXPECT_TRUE(says(status, "HCCOMM_AUTH=\"perhaps\"")) << status.text();
  EXPECT_TRUE(says(status, "auto|require|off")) << status.text();
}

TEST(Config, RefusesAWordThatHoldsTheWholeChoice) {
  const Setting wrong("HCCOMM_AUTH", "auto|require");

  EXPECT_EQ(refusal(config::check_all).code(), Code::InvalidArgument);
}

TEST(Config, RefusesAVariableThatDoesNotExist) {
  const Setting typing_error("HCCOMM_TIMEOUTS", "3");

  const Status status = refusal(config::check_all);

  EXPECT_EQ(status.code(), Code::InvalidArgument);
  EXPECT_TRUE(says(status, "HCCOMM_TIMEOUTS")) << status.text();
}

TEST(Config, IgnoresTheVariablesOfTestsAndTools) {
  const Setting test("HCCOMM_TEST_ANYTHING", "x");
  const Setting python("HCCOMM_PY_ANYTHING", "x");

  EXPECT_TRUE(refusal(config::check_all).ok());
}

TEST(Config, AskingForASettingOutsideTheTableIsABug) {
  EXPECT_EQ(refusal([] { config::raw("HCCOMM_NONE"); }).code(), Code::Internal);
}

TEST(Config, LogLevelFallsBackToWarnings) {
  const Setting level("HCCOMM_LOG", "shout");

  EXPECT_EQ(config::log_level(), log::Level::Warn);
}

// ---- descriptors

bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

TEST(UniqueFd, ClosesItsDescriptor) {
  const int raw = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(raw, 0);

  {
    const UniqueFd owner(raw);
  }

  EXPECT_FALSE(is_open(raw));
}

TEST(UniqueFd, MovesAndReleasesWithoutClosing) {
  UniqueFd first(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int raw = first.get();

  UniqueFd second(std::move(first));
  UniqueFd third;
  third = std::move(second);

  EXPECT_EQ(third.get(), raw);
  EXPECT_FALSE(static_cast<bool>(UniqueFd()));
  EXPECT_TRUE(is_open(raw));
  EXPECT_EQ(third.release(), raw);
  EXPECT_FALSE(static_cast<bool>(third));
  EXPECT_TRUE(is_open(raw));
  close(raw);
}

// What a forked child answers: exit status 0 for true.
template <typename Question>
bool holds_in_child(Question&& question) {
  const pid_t child = fork();
  if (child == 0) _exit(question() ? 0 : 1);
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

TEST(UniqueFd, IsClosedInAForkedChildAndLivesOnInTheParent) {
  const UniqueFd owner(open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd given(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int raw = given.release();

  EXPECT_TRUE(holds_in_child([&] { return !is_open(owner.get()) && is_open(raw); }));

  EXPECT_TRUE(is_open(owner.get()));
  close(raw);
}

TEST(UniqueFd, LeavesANumberAloneThatTheChildHasGivenToAnother) {
  UniqueFd owner(open("/dev/null", O_RDONLY | O_CLOEXEC));

  EXPECT_TRUE(holds_in_child([&] {
    const int again = open("/dev/null", O_RDONLY | O_CLOEXEC);  // the lowest free number
    const int raw = owner.get();
    owner.reset();
    return again == raw && is_open(again);
  }));
}

// ---- checks

TEST(Crc32c, GivesThePublishedValues) {
  const std::string zeros(32, '\0'), ones(32, '\xff');  // RFC 3720, appendix B.4

  EXPECT_EQ(crc32c(0, "123456789", 9), 0xe3069283u);
  EXPECT_EQ(crc32c(0, zeros.data(), zeros.size()), 0x8a9136aau);
  EXPECT_EQ(crc32c(0, ones.data(), ones.size()), 0x62a8ab43u);
}

TEST(Crc32c, IsTheSameByInstructionByTablesAndInPieces) {
  std::string bytes;
  for (int i = 0; i < 160'000; ++i) bytes.push_back(static_cast<char>(i * 7 + (i >> 7)));

  for (std::size_t length = 0; length < bytes.size(); length += 389) {
    const std::size_t cut = length / 3;
    const std::uint32_t whole = crc32c(0, bytes.data() + 1, length - (length > 0));
    const std::uint32_t tables =
        detail::crc32c_by_tables(0, bytes.data() + 1, length - (length > 0));
    ASSERT_EQ(whole, tables) << length;
    ASSERT_EQ(crc32c(crc32c(0, bytes.data(), cut), bytes.data() + cut, length - cut),
              crc32c(0, bytes.data(), length));
  }
}

// Folded and by the instruction at once go 48 KiB together, on some processors.
TEST(Crc32c, IsTheSameByTablesForEveryLengthAndAlignment) {
  std::string bytes;
  for (int i = 0; i < 110'000; ++i) bytes.push_back(static_cast<char>(i * 11 + (i >> 5)));

  for (const std::size_t first : {0, 48 << 10, 96 << 10}) {
    for (std::size_t length = first; length <= first + 4096; length += first == 0 ? 1 : 41) {
      const char* const at = bytes.data() + length % 67;
      ASSERT_EQ(crc32c(9, at, length), detail::crc32c_by_tables(9, at, length)) << length;
    }
  }
}

// ---- libraries that may be absent

TEST(DynamicLibrary, FindsWhatIsThereByAnyOfItsNames) {
  const Result<DynamicLibrary> libc = DynamicLibrary::open({"libhccomm_nobody.so", "libc.so.6"});

  ASSERT_TRUE(libc.ok());
  DynamicLibrary library = Result<DynamicLibrary>(libc).take();
  EXPECT_NE(library.path().find("libc.so.6"), std::string::npos);
  const auto length = library.find_as<std::size_t(const char*)>("strlen");
  ASSERT_NE(length, nullptr);
  EXPECT_EQ(length("four"), 4u);
  EXPECT_EQ(library.find("hccomm_no_such_symbol"), nullptr);
  EXPECT_EQ(library.find("strlen", "HCCOMM_NO_SUCH_VERSION"), nullptr);
}

TEST(DynamicLibrary, SaysWhyNoneOfTheNamesCouldBeLoaded) {
  const Result<DynamicLibrary> nobody = DynamicLibrary::open({"libhccomm_nobody.so"});

  ASSERT_FALSE(nobody.ok());
  EXPECT_EQ(nobody.status().code(), Code::Unavailable);
  EXPECT_TRUE(says(nobody.status(), "libhccomm_nobody.so")) << nobody.status().text();
}

TEST(DynamicLibrary, WithoutANameIsRefused) {
  EXPECT_EQ(DynamicLibrary::open({}).status().code(), Code::Unavailable);
}

}  // namespace
}  // namespace hccomm
