// SPDX-License-Identifier: Apache-2.0
//
// The checker: right plans pass, and every way of spoiling one is found and named.
#include "plan/check.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "algorithm/algorithms.hpp"
#include "collective/collective.hpp"
#include "plan/print.hpp"

namespace hccomm::plan {
namespace {

// The plans of one call on all ranks, to be spoiled.
struct Scene {
  std::vector<Call> calls;
  std::vector<Group> groups;
  std::vector<Plan> plans;

  std::string violations() const {
    std::string all;
    for (const std::string& each :
         check(calls, groups, plans, collective::find(calls[0].collective).reference)) {
      all += each + "\n";
    }
    return all;
  }
};

Scene scene(Collective collective, const char* algorithm, int size, std::uint64_t count,
            std::uint64_t segment = 0, bool in_place = false) {
  Scene made;
  Call call;
  call.collective = collective;
  call.type = dtype::DType::F32;
  call.count = count;
  call.in_place = in_place;
  for (int rank = 0; rank < size; ++rank) {
    made.calls.push_back(call);
    made.groups.push_back({.rank = rank, .size = size});
    made.plans.push_back(
        algorithm::find(collective, algorithm)->make(call, made.groups.back(), {segment}));
  }
  return made;
}

Scene ring() { return scene(Collective::AllReduce, "ring", 4, 32, 4, true); }

// The same plan without its step `gone`, everything else kept consistent.
Plan without(const Plan& plan, std::uint32_t gone) {
  Plan left = plan;
  left.steps.clear();
  left.edges.clear();
  left.recv_steps.clear();
  left.inlets.clear();
  left.outlets.clear();
  const auto renumbered = [&](std::uint32_t id) { return id > gone ? id - 1 : id; };
  std::vector<std::uint32_t> waits(plan.steps.size());
  for (std::uint32_t id = 0; id < plan.steps.size(); ++id) {
    if (id == gone) continue;
    Step step = plan.steps[id];
    const Step& lost = plan.steps[gone];
    const bool same_way = (step.kind == Kind::Send) == (lost.kind == Kind::Send);
    if (id > gone && step.peer >= 0 && step.peer == lost.peer && same_way) --step.index;
    step.first_dependent = static_cast<std::uint32_t>(left.edges.size());
    for (std::uint32_t k = 0; k < plan.steps[id].dependents; ++k) {
      const std::uint32_t next = plan.edges[plan.steps[id].first_dependent + k];
      if (next == gone) continue;
      left.edges.push_back(renumbered(next));
      ++waits[renumbered(next)];
    }
    step.dependents = static_cast<std::uint32_t>(left.edges.size()) - step.first_dependent;
    left.steps.push_back(step);
  }
  for (std::uint32_t id = 0; id < left.steps.size(); ++id) left.steps[id].dependencies = waits[id];
  for (const Traffic& peer : traffic(left)) {
    if (peer.sent_messages > 0) left.outlets.push_back(peer.peer);
    if (peer.received_messages == 0) continue;
    Inlet inlet{peer.peer, static_cast<std::uint32_t>(left.recv_steps.size()), 0};
    for (std::uint32_t id = 0; id < left.steps.size(); ++id) {
      const Step& step = left.steps[id];
      if (step.peer != peer.peer || step.kind == Kind::Send) continue;
      left.recv_steps.push_back(id);
      ++inlet.count;
    }
    left.inlets.push_back(inlet);
  }
  return left;
}

// Takes the k-th edge out, everything else kept consistent.
Plan without_edge(const Plan& plan, std::uint32_t gone) {
  Plan left = plan;
  --left.steps[plan.edges[gone]].dependencies;
  left.edges.erase(left.edges.begin() + gone);
  for (Step& step : left.steps) {
    if (step.first_dependent > gone) {
      --step.first_dependent;
    } else if (gone < step.first_dependent + step.dependents) {
      --step.dependents;
    }
  }
  return left;
}

TEST(Check, RightPlansPass) { EXPECT_EQ(ring().violations(), ""); }

TEST(Check, EveryStepOfARingIsNeeded) {
  const Scene right = ring();
  for (std::uint32_t step = 0; step < right.plans[1].steps.size(); ++step) {
    Scene spoiled = right;
    spoiled.plans[1] = without(right.plans[1], step);
    EXPECT_NE(spoiled.violations(), "") << print(right.plans[1], right.plans[1].steps[step]);
  }
}

TEST(Check, EveryEdgeOfARingIsNeeded) {
  const Scene right = ring();
  for (std::uint32_t edge = 0; edge < right.plans[2].edges.size(); ++edge) {
    Scene spoiled = right;
    spoiled.plans[2] = without_edge(right.plans[2], edge);
    EXPECT_NE(spoiled.violations().find("does not wait for"), std::string::npos) << edge;
  }
}

TEST(Check, EverySliceOfARingMatters) {
  const Scene right = ring();
  for (std::size_t step = 0; step < right.plans[0].steps.size(); ++step) {
    Scene spoiled = right;
    Step& moved = spoiled.plans[0].steps[step];
    Slice& slice = moved.kind == Kind::Send ? moved.src : moved.dst;
    slice.offset = slice.offset == 0 ? 1 : slice.offset - 1;
    EXPECT_NE(spoiled.violations(), "") << print(right.plans[0], right.plans[0].steps[step]);
  }
}

TEST(Check, AShorterMessageIsNamedWithBothLengths) {
  Scene spoiled = ring();
  for (Step& step : spoiled.plans[0].steps) {
    if (step.kind != Kind::Send) continue;
    --step.src.count;
    break;
  }

  EXPECT_NE(
      spoiled.violations().find("message 0 from rank 0 to rank 1 has 3 elements, its receive 4"),
      std::string::npos)
      << spoiled.violations();
}

TEST(Check, AMissingMessageIsCounted) {
  Scene spoiled = scene(Collective::AllReduce, "ring", 3, 3);
  std::uint32_t last_send = 0;
  for (std::uint32_t id = 0; id < spoiled.plans[0].steps.size(); ++id) {
    if (spoiled.plans[0].steps[id].kind == Kind::Send) last_send = id;
  }
  spoiled.plans[0] = without(spoiled.plans[0], last_send);

  EXPECT_NE(spoiled.violations().find("rank 0 sends 3 messages to rank 1, which receives 4"),
            std::string::npos)
      << spoiled.violations();
}

TEST(Check, APeerThatSendsNothingIsNamed) {
  Scene spoiled = scene(Collective::AllGather, "direct", 3, 4);
  for (std::uint32_t id = 0; id < spoiled.plans[0].steps.size(); ++id) {
    const Step& step = spoiled.plans[0].steps[id];
    if (step.kind != Kind::Send || step.peer != 2) continue;
    spoiled.plans[0] = without(spoiled.plans[0], id);
    break;
  }

  EXPECT_NE(
      spoiled.violations().find("rank 2 receives 1 messages from rank 0, which sends it none"),
      std::string::npos)
      << spoiled.violations();
}

TEST(Check, SwappedPeersAreFound) {
  Scene spoiled = scene(Collective::AllToAll, "direct", 3, 4);
  std::swap(spoiled.plans[0], spoiled.plans[1]);
  EXPECT_NE(spoiled.violations(), "");

  Scene exchanged = scene(Collective::AllGather, "direct", 3, 4);
  std::vector<Step*> receives;
  for (Step& step : exchanged.plans[0].steps) {
    if (step.kind == Kind::Recv) receives.push_back(&step);
  }
  std::swap(receives[0]->dst, receives[1]->dst);
  EXPECT_NE(exchanged.violations().find("is not made of the right inputs"), std::string::npos);
}

TEST(Check, AWrongMessageNumberIsFound) {
  Scene spoiled = ring();
  for (Step& step : spoiled.plans[3].steps) {
    if (step.kind == Kind::Recv) step.index += 1;
  }

  EXPECT_NE(spoiled.violations().find("is not where the inlet says"), std::string::npos);
}

TEST(Check, AnEdgeBackwardsIsFound) {
  Scene spoiled = ring();
  spoiled.plans[0].edges.back() = 0;

  EXPECT_NE(spoiled.violations().find("does not lead to a later step"), std::string::npos);
}

// One rank's plan made by hand, for what no algorithm does.
Scene by_hand(Collective collective, int size, std::uint64_t count, bool in_place,
              const std::function<void(Builder&, int rank)>& write) {
  Scene made;
  Call call;
  call.collective = collective;
  call.count = count;
  call.in_place = in_place;
  for (int rank = 0; rank < size; ++rank) {
    made.calls.push_back(call);
    made.groups.push_back({.rank = rank, .size = size});
    Builder steps(call, made.groups.back());
    write(steps, rank);
    made.plans.push_back(steps.take("by hand"));
  }
  return made;
}

TEST(Check, ADeadlockOfTwoThatSendBeforeTheyReceiveInPlaceIsFound) {
  const Scene stuck = by_hand(Collective::AllReduce, 2, 8, true, [](Builder& steps, int rank) {
    steps.send(1 - rank, {0, 8, Space::Output});
    steps.recv_reduce(1 - rank, {0, 8, Space::Output});
  });

  EXPECT_NE(stuck.violations().find("deadlock: message 0 from rank 0 to rank 1 never moves: the "
                                    "sender is ready, the receiver is not ready"),
            std::string::npos)
      << stuck.violations();
}

TEST(Check, AMessageThatWouldHaveToOvertakeAnotherIsADeadlock) {
  const Slice low{0, 4, Space::Output}, high{4, 4, Space::Output};
  const Scene crossed = by_hand(Collective::AllReduce, 2, 8, true, [&](Builder& steps, int rank) {
    if (rank == 0) {
      steps.recv(1, low);
      steps.send(1, low);   // message 0 waits for what rank 1 sends
      steps.send(1, high);  // message 1 could go at once
    } else {
      const Slice first = steps.scratch(4), second = steps.scratch(4);
      steps.recv(0, first);
      steps.recv(0, second);
      steps.send(0, second);  // which waits for message 1
    }
  });

  EXPECT_NE(crossed.violations().find("deadlock: message 0 from rank 0 to rank 1"),
            std::string::npos)
      << crossed.violations();
}

TEST(Check, ReadingWhatIsNotThereIsFound) {
  const Scene broadcast = by_hand(Collective::Broadcast, 2, 4, true, [](Builder& steps, int rank) {
    if (rank == 1) steps.send(0, {0, 4, Space::Output});  // only rank 0 has the data
    if (rank == 0) steps.recv(1, {0, 4, Space::Output});
  });
  EXPECT_NE(broadcast.violations().find("reads what nothing has written"), std::string::npos);

  const Scene scratch = by_hand(Collective::AllReduce, 2, 4, true, [](Builder& steps, int) {
    steps.copy({0, 4, Space::Output}, steps.scratch(4));
  });
  EXPECT_NE(scratch.violations().find("reads what nothing has written"), std::string::npos);
}

TEST(Check, AnOutputThatNobodyWritesIsFound) {
  const Scene lazy = by_hand(Collective::Broadcast, 2, 4, false, [](Builder&, int) {});

  EXPECT_NE(lazy.violations().find("rank 1: output[0] is never written"), std::string::npos);
}

TEST(Check, AContributionTwiceIsFound) {
  const Scene twice = by_hand(Collective::AllReduce, 2, 4, false, [](Builder& steps, int rank) {
    const Slice all{0, 4, Space::Output}, own{0, 4, Space::Input};
    steps.send(1 - rank, own);
    steps.recv_reduce(1 - rank, all, own);
    steps.reduce(all, {all, own});
  });

  EXPECT_NE(twice.violations().find("is not made of the right inputs, each once"),
            std::string::npos);
}

TEST(Check, SumsInADifferentOrderOnTwoRanksAreFound) {
  const auto plans = [](bool alike) {
    return by_hand(Collective::AllReduce, 2, 4, false, [alike](Builder& steps, int rank) {
      const Slice own{0, 4, Space::Input}, other = steps.scratch(4);
      steps.send(1 - rank, own);
      steps.recv(1 - rank, other);
      const bool swap = alike && rank == 1;
      steps.reduce({0, 4, Space::Output}, swap ? std::vector{other, own} : std::vector{own, other});
    });
  };

  EXPECT_EQ(plans(true).violations(), "");
  EXPECT_NE(plans(false).violations().find("is not computed as on rank 0"), std::string::npos);
}

TEST(Check, WritingTheCallersInputIsFound) {
  const Scene rude = by_hand(Collective::AllReduce, 1, 4, false, [](Builder& steps, int) {
    const Slice own{0, 4, Space::Input}, twice = steps.scratch(4);
    steps.reduce(twice, {own, own});
    steps.copy(own, twice);
  });

  EXPECT_NE(rude.violations().find("writes the caller's input"), std::string::npos);
}

TEST(Check, OverlappingOperandsAreFound) {
  const Scene overlap = by_hand(Collective::AllReduce, 1, 4, true, [](Builder& steps, int) {
    steps.copy({1, 3, Space::Output}, {0, 3, Space::Output});
  });

  EXPECT_NE(overlap.violations().find("overlaps its operand"), std::string::npos);
}

TEST(Check, ABarrierThatDoesNotHearOfEveryoneIsFound) {
  const Scene shy = by_hand(Collective::Barrier, 3, 0, false, [](Builder& steps, int rank) {
    steps.signal((rank + 1) % 3);
    steps.await((rank + 2) % 3);
  });

  EXPECT_NE(shy.violations().find("rank 0 may leave before rank 1 has entered"), std::string::npos)
      << shy.violations();
}

TEST(Print, OneLineAStepAndTheTraffic) {
  const Plan plan = scene(Collective::AllReduce, "ring", 2, 4, 0, true).plans[0];

  EXPECT_EQ(
      print(plan),
      "ring: 4 steps, 0 elements of scratch\n"
      "     0  send output[0..2) to rank 1 (message 0); then 3\n"
      "     1  reduce output[2..4) = output[2..4) op received from rank 1 (message 0); then 2\n"
      "     2  send output[2..4) to rank 1 (message 1)\n"
      "     3  receive output[0..2) from rank 1 (message 1)\n"
      "  rank 1: sends 2 messages of 4 elements, receives 2 of 4\n");
}

}  // namespace
}  // namespace hccomm::plan
