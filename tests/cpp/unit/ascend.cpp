// SPDX-License-Identifier: Apache-2.0
//
// What is special to ACL: contexts per thread, copies off 64 bytes, events of older releases.
// Against the fake libascendcl, which refuses what ACL would silently get wrong.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "support/fakes.hpp"

namespace hccomm::device {

using test::comes;
using test::Fake;
using test::fake_path;

static std::unique_ptr<Runtime> open(const std::string& fake) {
  setenv("HCCOMM_ASCEND_LIB", fake_path(fake).c_str(), 1);
  auto found = ascend_device().probe();
  unsetenv("HCCOMM_ASCEND_LIB");
  return std::move(found).take();
}

TEST(Ascend, RecordsAnEventAgainWithReleasesThatNeedAReset) {
  const Fake fake("ascend_old");
  const auto ascend = open("ascend_old");
  const Event event = std::move(ascend->event_create(0)).take();
  const Stream stream = std::move(ascend->stream_create(0)).take();

  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(ascend->event_record(event, stream).ok());
    ASSERT_TRUE(ascend->stream_wait(stream, event).ok());
    ASSERT_TRUE(comes(*ascend, event));
  }

  ascend->event_destroy(event);
  ascend->stream_destroy(stream);
  EXPECT_EQ(fake.count("misuses"), 0);
  EXPECT_EQ(fake.count("events"), 0);
}

TEST(Ascend, WorksOnAThreadThatNeverHadAContext) {
  const Fake fake("ascend");
  const auto ascend = open("ascend");
  bool worked = false;

  std::thread([&] {
    auto memory = ascend->host_allocate(1, 4096);
    worked = memory.ok();
    if (memory.ok()) ascend->host_free(1, memory.value());
  }).join();

  EXPECT_TRUE(worked);
  EXPECT_EQ(fake.count("misuses"), 0);
}

TEST(Ascend, CopiesOffItsAlignmentInPlaceOfFailingSilently) {
  const Fake fake("ascend");
  const auto ascend = open("ascend");
  const Stream stream = std::move(ascend->stream_create(0)).take();
  const Place place = std::move(ascend->allocate(0, 4096)).take();
  auto* host = static_cast<char*>(std::move(ascend->host_allocate(0, 4096)).take());
  std::memset(host, 'a', 4096);

  ASSERT_TRUE(ascend->copy_in(stream, {place.handle, 7}, host + 3, 100).ok());
  ASSERT_TRUE(ascend->copy_out(stream, host + 1000, {place.handle, 7}, 100).ok());

  EXPECT_EQ(ascend->alignment(), 64u);
  EXPECT_EQ(host[1099], 'a');
  ascend->release(0, place);
  ascend->stream_destroy(stream);
  ascend->host_free(0, host);
  EXPECT_EQ(fake.count("misuses"), 0);
}

TEST(Ascend, SaysThatADeviceMayBeLost) {
  const Fake fake("ascend");
  const auto ascend = open("ascend");
  fake.set("fail=CreateStream:1:507011");

  auto stream = ascend->stream_create(1);

  ASSERT_FALSE(stream.ok());
  EXPECT_NE(stream.status().text().find("ascend:1: aclrtCreateStream failed"), std::string::npos);
  EXPECT_NE(stream.status().text().find("restart the rank"), std::string::npos);
  EXPECT_FALSE(ascend->health(1).ok());
  EXPECT_TRUE(ascend->health(0).ok());
}

}  // namespace hccomm::device
