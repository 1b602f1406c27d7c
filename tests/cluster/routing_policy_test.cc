#include "router/routing_policy.h"

#include <gtest/gtest.h>

#include <random>

namespace ultraspeed::router {
namespace {

WorkerCandidate Ready(int64_t own) {
  return {.eligible = true,
          .load_is_stale = false,
          .other_requests = 0,
          .own_requests = own,
          .max_running_requests = 8};
}

TEST(RoutingPolicy, NoEligibleWorkerIsNoChoice) {
  EXPECT_EQ(ChooseWorker({}, 0), std::nullopt);
  WorkerCandidate worker = Ready(0);
  worker.eligible = false;
  EXPECT_EQ(ChooseWorker({worker, worker}, 7), std::nullopt);
}

TEST(RoutingPolicy, TakesTheLeastLoaded) {
  EXPECT_EQ(ChooseWorker({Ready(3), Ready(1), Ready(2)}, 0), 1);
}

TEST(RoutingPolicy, CountsTheRequestsOfOtherRoutersToo) {
  WorkerCandidate shared = Ready(0);
  shared.other_requests = 2;
  EXPECT_EQ(ChooseWorker({shared, Ready(1)}, 0), 1);
  EXPECT_EQ(ChooseWorker({shared, Ready(3)}, 0), 0);
}

TEST(RoutingPolicy, TiesGoRound) {
  const std::vector<WorkerCandidate> tied = {Ready(1), Ready(1), Ready(1)};
  for (uint64_t turn = 0; turn < 9; ++turn)
    EXPECT_EQ(ChooseWorker(tied, turn), static_cast<int>(turn % 3));
}

TEST(RoutingPolicy, AStaleReportLosesToAnyFreshOne) {
  WorkerCandidate stale = Ready(0);
  stale.load_is_stale = true;
  EXPECT_EQ(ChooseWorker({stale, Ready(100)}, 0), 1);
  EXPECT_EQ(ChooseWorker({stale, stale}, 1), 1);
}

TEST(RoutingPolicy, AFullWorkerLosesToOneWithAFreeSlot) {
  WorkerCandidate small = Ready(2), large = Ready(5);
  small.max_running_requests = 2;
  large.max_running_requests = 64;
  EXPECT_EQ(ChooseWorker({small, large}, 0), 1);
}

TEST(RoutingPolicy, TheChoiceIsEligibleAndNoOtherIsBetter) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    std::vector<WorkerCandidate> candidates(random() % 6);
    for (WorkerCandidate& one : candidates) {
      one = {.eligible = random() % 4 != 0,
             .load_is_stale = false,
             .other_requests = static_cast<int64_t>(random() % 3),
             .own_requests = static_cast<int64_t>(random() % 5),
             .max_running_requests = 0};
    }
    const auto chosen = ChooseWorker(candidates, random());
    for (const WorkerCandidate& one : candidates) {
      if (!one.eligible) continue;
      ASSERT_TRUE(chosen.has_value());
      ASSERT_TRUE(candidates[*chosen].eligible);
      ASSERT_LE(CandidateLoad(candidates[*chosen]), CandidateLoad(one));
    }
  }
}

}  // namespace
}  // namespace ultraspeed::router
