// SPDX-License-Identifier: Apache-2.0
//
// What the staging suites share: arrays on test devices, and calls on them.
#pragma once

#include <gtest/gtest.h>

#include <numeric>

#include "plan/shape.hpp"
#include "support/array.hpp"
#include "support/cluster.hpp"

namespace hccomm::test {

using engine::Follow;
using engine::Operation;
using engine::Where;
using plan::Call;
using plan::Collective;

inline std::vector<std::int64_t> numbers(std::uint64_t count, std::int64_t first) {
  std::vector<std::int64_t> all(count);
  std::iota(all.begin(), all.end(), first);
  return all;
}

struct Outcome {
  Status status;
  std::vector<std::int64_t> input, output;
};

// One call with its buffers on `device` (nullptr: host), in place where the call says so.
inline Outcome perform(Node& node, const Call& call, const char* algorithm, TestDevice* device,
                       TestDevice* output_device, double seconds = 30) {
  plan::Group group;
  group.rank = node.rank();
  group.size = node.size();
  const std::uint64_t in = plan::input_count(call, group), out = plan::output_count(call, group);
  const bool together = plan::aliased(call, group) || call.collective == Collective::Broadcast;
  Array large(device, numbers(std::max(in, out), node.rank() * 1000));
  Array other(output_device, numbers(together ? 0 : std::min(in, out), -5));
  const bool input_is_large = in >= out;
  const std::uint64_t shift =
      !together || plan::same_shape(call.collective)
          ? 0
          : plan::canonical(call, group,
                            {0, 1, input_is_large ? plan::Space::Output : plan::Space::Input})
                .offset;
  const std::uint64_t in_at = input_is_large ? 0 : shift, out_at = input_is_large ? shift : 0;
  Array& input = together || input_is_large ? large : other;
  Array& output = together || !input_is_large ? large : other;
  const engine::Buffers buffers{{output.where(out_at), input.where(in_at)}};
  engine::Job job{recipe_of(call, node, algorithm, 512), input.data(in_at), output.data(out_at),
                  1.0, Seconds(seconds)};
  const bool staged = buffers.where[0].runtime != nullptr || buffers.where[1].runtime != nullptr;
  if (staged) job.device = &buffers;
  Outcome outcome;
  outcome.status = node.engine().run(node.context(), job);
  outcome.input = input.values();
  outcome.output = output.values();
  return outcome;
}

inline Call call_of(Collective collective, std::uint64_t count, bool in_place, int root = 0) {
  Call call;
  call.collective = collective;
  call.type = dtype::DType::I64;
  call.count = collective == Collective::Barrier ? 0 : count;
  call.root = root;
  call.in_place = in_place || collective == Collective::Broadcast;
  return call;
}

inline engine::Settings small_pool(std::size_t bytes, std::size_t segment = 4096) {
  engine::Settings settings;
  settings.staging_bytes = bytes;
  settings.staging_segment = segment;
  return settings;
}

inline engine::Settings checked(engine::Settings settings) {
  settings.check_copies = true;
  return settings;
}

// Which device each rank's buffers lie on: two vendors and the host in turn, or all on one.
inline TestDevice* of_rank(int rank, int mix, TestDevice& a, TestDevice& b) {
  if (mix == 1) return &a;
  TestDevice* const choice[] = {&a, nullptr, &b};
  return choice[rank % 3];
}

inline engine::Parcel parcel(int peer, std::uint64_t tag, Array& array, const Where& where) {
  return {peer, tag,         array.data(), array.bytes(),
          0,    Seconds(20), Follow::Soon, where.runtime != nullptr ? &where : nullptr};
}

}  // namespace hccomm::test
