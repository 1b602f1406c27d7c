// What every RateLimiter must do, whatever keeps its state. Instantiated for the one in this
// process and for the one with a real Redis. A Subject has: limiter(), Advance(duration) that lets
// time pass, and Settled() that returns once settlements so far have taken effect.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "router/rate_limiter.h"

namespace ultraspeed::router {

template <typename Subject>
class RateLimiterSuite : public ::testing::Test {
 protected:
  LimitDecision Ask(const TierLimits& limits, int64_t tokens = 0,
                    const std::string& tenant = "acme", Tier tier = Tier::kStandard) {
    return subject_.limiter().Acquire(
        {.tenant = tenant, .tier = tier, .limits = limits, .tokens = tokens});
  }
  // Admits until refused; keeps the grants.
  int AdmitAll(const TierLimits& limits, int64_t tokens = 0, const std::string& tenant = "acme",
               Tier tier = Tier::kStandard) {
    for (int count = 0;; ++count) {
      LimitDecision decision = Ask(limits, tokens, tenant, tier);
      if (!decision.admitted()) return count;
      grants_.push_back(*std::move(decision.grant));
    }
  }

  Subject subject_;
  std::vector<Grant> grants_;
};

TYPED_TEST_SUITE_P(RateLimiterSuite);

// Limits are slow beside the test's own time, so that a real clock leaks less than one unit.
inline constexpr TierLimits kSixRequests = {.requests_per_minute = 6};
inline constexpr TierLimits kThousandTokens = {.tokens_per_minute = 1000};

TYPED_TEST_P(RateLimiterSuite, WithoutLimitsEverythingPasses) {
  EXPECT_TRUE(this->Ask({}, 1'000'000).admitted());
  EXPECT_TRUE(RateLimitMetadata(this->Ask({})).empty());
}

TYPED_TEST_P(RateLimiterSuite, RequestsPerMinute) {
  EXPECT_EQ(this->AdmitAll(kSixRequests), 6);
  this->grants_.clear();  // ending a request does not give its turn back
  const LimitDecision refused = this->Ask(kSixRequests);
  ASSERT_FALSE(refused.admitted());
  EXPECT_EQ(refused.exceeded, LimitKind::kRequests);
  EXPECT_EQ(refused.report.requests.limit, 6);
  EXPECT_EQ(refused.report.requests.remaining, 0);
  EXPECT_GT(refused.retry_after, absl::Seconds(8));
  EXPECT_LE(refused.retry_after, absl::Seconds(10));
  EXPECT_LE(refused.report.requests.reset, absl::Minutes(1));
  EXPECT_GT(refused.report.requests.reset, absl::Seconds(55));
}

TYPED_TEST_P(RateLimiterSuite, RetryAfterIsTheTruth) {
  const TierLimits limits = {.requests_per_minute = 600, .requests_burst = 2};
  EXPECT_GE(this->AdmitAll(limits), 2);
  const LimitDecision refused = this->Ask(limits);
  ASSERT_FALSE(refused.admitted());
  this->subject_.Advance(refused.retry_after);
  EXPECT_TRUE(this->Ask(limits).admitted());
}

TYPED_TEST_P(RateLimiterSuite, TokensAreReservedAndSettled) {
  LimitDecision first = this->Ask(kThousandTokens, 900);
  ASSERT_TRUE(first.admitted());
  EXPECT_EQ(first.report.tokens.remaining, 100);
  EXPECT_FALSE(this->Ask(kThousandTokens, 200).admitted());
  first.grant->Settle(300);
  first.grant->Settle(0);  // the first call counts
  this->subject_.Settled();
  const LimitDecision second = this->Ask(kThousandTokens, 600);
  ASSERT_TRUE(second.admitted());
  EXPECT_NEAR(static_cast<double>(second.report.tokens.remaining), 100, 20);
}

TYPED_TEST_P(RateLimiterSuite, ARequestThatUsedNothingGivesEverythingBack) {
  { const LimitDecision dropped = this->Ask(kThousandTokens, 1000); }
  this->subject_.Settled();
  EXPECT_TRUE(this->Ask(kThousandTokens, 1000).admitted());
}

TYPED_TEST_P(RateLimiterSuite, MoreThanTheBurstIsNeverPossible) {
  const LimitRequest request = {
      .tenant = "acme", .tier = Tier::kStandard, .limits = kThousandTokens, .tokens = 1001};
  const LimitDecision refused = this->subject_.limiter().Acquire(request);
  ASSERT_FALSE(refused.admitted());
  EXPECT_EQ(refused.exceeded, LimitKind::kTokens);
  EXPECT_EQ(refused.retry_after, absl::InfiniteDuration());
  EXPECT_THAT(std::string(RefusalStatus(request, refused).message()),
              ::testing::AllOf(::testing::HasSubstr("tokens=1001"), ::testing::HasSubstr("1000")));
  for (const auto& [name, value] : RateLimitMetadata(refused)) EXPECT_NE(name, "retry-after");
}

TYPED_TEST_P(RateLimiterSuite, StreamsAreHeldUntilTheyEnd) {
  const TierLimits limits = {.concurrent_streams = 3};
  EXPECT_EQ(this->AdmitAll(limits), 3);
  const LimitDecision refused = this->Ask(limits);
  EXPECT_EQ(refused.exceeded, LimitKind::kStreams);
  EXPECT_EQ(refused.report.streams.remaining, 0);
  this->grants_.pop_back();
  this->subject_.Settled();
  EXPECT_EQ(this->AdmitAll(limits), 1);
}

TYPED_TEST_P(RateLimiterSuite, ARefusalTakesNothingOfAnyLimit) {
  const TierLimits limits = {
      .requests_per_minute = 6, .tokens_per_minute = 1000, .concurrent_streams = 1};
  LimitDecision held = this->Ask(limits, 100);
  ASSERT_TRUE(held.admitted());
  for (int i = 0; i < 20; ++i) ASSERT_FALSE(this->Ask(limits, 100).admitted());  // streams
  held.grant->Settle(100);
  this->subject_.Settled();
  const LimitDecision next = this->Ask(limits, 100);
  ASSERT_TRUE(next.admitted());
  EXPECT_EQ(next.report.requests.remaining, 4);
  EXPECT_NEAR(static_cast<double>(next.report.tokens.remaining), 800, 20);
}

TYPED_TEST_P(RateLimiterSuite, TheLimitThatWaitsLongestIsNamed) {
  const TierLimits limits = {
      .requests_per_minute = 60, .requests_burst = 1, .tokens_per_minute = 1000};
  LimitDecision held = this->Ask(limits, 1000);
  ASSERT_TRUE(held.admitted());
  const LimitDecision refused = this->Ask(limits, 1000);
  EXPECT_EQ(refused.exceeded, LimitKind::kTokens);  // a minute; requests: one second
  EXPECT_GT(refused.retry_after, absl::Seconds(50));
}

TYPED_TEST_P(RateLimiterSuite, TenantsAndTiersAreApart) {
  EXPECT_EQ(this->AdmitAll(kSixRequests), 6);
  EXPECT_EQ(this->AdmitAll(kSixRequests, 0, "other"), 6);
  EXPECT_EQ(this->AdmitAll(kSixRequests, 0, "acme", Tier::kUltraspeed), 6);
  EXPECT_EQ(this->AdmitAll(kSixRequests), 0);
}

TYPED_TEST_P(RateLimiterSuite, ManyThreadsTogetherGetExactlyTheLimit) {
  const TierLimits limits = {.requests_per_minute = 100,
                             .tokens_per_minute = 100'000,
                             .tokens_burst = 100'000,
                             .concurrent_streams = 40};
  std::atomic<int> admitted{0};
  std::vector<std::vector<Grant>> grants(8);
  std::vector<std::thread> threads;
  for (auto& mine : grants) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        LimitDecision decision = this->Ask(limits, 10);
        if (!decision.admitted()) continue;
        ++admitted;
        mine.push_back(*std::move(decision.grant));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(admitted, 40);  // streams: nothing ended, nothing leaks
}

TYPED_TEST_P(RateLimiterSuite, MetadataOfAnAdmittedRequest) {
  const TierLimits limits = {.requests_per_minute = 6, .tokens_per_minute = 6000};
  const auto pairs = RateLimitMetadata(this->Ask(limits, 600));
  const std::map<std::string, std::string> metadata(pairs.begin(), pairs.end());
  EXPECT_EQ(metadata.size(), 6u);
  EXPECT_EQ(metadata.at("x-ratelimit-limit-requests"), "6");
  EXPECT_EQ(metadata.at("x-ratelimit-remaining-requests"), "5");
  EXPECT_EQ(metadata.at("x-ratelimit-reset-requests"), "10s");
  EXPECT_EQ(metadata.at("x-ratelimit-limit-tokens"), "6000");
  EXPECT_EQ(metadata.at("x-ratelimit-remaining-tokens"), "5400");
  EXPECT_EQ(metadata.at("x-ratelimit-reset-tokens"), "6s");
}

REGISTER_TYPED_TEST_SUITE_P(RateLimiterSuite, WithoutLimitsEverythingPasses, RequestsPerMinute,
                            RetryAfterIsTheTruth, TokensAreReservedAndSettled,
                            ARequestThatUsedNothingGivesEverythingBack,
                            MoreThanTheBurstIsNeverPossible, StreamsAreHeldUntilTheyEnd,
                            ARefusalTakesNothingOfAnyLimit, TheLimitThatWaitsLongestIsNamed,
                            TenantsAndTiersAreApart, ManyThreadsTogetherGetExactlyTheLimit,
                            MetadataOfAnAdmittedRequest);

}  // namespace ultraspeed::router
