#include "router/rate_limiter.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "router/in_process_rate_limiter.h"
#include "tests/router/rate_limiter_suite.h"

namespace ultraspeed::router {
namespace {

class InProcessSubject {
 public:
  RateLimiter& limiter() { return limiter_; }
  void Advance(absl::Duration duration) { clock_.Advance(duration); }
  void Settled() {}

 private:
  FakeClock clock_;
  InProcessRateLimiter limiter_{clock_};
};
INSTANTIATE_TYPED_TEST_SUITE_P(InProcess, RateLimiterSuite, InProcessSubject);

TEST(InProcessRateLimiter, MetadataOfARefusal) {
  FakeClock clock;
  InProcessRateLimiter limiter(clock);
  const LimitRequest request = {
      .tenant = "acme", .tier = Tier::kUltraspeed, .limits = {.requests_per_minute = 4}};
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(limiter.Acquire(request).admitted());
  clock.Advance(absl::Milliseconds(500));
  const LimitDecision refused = limiter.Acquire(request);
  ASSERT_FALSE(refused.admitted());
  const auto pairs = RateLimitMetadata(refused);
  const std::map<std::string, std::string> metadata(pairs.begin(), pairs.end());
  EXPECT_EQ(metadata.at("retry-after"), "15");  // 14.5 s, never too early
  EXPECT_EQ(metadata.at("x-ratelimit-reset-requests"), "59.5s");
  EXPECT_EQ(refused.retry_after, absl::Milliseconds(14'500));
  EXPECT_EQ(RefusalStatus(request, refused),
            absl::ResourceExhaustedError("limit of 4 requests per minute of tier ultraspeed "
                                         "reached: retry after 14.5s"));
}

TEST(InProcessRateLimiter, LimitsMayChangeWhileRequestsRun) {
  FakeClock clock;
  InProcessRateLimiter limiter(clock);
  LimitRequest request = {.tenant = "acme", .limits = {.tokens_per_minute = 1000}, .tokens = 1000};
  LimitDecision first = limiter.Acquire(request);
  request.limits.tokens_per_minute = 3000;
  request.tokens = 2000;
  LimitDecision second = limiter.Acquire(request);
  ASSERT_TRUE(second.admitted());
  first.grant->Settle(0);
  second.grant->Settle(2000);
  EXPECT_EQ(limiter.Acquire(request).report.tokens.remaining, 1000);
}

TEST(InProcessRateLimiter, SharesSumUpToTheLimit) {
  FakeClock clock;
  InProcessRateLimiter share(clock, 4);
  const LimitRequest request = {.tenant = "acme",
                                .limits = {.requests_per_minute = 100, .concurrent_streams = 40}};
  std::vector<Grant> grants;
  for (LimitDecision d = share.Acquire(request); d.admitted(); d = share.Acquire(request))
    grants.push_back(*std::move(d.grant));
  EXPECT_EQ(grants.size(), 10u);  // 40 streams in all
  grants.clear();
  int more = 0;
  for (LimitDecision d = share.Acquire(request); d.admitted(); d = share.Acquire(request)) ++more;
  EXPECT_EQ(more, 15);  // 100 requests in all
}

TEST(InProcessRateLimiter, AShareLetsALargeRequestPassWhenIdleAndChargesAllOfIt) {
  FakeClock clock;
  InProcessRateLimiter share(clock, 4);
  const LimitRequest request = {
      .tenant = "acme", .limits = {.tokens_per_minute = 4000}, .tokens = 3000};
  LimitDecision first = share.Acquire(request);
  ASSERT_TRUE(first.admitted());
  first.grant->Settle(3000);
  const LimitDecision second = share.Acquire(request);
  ASSERT_FALSE(second.admitted());
  EXPECT_EQ(second.retry_after, absl::Minutes(3));  // 3000 at 1000 a minute
}

TEST(InProcessRateLimiter, ForgetsTenantsThatAreIdle) {
  FakeClock clock;
  InProcessRateLimiter limiter(clock);
  for (int minute = 0; minute < 20; ++minute) {
    for (int i = 0; i < 1000; ++i) {
      const LimitRequest request = {.tenant = absl::StrCat("tenant-", minute, "-", i),
                                    .limits = {.requests_per_minute = 60}};
      ASSERT_TRUE(limiter.Acquire(request).admitted());
    }
    clock.Advance(absl::Minutes(1));
  }
  EXPECT_LT(limiter.num_accounts(), 5000u) << "of 20000 that ever came";
}

TEST(TierLimits, ValidateNamesFieldValueAndBound) {
  EXPECT_TRUE(TierLimits().Validate().ok());
  EXPECT_TRUE((TierLimits{.tokens_per_minute = kRateLimitMax}).Validate().ok());
  EXPECT_EQ((TierLimits{.tokens_per_minute = kRateLimitMax + 1}).Validate(),
            absl::InvalidArgumentError(
                "tokens_per_minute=100000001: must be 0 (not limited) to 100000000"));
  EXPECT_FALSE((TierLimits{.concurrent_streams = -1}).Validate().ok());
}

}  // namespace
}  // namespace ultraspeed::router
