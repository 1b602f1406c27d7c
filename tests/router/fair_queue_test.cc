#include "router/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kNow = absl::Seconds(1000);

class FairQueueTest : public testing::Test {
 protected:
  uint64_t Push(FairQueue& queue, const QueuedRequest& request, absl::Duration now = kNow) {
    const auto ticket = queue.Push(request, now);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    queue.CheckIntegrity();
    tenants_[*ticket] = request.tenant;
    return *ticket;
  }
  uint64_t PopTicket(FairQueue& queue, bool standard = true, bool ultraspeed = true,
                     absl::Duration now = kNow) {
    const auto turn = queue.Pop(standard, ultraspeed, now);
    queue.CheckIntegrity();
    return turn ? turn->ticket : 0;
  }
  // Tenants in the order of their turns.
  std::vector<std::string> PopTenants(FairQueue& queue, int count) {
    std::vector<std::string> order;
    for (int i = 0; i < count; ++i) order.push_back(tenants_[PopTicket(queue)]);
    return order;
  }

  std::map<uint64_t, std::string> tenants_;
};

QueuedRequest Of(const std::string& tenant, int64_t tokens = 100, Tier tier = Tier::kStandard) {
  return {.tenant = tenant, .tier = tier, .tokens = tokens};
}

TEST_F(FairQueueTest, TenantsTakeTurnsHoweverManyRequestsOneHas) {
  FairQueue queue({});
  for (int i = 0; i < 20; ++i) Push(queue, Of("flood"));
  for (int i = 0; i < 3; ++i) Push(queue, Of("a"));
  Push(queue, Of("b"));
  EXPECT_THAT(PopTenants(queue, 8),
              ElementsAre("flood", "a", "b", "flood", "a", "flood", "a", "flood"));
}

TEST_F(FairQueueTest, SharesCountTokensNotRequests) {
  FairQueue queue({});
  for (int i = 0; i < 60; ++i) {
    Push(queue, Of("large", 1000));
    Push(queue, Of("small", 100));
  }
  std::map<std::string, int> turns;
  for (int i = 0; i < 55; ++i) ++turns[tenants_[PopTicket(queue)]];
  EXPECT_NEAR(turns["large"], 5, 1);
  EXPECT_NEAR(turns["small"], 50, 1);
}

TEST_F(FairQueueTest, WeightsScaleTheShare) {
  FairQueue queue({});
  for (int i = 0; i < 100; ++i) {
    QueuedRequest heavy = Of("heavy");
    heavy.weight = 3;
    Push(queue, heavy);
    Push(queue, Of("light"));
  }
  std::map<std::string, int> turns;
  for (int i = 0; i < 80; ++i) ++turns[tenants_[PopTicket(queue)]];
  EXPECT_NEAR(turns["heavy"], 60, 1);
}

TEST_F(FairQueueTest, ATenantThatPausedGetsNoCredit) {
  FairQueue queue({});
  for (int i = 0; i < 200; ++i) Push(queue, Of("steady"));
  Push(queue, Of("pauses"));
  PopTenants(queue, 100);
  for (int i = 0; i < 50; ++i) Push(queue, Of("pauses"));
  std::map<std::string, int> turns;
  for (const std::string& tenant : PopTenants(queue, 40)) ++turns[tenant];
  EXPECT_NEAR(turns["pauses"], 20, 1);
}

TEST_F(FairQueueTest, InsideATenantEarliestDeadlineThenPriorityThenArrival) {
  FairQueue queue({});
  const auto push = [&](absl::Duration deadline, int priority) {
    QueuedRequest request = Of("a");
    request.deadline = deadline;
    request.priority = priority;
    return Push(queue, request);
  };
  const uint64_t none = push(absl::InfiniteDuration(), 0);
  const uint64_t none_again = push(absl::InfiniteDuration(), 0);
  const uint64_t urgent = push(absl::InfiniteDuration(), 5);
  const uint64_t late = push(kNow + absl::Seconds(30), 0);
  const uint64_t soon = push(kNow + absl::Seconds(5), -5);
  for (const uint64_t expected : {soon, late, urgent, none, none_again})
    EXPECT_EQ(PopTicket(queue), expected);
}

TEST_F(FairQueueTest, UltraspeedGoesFirstAndStandardHasAFloor) {
  FairQueue queue({.standard_floor_turns = 8});
  for (int i = 0; i < 64; ++i) {
    Push(queue, Of(absl::StrCat("u", i), 100, Tier::kUltraspeed));
    Push(queue, Of(absl::StrCat("s", i)));
  }
  std::string order;
  for (int i = 0; i < 24; ++i) {
    const auto turn = queue.Pop(true, true, kNow);
    order += turn->tier == Tier::kUltraspeed ? 'u' : 's';
  }
  EXPECT_EQ(order, "uuuuuuusuuuuuuusuuuuuuus");
}

TEST_F(FairQueueTest, ABandThatMayNotGoWaits) {
  FairQueue queue({});
  const uint64_t standard = Push(queue, Of("a"));
  EXPECT_EQ(PopTicket(queue, false, true), 0u);  // the free place is kept for ultraspeed
  const uint64_t ultraspeed = Push(queue, Of("a", 100, Tier::kUltraspeed));
  EXPECT_EQ(PopTicket(queue, false, true), ultraspeed);
  EXPECT_EQ(PopTicket(queue, true, false), standard);
}

TEST_F(FairQueueTest, CancelledRequestsLeaveWithoutACharge) {
  FairQueue queue({});
  std::vector<uint64_t> tickets;
  for (int i = 0; i < 10; ++i) tickets.push_back(Push(queue, Of("a", 1'000'000)));
  const uint64_t last = Push(queue, Of("a"));
  Push(queue, Of("b"));
  for (const uint64_t ticket : tickets) EXPECT_TRUE(queue.Remove(ticket));
  EXPECT_FALSE(queue.Remove(tickets[0]));
  EXPECT_EQ(PopTicket(queue), last);
  EXPECT_EQ(queue.size(), 1);
  EXPECT_EQ(queue.bytes(), 0);
}

TEST_F(FairQueueTest, AFloodLeavesRoomForTheOthers) {
  FairQueue queue({.requests_max = 100});
  int accepted = 0;
  absl::Status refused;
  while (refused.ok()) {
    refused = queue.Push(Of("flood"), kNow).status();
    accepted += refused.ok();
  }
  EXPECT_EQ(accepted, 25);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(refused.message()),
      HasSubstr("25 requests of this tenant wait, at most 25 of the 100 in all; retry after"));
  // Many floods: each newcomer still finds a place, until there is none at all.
  for (int tenant = 0; tenant < 6; ++tenant) {
    for (int i = 0; i < 100; ++i) (void)queue.Push(Of(absl::StrCat("flood", tenant)), kNow);
  }
  EXPECT_LT(queue.size(), 100);
  EXPECT_TRUE(queue.Push(Of("quiet"), kNow).ok());
  for (int i = 0; queue.size() < 100 && i < 100; ++i)
    ASSERT_TRUE(queue.Push(Of(absl::StrCat("one", i)), kNow).ok());
  EXPECT_THAT(std::string(queue.Push(Of("last"), kNow).status().message()),
              HasSubstr("100 requests wait, at most 100"));
}

TEST_F(FairQueueTest, BytesAreBoundedToo) {
  FairQueue queue({.bytes_max = 1000});
  const auto push = [&](const std::string& tenant, int64_t bytes) {
    QueuedRequest request = Of(tenant);
    request.bytes = bytes;
    return queue.Push(request, kNow).status();
  };
  EXPECT_TRUE(push("a", 200).ok());
  EXPECT_EQ(push("a", 51).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(push("a", 50).ok());
  for (const char* tenant : {"b", "c"}) EXPECT_TRUE(push(tenant, 250).ok());
  EXPECT_EQ(push("d", 251).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(queue.bytes(), 750);
}

TEST_F(FairQueueTest, RequestsExpireByDeadlineAndByLongestWait) {
  FairQueue queue({.wait_max = absl::Seconds(60)});
  QueuedRequest request = Of("a");
  request.deadline = kNow + absl::Seconds(10);
  const uint64_t with_deadline = Push(queue, request);
  const uint64_t without = Push(queue, Of("a"));
  EXPECT_EQ(queue.NextExpiry(), kNow + absl::Seconds(10));
  EXPECT_FALSE(queue.PopExpired(kNow + absl::Seconds(9)).has_value());
  const auto first = queue.PopExpired(kNow + absl::Seconds(10));
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->ticket, with_deadline);
  EXPECT_EQ(first->status, absl::DeadlineExceededError("deadline passed: waited 10s in the queue"));
  const auto second = queue.PopExpired(kNow + absl::Seconds(60));
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->ticket, without);
  EXPECT_EQ(second->status, absl::ResourceExhaustedError("waited 1m in the queue, at most 1m"));
  EXPECT_EQ(queue.NextExpiry(), absl::InfiniteDuration());
  EXPECT_FALSE(queue.PopExpired(absl::InfiniteDuration()).has_value());
}

TEST_F(FairQueueTest, AHopelessRequestIsRefusedAtOnce) {
  FairQueue queue({});
  absl::Duration now = kNow;
  for (int i = 0; i < 30; ++i) Push(queue, Of(absl::StrCat("t", i)), now);
  for (int i = 0; i < 10; ++i, now += absl::Seconds(1)) PopTicket(queue, true, true, now);
  // 20 wait, one turn a second. A tenant with nothing waiting comes after one request of each.
  EXPECT_EQ(queue.EstimateWait("new", Tier::kStandard), absl::Seconds(20));
  QueuedRequest request = Of("new");
  request.deadline = now + absl::Seconds(19);
  const absl::Status refused = queue.Push(request, now).status();
  EXPECT_EQ(refused,
            absl::DeadlineExceededError("the queue is about 20s long, the deadline is in 19s"));
  request.deadline = now + absl::Seconds(21);
  EXPECT_TRUE(queue.Push(request, now).ok());
  request.deadline = now - absl::Seconds(1);
  FairQueue empty({});
  EXPECT_EQ(empty.Push(request, now).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(FairQueueTest, PositionIsTheNumberOfTurnsBefore) {
  std::mt19937 random(7);
  FairQueue queue({});
  std::vector<uint64_t> tickets;
  for (int i = 0; i < 200; ++i) {
    QueuedRequest request = Of(absl::StrCat("t", random() % 7), 1 + random() % 500);
    request.weight = 1 + random() % 3;
    tickets.push_back(Push(queue, request));
  }
  std::map<uint64_t, int> expected;
  for (const uint64_t ticket : tickets) expected[ticket] = *queue.Position(ticket);
  int exact = 0;
  for (int turn = 0; turn < 200; ++turn) {
    const uint64_t ticket = PopTicket(queue);
    // Ties between tenants may fall either way.
    EXPECT_NEAR(expected[ticket], turn, 3);
    exact += expected[ticket] == turn;
  }
  EXPECT_GT(exact, 150);
  EXPECT_EQ(queue.Position(tickets[0]), std::nullopt);
}

// Random pushes, pops, cancels and expiries; every index agrees after each, and every request
// leaves exactly once.
TEST_F(FairQueueTest, EveryIndexAgreesAfterAnyHistory) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    FairQueue queue({.requests_max = 64, .bytes_max = 5000, .wait_max = absl::Seconds(40)});
    std::set<uint64_t> waiting;
    absl::Duration now = kNow;
    for (int step = 0; step < 2000; ++step) {
      now += absl::Milliseconds(random() % 300);
      const uint32_t action = random() % 10;
      if (action < 5) {
        QueuedRequest request = Of(absl::StrCat("t", random() % 9), 1 + random() % 100'000,
                                   random() % 3 == 0 ? Tier::kUltraspeed : Tier::kStandard);
        request.bytes = random() % 200;
        request.weight = 1 + random() % kTenantWeightMax;
        request.priority = static_cast<int>(random() % 5);
        if (random() % 2 == 0) request.deadline = now + absl::Milliseconds(random() % 60'000);
        const auto ticket = queue.Push(request, now);
        if (ticket.ok()) {
          ASSERT_TRUE(waiting.insert(*ticket).second);
        }
      } else if (action < 8) {
        const auto turn = queue.Pop(random() % 4 != 0, random() % 4 != 0, now);
        if (turn) {
          ASSERT_EQ(waiting.erase(turn->ticket), 1u);
        }
      } else if (action == 8 && !waiting.empty()) {
        const uint64_t ticket = *std::next(waiting.begin(), random() % waiting.size());
        ASSERT_TRUE(queue.Remove(ticket));
        waiting.erase(ticket);
      } else {
        while (const auto expired = queue.PopExpired(now))
          ASSERT_EQ(waiting.erase(expired->ticket), 1u);
      }
      queue.CheckIntegrity();
      ASSERT_EQ(static_cast<size_t>(queue.size()), waiting.size());
    }
  }
}

// Push with the shed decision, turn and cancellation in a full queue of many tenants. The bound is
// 1 ms; a machine under load gets slack by counting the median.
TEST_F(FairQueueTest, DecisionsInAFullQueueTakeFarLessThanAMillisecond) {
  FairQueue queue({});
  std::vector<uint64_t> tickets;
  for (int i = 0; i < limits::kQueueRequestsMax; ++i) {
    const auto ticket = queue.Push(Of(absl::StrCat("t", i % 500)), kNow);
    if (ticket.ok()) tickets.push_back(*ticket);
  }
  ASSERT_GT(tickets.size(), 1000u);
  std::vector<double> micros;
  for (int i = 0; i < 301; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    (void)queue.Push(Of("newcomer"), kNow);
    (void)queue.Remove(tickets[i]);
    (void)queue.Pop(true, true, kNow);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    micros.push_back(took.count());
  }
  std::nth_element(micros.begin(), micros.begin() + 150, micros.end());
  RecordProperty("median_us", absl::StrCat(micros[150]));
  EXPECT_LT(micros[150], 1000);
}

// ---- Places ----

TEST(QueueCapacity, LargeWorkersKeepPlacesForUltraspeedAndTakeOneMore) {
  EXPECT_EQ(CapacityOfWorker(64, 0),
            (QueueCapacity{.places = 65, .standard_places = 63, .ultraspeed_places = 2}));
  EXPECT_EQ(CapacityOfWorker(4, 0),
            (QueueCapacity{.places = 4, .standard_places = 3, .ultraspeed_places = 2}));
  EXPECT_EQ(CapacityOfWorker(1, 0),
            (QueueCapacity{.places = 1, .standard_places = 1, .ultraspeed_places = 1}));
  EXPECT_EQ(CapacityOfWorker(0, 0), QueueCapacity()) << "has not reported yet";
}

TEST(QueueCapacity, OtherRoutersRequestsTakePlaces) {
  EXPECT_EQ(CapacityOfWorker(8, 5),
            (QueueCapacity{.places = 4, .standard_places = 2, .ultraspeed_places = 2}));
  EXPECT_EQ(CapacityOfWorker(8, 100), QueueCapacity());
}

TEST(FairQueueOptions, ValidateNamesTheField) {
  EXPECT_TRUE(FairQueueOptions().Validate().ok());
  EXPECT_THAT(std::string((FairQueueOptions{.requests_max = 0}).Validate().message()),
              HasSubstr("requests_max=0"));
  EXPECT_FALSE((FairQueueOptions{.wait_max = absl::ZeroDuration()}).Validate().ok());
  EXPECT_FALSE((FairQueueOptions{.standard_floor_turns = 1}).Validate().ok());
}

}  // namespace
}  // namespace ultraspeed::router
