#include "router/request_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"

namespace ultraspeed::router {
namespace {

constexpr char kModel[] = "tiny";
constexpr QueueCapacity kOnePlace = {.places = 1, .standard_places = 1, .ultraspeed_places = 1};

QueuedRequest Of(const std::string& tenant, Tier tier = Tier::kStandard) {
  return {.tenant = tenant, .tier = tier, .tokens = 100, .bytes = 10};
}

// One waiting request: keeps what its turn brought.
struct Waiter {
  RequestQueue::OnTurn OnTurn() {
    return [this](absl::StatusOr<RequestQueue::Place> outcome) {
      result = std::move(outcome);
      done.Notify();
    };
  }
  absl::StatusOr<RequestQueue::Place> result = absl::UnknownError("no turn yet");
  absl::Notification done;
};

TEST(RequestQueue, AFreePlaceIsTakenAtOnce) {
  RequestQueue queue({});
  queue.SetCapacity(kModel, kOnePlace);
  EXPECT_TRUE(queue.HasFreePlace(kModel, Tier::kStandard));
  auto entry = queue.Enter(kModel, Of("a"), nullptr);
  ASSERT_TRUE(entry.ok() && entry->place.has_value());
  EXPECT_FALSE(queue.HasFreePlace(kModel, Tier::kStandard));
  entry->place->Release();
  EXPECT_TRUE(queue.HasFreePlace(kModel, Tier::kStandard));
}

TEST(RequestQueue, APlaceGivenBackGoesToTheNextOne) {
  Waiter first, second;  // before the queue: their places end after its thread
  RequestQueue queue({});
  queue.SetCapacity(kModel, kOnePlace);
  auto held = queue.Enter(kModel, Of("a"), nullptr);
  ASSERT_TRUE(held->place.has_value());
  ASSERT_FALSE(queue.Enter(kModel, Of("a"), first.OnTurn())->place.has_value());
  const auto entry = queue.Enter(kModel, Of("a"), second.OnTurn());
  EXPECT_EQ(queue.Position(kModel, entry->ticket), 1);
  EXPECT_EQ(queue.GetStatus(kModel).waiting, 2);
  EXPECT_EQ(queue.GetStatus(kModel).waiting_bytes, 20);
  held->place->Release();
  first.done.WaitForNotification();
  ASSERT_TRUE(first.result.ok());
  EXPECT_EQ(queue.Position(kModel, entry->ticket), 0);
  EXPECT_FALSE(second.done.HasBeenNotified());
  first.result = absl::UnknownError("ended");
  second.done.WaitForNotification();
  EXPECT_TRUE(second.result.ok());
  second.result = absl::UnknownError("ended");
  EXPECT_EQ(queue.GetStatus(kModel).held_places[0], 0);
}

TEST(RequestQueue, NewCapacityLetsThemGo) {
  Waiter waiter;
  RequestQueue queue({});
  ASSERT_FALSE(queue.Enter(kModel, Of("a"), waiter.OnTurn())->place.has_value());
  queue.SetCapacity(kModel, kOnePlace);
  waiter.done.WaitForNotification();
  EXPECT_TRUE(waiter.result.ok());
  waiter.result = absl::UnknownError("ended");
}

TEST(RequestQueue, ModelsDoNotWaitForEachOther) {
  RequestQueue queue({});
  queue.SetCapacity("full", kOnePlace);
  queue.SetCapacity("free", kOnePlace);
  auto held = queue.Enter("full", Of("a"), nullptr);
  ASSERT_FALSE(queue.Enter("full", Of("a"), [](auto) {})->place.has_value());
  EXPECT_TRUE(queue.Enter("free", Of("a"), nullptr)->place.has_value());
  held->place.reset();
}

TEST(RequestQueue, StandardNeverTakesThePlacesKeptForUltraspeed) {
  RequestQueue queue({});
  queue.SetCapacity(kModel, {.places = 3, .standard_places = 2, .ultraspeed_places = 2});
  std::vector<RequestQueue::Place> places;
  for (int i = 0; i < 2; ++i)
    places.push_back(*std::move(queue.Enter(kModel, Of("a"), nullptr)->place));
  const auto waits = queue.Enter(kModel, Of("a"), [](auto) {});
  ASSERT_FALSE(waits->place.has_value());
  EXPECT_TRUE(queue.HasFreePlace(kModel, Tier::kUltraspeed));
  EXPECT_TRUE(queue.Cancel(kModel, waits->ticket));
  auto ultraspeed = queue.Enter(kModel, Of("a", Tier::kUltraspeed), nullptr);
  EXPECT_TRUE(ultraspeed->place.has_value());
}

TEST(RequestQueue, CancelledRequestsGetNoTurn) {
  RequestQueue queue({});
  queue.SetCapacity(kModel, kOnePlace);
  auto held = queue.Enter(kModel, Of("a"), nullptr);
  bool came = false;
  const auto entry = queue.Enter(kModel, Of("a"), [&](auto) { came = true; });
  EXPECT_TRUE(queue.Cancel(kModel, entry->ticket));
  EXPECT_FALSE(queue.Cancel(kModel, entry->ticket));
  EXPECT_FALSE(queue.Cancel("other", entry->ticket));
  held->place.reset();
  EXPECT_TRUE(queue.Enter(kModel, Of("a"), nullptr)->place.has_value());
  EXPECT_FALSE(came);
}

TEST(RequestQueue, DeadlinesPassWhileWaiting) {
  Waiter waiter;
  RequestQueue queue({});
  QueuedRequest request = Of("a");
  request.deadline = RealClock().Monotonic() + absl::Milliseconds(30);
  ASSERT_TRUE(queue.Enter(kModel, request, waiter.OnTurn()).ok());
  ASSERT_TRUE(waiter.done.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(waiter.result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(RealClock().Monotonic(), request.deadline);
}

TEST(RequestQueue, EndsWaitersWhenItEnds) {
  Waiter waiter;
  {
    RequestQueue queue({});
    ASSERT_TRUE(queue.Enter(kModel, Of("a"), waiter.OnTurn()).ok());
  }
  ASSERT_TRUE(waiter.done.HasBeenNotified());
  EXPECT_EQ(waiter.result.status(), absl::UnavailableError("the router stops"));
}

TEST(RequestQueue, MetricsTellWaitPositionAndRefusals) {
  Metrics metrics;
  Waiter waiter;
  RequestQueue queue({.bounds = {.requests_max = 4}, .metrics = &metrics});
  queue.SetCapacity(kModel, kOnePlace);
  auto held = queue.Enter(kModel, Of("a"), nullptr);
  ASSERT_TRUE(queue.Enter(kModel, Of("a"), waiter.OnTurn()).ok());
  const absl::Status refused = queue.Enter(kModel, Of("a"), nullptr).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  const auto has = [&](const std::string& line) {
    return absl::StrContains(metrics.Text(), "ultraspeed_router_queue_" + line);
  };
  EXPECT_TRUE(has("requests{tier=\"standard\"} 1")) << metrics.Text();
  EXPECT_TRUE(has("refused_total{tier=\"standard\"} 1"));
  EXPECT_TRUE(has("wait_seconds_count{tier=\"standard\"} 1"));
  held->place.reset();
  waiter.done.WaitForNotification();
  EXPECT_TRUE(has("requests{tier=\"standard\"} 0"));
  EXPECT_TRUE(has("wait_seconds_count{tier=\"standard\"} 2"));
  EXPECT_TRUE(has("position_count{tier=\"standard\"} 1"));
  waiter.result = absl::UnknownError("ended");
}

// Many threads enter, cancel and give back at random: places are never overdrawn, every waiter
// hears exactly once or was cancelled, and nothing is held at the end.
TEST(RequestQueue, ManyThreadsNeverOverdrawThePlaces) {
  RequestQueue queue({});
  queue.SetCapacity(kModel, {.places = 5, .standard_places = 4, .ultraspeed_places = 2});
  std::atomic<int> running{0}, running_max{0}, turns{0}, cancelled{0};
  std::vector<std::thread> threads;
  constexpr int kThreads = 4;
  constexpr int kEach = 400;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      const auto run = [&](RequestQueue::Place place) {
        const int now = ++running;
        int seen = running_max;
        while (seen < now && !running_max.compare_exchange_weak(seen, now)) {
        }
        std::this_thread::yield();
        --running;
        ++turns;
        place.Release();
      };
      for (int i = 0; i < kEach; ++i) {
        const Tier tier = random() % 4 == 0 ? Tier::kUltraspeed : Tier::kStandard;
        Waiter waiter;
        auto entry =
            queue.Enter(kModel, Of(absl::StrCat("t", random() % 5), tier), waiter.OnTurn());
        ASSERT_TRUE(entry.ok()) << entry.status();
        if (entry->place) {
          run(*std::move(entry->place));
        } else if (random() % 4 == 0 && queue.Cancel(kModel, entry->ticket)) {
          ++cancelled;
        } else {
          waiter.done.WaitForNotification();
          ASSERT_TRUE(waiter.result.ok()) << waiter.result.status();
          run(*std::move(waiter.result));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(turns + cancelled, kThreads * kEach);
  EXPECT_LE(running_max, 5);
  const RequestQueue::Status status = queue.GetStatus(kModel);
  EXPECT_EQ(status.waiting, 0);
  EXPECT_EQ(status.held_places[0] + status.held_places[1], 0);
}

// The bound is 20 us for an unloaded request; the median gives a busy machine slack.
TEST(RequestQueue, AnUnloadedRequestIsHardlyDelayed) {
  Metrics metrics;
  RequestQueue queue({.metrics = &metrics});
  queue.SetCapacity(kModel, {.places = 8, .standard_places = 8, .ultraspeed_places = 2});
  std::vector<double> micros;
  for (int i = 0; i < 1001; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    auto entry = queue.Enter(kModel, Of("a"), [](auto) {});
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(entry->place.has_value());
    micros.push_back(took.count());
  }
  std::nth_element(micros.begin(), micros.begin() + 500, micros.end());
  RecordProperty("median_us", absl::StrCat(micros[500]));
  EXPECT_LT(micros[500], 20);
}

}  // namespace
}  // namespace ultraspeed::router
