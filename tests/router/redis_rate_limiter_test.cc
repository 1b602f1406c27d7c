// RedisRateLimiter against a real redis-server that the test starts, kills, freezes and restarts.
#include "router/redis_rate_limiter.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/redis_server.h"
#include "tests/router/rate_limiter_suite.h"

namespace ultraspeed::router {
namespace {

using ultraspeed::testing::Eventually;
using ultraspeed::testing::RedisServer;

// One for the whole program; a limiter's own key prefix keeps tests apart.
RedisServer& Server() {
  static RedisServer server;
  return server;
}

RedisRateLimiter::Options OptionsFor(RedisServer& server, const std::string& prefix) {
  RedisRateLimiter::Options options;
  options.address = *RedisAddress::Parse(server.url());
  options.key_prefix = prefix;
  options.timeout = absl::Milliseconds(500);  // sanitizers and busy machines; bounds are below
  options.probe_interval = absl::Milliseconds(20);
  return options;
}

std::string NewPrefix() {
  static std::atomic<int> counter{0};
  return absl::StrCat("test", ++counter, ":");
}

std::unique_ptr<RedisRateLimiter> MakeLimiter(RedisRateLimiter::Options options) {
  return *RedisRateLimiter::Create(std::move(options));
}

class RedisSubject {
 public:
  RedisSubject() : limiter_(MakeLimiter(OptionsFor(Server(), NewPrefix()))) {}
  RateLimiter& limiter() { return *limiter_; }
  void Advance(absl::Duration duration) { absl::SleepFor(duration); }
  void Settled() {
    EXPECT_TRUE(Eventually([&] { return limiter_->settled(); }, absl::Seconds(10)));
  }

 private:
  std::unique_ptr<RedisRateLimiter> limiter_;
};
INSTANTIATE_TYPED_TEST_SUITE_P(Redis, RateLimiterSuite, RedisSubject);

LimitRequest Request(const TierLimits& limits, int64_t tokens = 0) {
  return {.tenant = "acme", .tier = Tier::kStandard, .limits = limits, .tokens = tokens};
}

// Two routers, four threads each, one Redis: in total exactly what one router would have admitted.
TEST(RedisRateLimiter, TwoRoutersShareOneLimitExactly) {
  const std::string prefix = NewPrefix();
  const std::unique_ptr<RedisRateLimiter> routers[] = {MakeLimiter(OptionsFor(Server(), prefix)),
                                                       MakeLimiter(OptionsFor(Server(), prefix))};
  const TierLimits limits = {.requests_per_minute = 1,
                             .requests_burst = 500,
                             .tokens_per_minute = 1,
                             .tokens_burst = 3000};
  std::atomic<int> admitted{0};
  std::vector<std::vector<Grant>> grants(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < grants.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 200; ++n) {
        LimitDecision decision = routers[i % 2]->Acquire(Request(limits, 7));
        if (!decision.admitted()) continue;
        ++admitted;
        grants[i].push_back(*std::move(decision.grant));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(routers[0]->degraded() || routers[1]->degraded());
  EXPECT_EQ(admitted, 3000 / 7);  // of 1600; the tokens are the tighter limit
  EXPECT_GT(grants[0].size(), 0u);
}

TEST(RedisRateLimiter, NothingIsLeftAfterEverythingEnded) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  const auto limiter = MakeLimiter(OptionsFor(server, "us:"));
  const TierLimits limits = {.tokens_per_minute = 1000, .concurrent_streams = 50};
  std::vector<Grant> grants;
  for (int i = 0; i < 50; ++i) grants.push_back(*limiter->Acquire(Request(limits, 20)).grant);
  for (Grant& grant : grants) grant.Settle(2);
  ASSERT_TRUE(Eventually([&] { return limiter->settled(); }, absl::Seconds(10)));
  const LimitDecision next = limiter->Acquire(Request(limits, 20));
  EXPECT_EQ(next.report.streams.remaining, 49);
  EXPECT_NEAR(static_cast<double>(next.report.tokens.remaining), 1000 - 100 - 20, 5);
}

TEST(RedisRateLimiter, WithoutRedisEachRouterGrantsItsShareAndRecovers) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  Metrics metrics;
  RedisRateLimiter::Options options = OptionsFor(server, "us:");
  options.replicas = 4;
  options.metrics = &metrics;
  const auto limiter = MakeLimiter(options);
  const TierLimits limits = {.requests_per_minute = 40, .concurrent_streams = 100};
  std::vector<Grant> grants;
  const auto admit_all = [&] {
    int count = 0;
    for (LimitDecision d = limiter->Acquire(Request(limits)); d.admitted();
         d = limiter->Acquire(Request(limits))) {
      grants.push_back(*std::move(d.grant));
      ++count;
    }
    return count;
  };
  grants.push_back(*limiter->Acquire(Request(limits)).grant);
  EXPECT_TRUE(absl::StrContains(metrics.Text(), "ultraspeed_router_rate_limiter_degraded 0"));

  server.Kill();
  EXPECT_EQ(admit_all(), 10);  // 40 / 4, from this process
  EXPECT_TRUE(limiter->degraded());
  EXPECT_TRUE(absl::StrContains(metrics.Text(), "ultraspeed_router_rate_limiter_degraded 1"));

  ASSERT_TRUE(server.Start());
  ASSERT_TRUE(Eventually([&] { return !limiter->degraded(); }, absl::Seconds(10)));
  EXPECT_TRUE(absl::StrContains(metrics.Text(), "ultraspeed_router_rate_limiter_degraded 0"));
  // The stream of before was put back, though Redis had lost it; local ones do not count there.
  const LimitDecision shared = limiter->Acquire(Request(limits));
  EXPECT_EQ(shared.report.streams.remaining, 98);
  EXPECT_EQ(shared.report.requests.remaining, 39);
  grants.clear();
  EXPECT_TRUE(Eventually([&] { return limiter->settled(); }, absl::Seconds(10)));
  EXPECT_FALSE(limiter->degraded());
}

// Its reservation went with the old Redis: settling must not give back what the new one never held.
TEST(RedisRateLimiter, AReservationThatRedisLostIsNotGivenBackTwice) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  const auto limiter = MakeLimiter(OptionsFor(server, "us:"));
  const TierLimits limits = {.tokens_per_minute = 1000};
  LimitDecision before = limiter->Acquire(Request(limits, 900));
  ASSERT_TRUE(before.admitted());
  server.Kill();
  ASSERT_TRUE(server.Start());
  ASSERT_TRUE(Eventually(
      [&] {
        limiter->Acquire(Request({}));  // notices
        return !limiter->degraded();
      },
      absl::Seconds(10)));
  LimitDecision after = limiter->Acquire(Request(limits, 500));
  ASSERT_TRUE(after.admitted());
  ASSERT_EQ(after.report.tokens.remaining, 500);
  // The old grant was renewed before anything else was admitted, and is known to be lost.
  before.grant->Settle(0);
  ASSERT_TRUE(Eventually([&] { return limiter->settled(); }, absl::Seconds(10)));
  EXPECT_FALSE(limiter->Acquire(Request(limits, 600)).admitted());
}

TEST(RedisRateLimiter, AFrozenRedisCostsOneTimeoutOnly) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  RedisRateLimiter::Options options = OptionsFor(server, "us:");
  options.timeout = absl::Milliseconds(50);
  const auto limiter = MakeLimiter(options);
  ASSERT_TRUE(limiter->Acquire(Request({})).admitted());
  server.Freeze();
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(limiter->Acquire(Request({})).admitted());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2)) << "100 timeouts would be 5 s";
  EXPECT_TRUE(limiter->degraded());
  server.Thaw();
  EXPECT_TRUE(Eventually([&] { return !limiter->degraded(); }, absl::Seconds(10)));
}

// A call that timed out may have taken all the same; it is taken back, or runs out.
TEST(RedisRateLimiter, WhatATimedOutCallTookIsGivenBack) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  RedisRateLimiter::Options options = OptionsFor(server, "us:");
  options.timeout = absl::Milliseconds(50);
  options.lease_ttl = absl::Seconds(2);
  const auto limiter = MakeLimiter(options);
  const TierLimits limits = {.concurrent_streams = 1};
  limiter->Acquire(Request(limits));  // its grant ends here
  ASSERT_TRUE(Eventually([&] { return limiter->settled(); }, absl::Seconds(10)));
  server.Freeze();
  limiter->Acquire(Request(limits));  // runs when Redis thaws
  ASSERT_TRUE(limiter->degraded());
  server.Thaw();
  EXPECT_TRUE(Eventually(
      [&] { return !limiter->degraded() && limiter->Acquire(Request(limits)).admitted(); },
      absl::Seconds(10)));
}

TEST(RedisRateLimiter, LeasesOfLivingStreamsAreRenewed) {
  const std::string prefix = NewPrefix();
  RedisRateLimiter::Options options = OptionsFor(Server(), prefix);
  options.lease_ttl = absl::Milliseconds(300);
  const auto router = MakeLimiter(options);
  const auto other = MakeLimiter(options);
  const TierLimits limits = {.concurrent_streams = 1};
  LimitDecision held = router->Acquire(Request(limits));
  ASSERT_TRUE(held.admitted());
  const absl::Time end = absl::Now() + 4 * options.lease_ttl;
  while (absl::Now() < end) {
    ASSERT_FALSE(other->Acquire(Request(limits)).admitted());
    absl::SleepFor(absl::Milliseconds(10));
  }
}

constexpr TierLimits kThreeStreams = {.concurrent_streams = 3};
constexpr char kDoomedPrefix[] = "doomed:";

RedisRateLimiter::Options DoomedOptions(const std::string& url) {
  RedisRateLimiter::Options options;
  options.address = *RedisAddress::Parse(url);
  options.key_prefix = kDoomedPrefix;
  options.timeout = absl::Seconds(1);
  options.lease_ttl = absl::Milliseconds(600);
  return options;
}

// Runs in a process of its own, started by the next test: takes every stream and dies without a
// word.
TEST(RedisRateLimiter, DISABLED_TakeStreamsAndDie) {
  const auto doomed = MakeLimiter(DoomedOptions(std::getenv("ULTRASPEED_TEST_REDIS")));
  std::vector<Grant> grants;
  for (int i = 0; i < 3; ++i) {
    LimitDecision decision = doomed->Acquire(Request(kThreeStreams));
    if (decision.admitted()) grants.push_back(*std::move(decision.grant));
  }
  if (grants.size() == 3) kill(getpid(), SIGKILL);
  FAIL() << "only " << grants.size() << " streams";
}

TEST(RedisRateLimiter, LeasesOfADeadRouterExpire) {
  ultraspeed::testing::Process router(
      ::testing::TempDir(), "doomed_router",
      {std::filesystem::read_symlink("/proc/self/exe"), "--gtest_also_run_disabled_tests",
       "--gtest_filter=*TakeStreamsAndDie"},
      {{"ULTRASPEED_TEST_REDIS", Server().url()}, {"GTEST_OUTPUT", ""}});
  ASSERT_EQ(router.Wait(absl::Seconds(30)), 128 + SIGKILL) << router.Output();
  const auto survivor = MakeLimiter(DoomedOptions(Server().url()));
  EXPECT_FALSE(survivor->Acquire(Request(kThreeStreams)).admitted()) << "the leases still run";
  EXPECT_TRUE(Eventually([&] { return survivor->Acquire(Request(kThreeStreams)).admitted(); },
                         absl::Seconds(5)));
}

TEST(RedisRateLimiter, StartsWithoutRedisAndFindsItLater) {
  RedisServer server;
  ASSERT_TRUE(server.running());
  server.Kill();
  const auto limiter = MakeLimiter(OptionsFor(server, "us:"));
  EXPECT_TRUE(limiter->Acquire(Request({})).admitted());
  EXPECT_TRUE(limiter->degraded());
  ASSERT_TRUE(server.Start());
  EXPECT_TRUE(Eventually([&] { return !limiter->degraded(); }, absl::Seconds(10)));
}

// ---- The client ----

TEST(RedisClient, ScriptsAreTaughtOnceAndErrorsAreErrors) {
  auto connection =
      RedisConnection::Connect(*RedisAddress::Parse(Server().url()), absl::Seconds(1));
  ASSERT_TRUE(connection.ok()) << connection.status();
  const RedisScript sum("return {tonumber(ARGV[1]) + tonumber(ARGV[2]), #KEYS}");
  for (int i = 0; i < 2; ++i) {
    const auto reply = (*connection)->Run(sum, {"a", "b"}, {"9007199254740990", "1"});
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(*reply, (std::vector<int64_t>{9007199254740991, 2}));  // 2^53 - 1: exact
  }
  const RedisScript broken("return redis.call('LPUSH', 'x')");
  EXPECT_EQ((*connection)->Run(broken, {}, {}).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE((*connection)->Run(sum, {}, {"1", "2"}).ok()) << "the connection is still good";
}

TEST(RedisClient, ConnectingToNothingIsUnavailable) {
  RedisServer server;
  server.Kill();
  EXPECT_EQ(RedisConnection::Connect(*RedisAddress::Parse(server.url()), absl::Milliseconds(200))
                .status()
                .code(),
            absl::StatusCode::kUnavailable);
}

TEST(RedisClient, AddressesAreParsed) {
  const auto address = RedisAddress::Parse("redis://:secret@cache.internal:7000/3");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->host, "cache.internal");
  EXPECT_EQ(address->port, 7000);
  EXPECT_EQ(address->password, "secret");
  EXPECT_EQ(address->database, 3);
  EXPECT_EQ(RedisAddress::Parse("redis://host")->port, 6379);
  for (const char* bad : {"", "host:1", "redis://", "redis://h:0", "redis://h:x", "redis://h/x",
                          "redis://user:secret@h", "redis://h/-1", "redis://h:70000"}) {
    const absl::Status status = RedisAddress::Parse(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(absl::StrContains(status.message(), "secret")) << status;
  }
}

}  // namespace
}  // namespace ultraspeed::router
