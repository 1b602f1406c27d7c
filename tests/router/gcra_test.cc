#include "router/gcra.h"

#include <gtest/gtest.h>

#include <random>

namespace ultraspeed::router {
namespace {

constexpr int64_t kSecond = 1'000'000;

// Takes `units` if they pass.
bool TryTake(GcraBucket& bucket, const GcraRate& rate, int64_t now_us, int64_t units) {
  bucket = Leak(bucket, rate, now_us);
  if (MicrosUntilPass(bucket, rate, units) != 0) return false;
  bucket = Take(bucket, units);
  return true;
}

TEST(Gcra, BurstPassesAtOnceAndNotOneMore) {
  for (const int64_t limit : {1, 7, 60, 999, 1'000'003, 100'000'000}) {
    const GcraRate rate = {.limit_per_minute = limit, .burst = std::min<int64_t>(limit, 500)};
    GcraBucket bucket;
    for (int64_t i = 0; i < rate.burst; ++i) ASSERT_TRUE(TryTake(bucket, rate, 0, 1)) << limit;
    EXPECT_FALSE(TryTake(bucket, rate, 0, 1)) << limit;
    EXPECT_EQ(UnitsLeft(bucket, rate), 0);
  }
}

TEST(Gcra, RetryAfterIsExactToTheMicrosecond) {
  for (const int64_t limit : {1, 7, 60, 999, 1'000'003}) {
    const GcraRate rate = {.limit_per_minute = limit, .burst = 3};
    GcraBucket bucket;
    ASSERT_TRUE(TryTake(bucket, rate, 0, 3));
    const int64_t wait = MicrosUntilPass(Leak(bucket, rate, 0), rate, 2);
    ASSERT_GT(wait, 0);
    GcraBucket early = bucket;
    EXPECT_FALSE(TryTake(early, rate, wait - 1, 2)) << limit;
    EXPECT_TRUE(TryTake(bucket, rate, wait, 2)) << limit;
  }
}

TEST(Gcra, MoreThanTheBurstNeverPasses) {
  const GcraRate rate = {.limit_per_minute = 1000, .burst = 10};
  EXPECT_EQ(MicrosUntilPass({}, rate, 10), 0);
  EXPECT_LT(MicrosUntilPass({}, rate, 11), 0);
}

// A limit that does not divide a minute loses nothing to rounding: over many minutes of greedy
// asking exactly burst + limit * minutes pass.
TEST(Gcra, LongRunIsExact) {
  const GcraRate rate = {.limit_per_minute = 7, .burst = 5};
  GcraBucket bucket;
  int64_t passed = 0;
  for (int64_t now = 0; now <= 600 * kSecond; now += 1000) passed += TryTake(bucket, rate, now, 1);
  EXPECT_EQ(passed, 5 + 7 * 10);
}

TEST(Gcra, AnyWindowHoldsAtMostBurstPlusItsShare) {
  std::mt19937_64 random(20261123);
  const GcraRate rate = {.limit_per_minute = 6000, .burst = 400};  // 100 a second
  GcraBucket bucket;
  std::vector<std::pair<int64_t, int64_t>> passed;  // (when, units)
  int64_t now = 0;
  for (int i = 0; i < 2000; ++i) {
    now += static_cast<int64_t>(random() % 50'000);
    const int64_t units = 1 + static_cast<int64_t>(random() % 120);
    if (TryTake(bucket, rate, now, units)) passed.emplace_back(now, units);
  }
  ASSERT_GT(passed.size(), 100u);
  for (size_t first = 0; first < passed.size(); ++first) {
    int64_t sum = 0;
    for (size_t last = first; last < passed.size(); ++last) {
      sum += passed[last].second;
      const int64_t window_us = passed[last].first - passed[first].first;
      ASSERT_LE(sum * kSecond, rate.burst * kSecond + 100 * window_us);
    }
  }
}

TEST(Gcra, GivingBackRestoresWhatWasTaken) {
  const GcraRate rate = {.limit_per_minute = 600, .burst = 100};
  GcraBucket bucket;
  ASSERT_TRUE(TryTake(bucket, rate, 0, 80));
  bucket = Take(bucket, -50);
  EXPECT_EQ(UnitsLeft(bucket, rate), 70);
  // What has leaked meanwhile is not given back a second time.
  bucket = Take(Leak(bucket, rate, 2 * kSecond), -50);
  EXPECT_EQ(bucket.level_parts, 0);
  EXPECT_EQ(UnitsLeft(bucket, rate), 100);
}

TEST(Gcra, AClockThatGoesBackLeaksNothingAndGoesOn) {
  const GcraRate rate = {.limit_per_minute = 60, .burst = 10};
  GcraBucket bucket;
  ASSERT_TRUE(TryTake(bucket, rate, 100 * kSecond, 10));
  EXPECT_FALSE(TryTake(bucket, rate, 50 * kSecond, 1));
  EXPECT_TRUE(TryTake(bucket, rate, 51 * kSecond, 1));
}

TEST(Gcra, LongPausesDoNotOverflow) {
  const GcraRate rate = {.limit_per_minute = kRateLimitMax, .burst = kRateLimitMax};
  GcraBucket bucket;
  ASSERT_TRUE(TryTake(bucket, rate, 0, kRateLimitMax));
  EXPECT_LT(bucket.level_parts, int64_t{1} << 53);
  EXPECT_EQ(MicrosUntilEmpty(bucket, rate), kMicrosPerMinute);
  EXPECT_TRUE(TryTake(bucket, rate, int64_t{1} << 61, kRateLimitMax));
}

}  // namespace
}  // namespace ultraspeed::router
