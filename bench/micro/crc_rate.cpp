// SPDX-License-Identifier: Apache-2.0
//
// What HCCOMM_INTEGRITY can cost at least: the rate of CRC-32C alone over buffers that fit the
// first, the second and no cache, beside memcpy, and of a memcpy that is followed by the CRC of
// what it wrote, as a link receives. One thread; GB/s of payload.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "base/crc32c.hpp"

namespace {

double rate(std::size_t bytes, const std::function<void()>& once) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int round = 0; round < 7; ++round) {
    const std::size_t times = (std::size_t{64} << 20) / bytes + 1;
    const auto start = Clock::now();
    for (std::size_t each = 0; each < times; ++each) once();
    const std::chrono::duration<double> took = Clock::now() - start;
    best = std::max(best, static_cast<double>(bytes * times) / took.count() / 1e9);
  }
  return best;
}

}  // namespace

int main() {
  std::printf("CRC-32C by %s, GB/s\n%10s %8s %8s %8s\n", hccomm::crc32c_kind(), "bytes", "crc",
              "memcpy", "both");
  volatile std::uint32_t sink = 0;
  for (const std::size_t bytes : {std::size_t{16} << 10, std::size_t{256} << 10,
                                  std::size_t{512} << 10, std::size_t{64} << 20}) {
    std::vector<unsigned char> from(bytes, 1), to(bytes, 2);
    const auto crc = [&] { sink = hccomm::crc32c(0, to.data(), bytes); };
    const auto copy = [&] { std::memcpy(to.data(), from.data(), bytes); };
    std::printf("%10zu %8.1f %8.1f %8.1f\n", bytes, rate(bytes, crc), rate(bytes, copy),
                rate(bytes, [&] {
                  copy();
                  crc();
                }));
  }
  return 0;
}
