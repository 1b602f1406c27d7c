// What a paying tenant meets, on real processes: budgets, entitlements, revoked keys, tiers, the
// speed promise, and what happens to the bill when PostgreSQL or Redis goes away.
#include "tests/cluster/billing_cluster.h"

#include <gmock/gmock.h>
#include <signal.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/cluster/eventually.h"

namespace ultraspeed::testing {
namespace {

using router::LedgerEntry;
using router::Tenant;
using router::Tier;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::Pair;

constexpr auto kStandard = v1::SERVICE_TIER_STANDARD;
constexpr auto kUltraspeed = v1::SERVICE_TIER_ULTRASPEED;

class BillingClusterTest : public BillingCluster {
 protected:
  LedgerEntry Entry(const std::string& request_id) {
    const auto entries = ClosedEntries();
    const auto found = entries.find(request_id);
    EXPECT_TRUE(found != entries.end()) << request_id << " is not closed";
    if (found != entries.end()) return found->second;
    LedgerEntry none;
    none.closing.emplace();
    return none;
  }
};

TEST_F(BillingClusterTest, AServedRequestIsBilledByTheTierThatServedIt) {
  Tenant tenant = NewTenant("acme");
  for (router::TierLimits& limits : tenant.terms.limits)
    limits = {.requests_per_minute = 100, .tokens_per_minute = 100'000, .concurrent_streams = 5};
  const std::string key = AddTenant(tenant);
  AddWorkers(1, absl::Milliseconds(2));
  StartRouter();
  for (const auto tier : {kStandard, kUltraspeed}) {
    const Answer answer = Call(0, key, Request(40, tier));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.num_tokens, 40);
    EXPECT_EQ(answer.last().service_tier(), tier);
    EXPECT_EQ(answer.last().billed_tier(), tier);
    EXPECT_EQ(answer.last().billed_reason(), "");
    EXPECT_THAT(
        answer.metadata,
        AllOf(Contains(Pair("x-ratelimit-limit-requests", "100")),
              Contains(Key("x-ratelimit-remaining-tokens")),
              Contains(Pair("x-service-tier", tier == kStandard ? "standard" : "ultraspeed")),
              Contains(Key("x-request-id"))));
    ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
    const LedgerEntry entry = Entry(answer.request_id);
    const v1::Usage& usage = answer.last().usage();
    const int64_t factor = tier == kStandard ? 1 : 3;
    // $0.43, $0.0036 cached and $0.87 per million tokens, rounded half up.
    const int64_t exact = factor * ((usage.prompt_tokens() - usage.cached_tokens()) * 430'000 +
                                    usage.cached_tokens() * 3'600 + 40 * 870'000);
    EXPECT_EQ(entry.closing->cost_nanodollars, (exact + 500) / 1000);
    EXPECT_EQ(entry.closing->tokens.prompt, usage.prompt_tokens());
    EXPECT_EQ(entry.closing->tokens.completion, 40);
    EXPECT_EQ(entry.closing->finish_reason, "length");
    EXPECT_EQ(entry.closing->worker, workers_[0]->address());
  }
  // GetUsage says the same.
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + key);
  v1::GetUsageRequest request;
  request.add_group_by("service_tier");
  request.set_bucket_width("1d");
  v1::GetUsageResponse usage;
  const grpc::Status status = stubs_[0]->GetUsage(&context, request, &usage);
  ASSERT_TRUE(status.ok()) << status.error_message();
  int64_t cost = 0, requests = 0;
  for (const auto& bucket : usage.buckets()) {
    cost += bucket.cost_nanodollars();
    requests += bucket.requests();
  }
  int64_t ledger_cost = 0;
  for (const auto& [id, entry] : ClosedEntries()) ledger_cost += entry.closing->cost_nanodollars;
  EXPECT_EQ(requests, 2);
  EXPECT_EQ(cost, ledger_cost);
  grpc::ClientContext bad_context;
  bad_context.AddMetadata("authorization", "Bearer " + key);
  request.set_bucket_width("2h");
  const grpc::Status bad = stubs_[0]->GetUsage(&bad_context, request, &usage);
  EXPECT_EQ(bad.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(bad.error_message(), HasSubstr("bucket_width=2h"));
}

TEST_F(BillingClusterTest, ThoughtsAreInTheLedgerAndInTheUsage) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(1, absl::ZeroDuration());
  constexpr int32_t kThink = 4086, kThinkEnd = 4087;  // of models/tiny-mimo
  const std::vector<int32_t> tokens = {300, kThink, 301, 302, 303, kThinkEnd, 304};
  workers_[0]->SetScript(PlaySteps({{absl::ZeroDuration(), tokens}}));
  StartRouter();
  const Answer answer = Call(0, key, Request(40));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.last().usage().reasoning_tokens(), 5);
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  EXPECT_EQ(Entry(answer.request_id).closing->reasoning_tokens, 5);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + key);
  v1::GetUsageResponse usage;
  const grpc::Status status = stubs_[0]->GetUsage(&context, v1::GetUsageRequest(), &usage);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(usage.buckets_size(), 1);
  EXPECT_EQ(usage.buckets(0).usage().reasoning_tokens(), 5);
}

TEST_F(BillingClusterTest, ABudgetIsAHardStop) {
  Tenant tenant = NewTenant("acme");
  tenant.terms.monthly_budget_nanodollars = 100'000;  // some 110 tokens
  const std::string key = AddTenant(tenant);
  AddWorkers(1, absl::Milliseconds(1));
  StartRouter();
  StartRouter();
  const Answer first = Call(0, key, Request(60));
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  const Answer second = Call(1, key, Request(60));  // another router, the same budget
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(second.status.error_message(), HasSubstr("budget"));
  EXPECT_TRUE(Call(1, key, Request(5)).status.ok());
  EXPECT_EQ(workers_[0]->num_requests(), 2);
}

TEST_F(BillingClusterTest, ATierThatTheTenantMayNotUseIsRefusedByName) {
  Tenant tenant = NewTenant("acme");
  tenant.terms.entitlements = {{.model_pattern = "*", .tier = Tier::kStandard}};
  const std::string key = AddTenant(tenant);
  AddWorkers(1, absl::Milliseconds(1));
  StartRouter();
  const Answer refused = Call(0, key, Request(8, kUltraspeed));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("service_tier=ultraspeed"));
  v1::GenerateRequest by_alias = Request(8, v1::SERVICE_TIER_UNSPECIFIED);
  by_alias.set_model("fake-ultraspeed");
  EXPECT_EQ(Call(0, key, by_alias).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const Answer automatic = Call(0, key, Request(8, v1::SERVICE_TIER_AUTO));
  ASSERT_TRUE(automatic.status.ok()) << automatic.status.error_message();
  EXPECT_EQ(automatic.last().service_tier(), kStandard);
}

TEST_F(BillingClusterTest, ARevokedKeyIsRefusedEverywhereWithinTwoSeconds) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(1, absl::Milliseconds(1));
  StartRouter();
  StartRouter();
  for (size_t i = 0; i < 2; ++i) ASSERT_TRUE(Call(i, key, Request(4)).status.ok());
  const auto keys = store_->ListKeys("acme");
  ASSERT_TRUE(keys.ok());
  ASSERT_TRUE(
      store_
          ->RevokeKey(
              keys->at(0).id,
              {.who = "test", .what = "keys.revoke", .target = keys->at(0).id, .time = absl::Now()})
          .ok());
  const absl::Time revoked = absl::Now();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(Eventually(
        [&] {
          return Call(i, key, Request(4)).status.error_code() == grpc::StatusCode::UNAUTHENTICATED;
        },
        absl::Seconds(2)));
  }
  EXPECT_LT(absl::Now() - revoked, absl::Seconds(2));
}

TEST_F(BillingClusterTest, WithoutUltraspeedCapacityOnlyAutoIsDowngraded) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(1, absl::Milliseconds(1));
  StartRouter({"--queue-wait-max=300ms"});
  // Two ultraspeed streams are all that a worker takes.
  v1::GenerateRequest quiet = Request(16, kUltraspeed);
  quiet.mutable_options()->mutable_sampling()->set_top_k(kQuietTopK);
  std::vector<std::thread> holders;
  for (int i = 0; i < 2; ++i) {
    holders.emplace_back([&] { Call(0, key, quiet, {.deadline = absl::Seconds(4)}); });
  }
  ASSERT_TRUE(Eventually([&] { return workers_[0]->num_running() == 2; }, absl::Seconds(3)));
  const Answer automatic = Call(0, key, Request(8, v1::SERVICE_TIER_AUTO));
  ASSERT_TRUE(automatic.status.ok()) << automatic.status.error_message();
  EXPECT_EQ(automatic.last().service_tier(), kStandard);
  EXPECT_EQ(automatic.last().billed_tier(), kStandard);
  const Answer refused = Call(0, key, Request(8, kUltraspeed));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << refused.status.error_message();
  for (std::thread& holder : holders) holder.join();
  EXPECT_TRUE(Eventually(
      [&] {
        const Answer later = Call(0, key, Request(8, v1::SERVICE_TIER_AUTO));
        return later.status.ok() && later.last().service_tier() == kUltraspeed;
      },
      absl::Seconds(2)));
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  EXPECT_EQ(Entry(refused.request_id).closing->cost_nanodollars, 0);
}

TEST_F(BillingClusterTest, AStreamUnderThePromisedSpeedIsBilledStandardAndSaysWhy) {
  Tenant tenant = NewTenant("acme");
  tenant.terms.entitlements = {{"*", Tier::kStandard, 0}, {"*", Tier::kUltraspeed, 1000}};
  const std::string key = AddTenant(tenant);
  AddWorkers(1, absl::Milliseconds(10));  // four tokens: 400 a second at most
  StartRouter();
  const Answer slow = Call(0, key, Request(40, kUltraspeed));
  ASSERT_TRUE(slow.status.ok()) << slow.status.error_message();
  EXPECT_EQ(slow.last().service_tier(), kUltraspeed);
  EXPECT_EQ(slow.last().billed_tier(), kStandard);
  EXPECT_EQ(slow.last().billed_reason(), "speed_promise");
  EXPECT_LE(slow.last().timing().tokens_per_second(), 400);
  // A stream that keeps the promise, but whose reader is slow.
  workers_[0]->SetScript(PacedScript(absl::Microseconds(100)));
  const Answer fast =
      Call(0, key, Request(40, kUltraspeed), {.read_delay = absl::Milliseconds(50)});
  ASSERT_TRUE(fast.status.ok()) << fast.status.error_message();
  EXPECT_EQ(fast.last().billed_tier(), kUltraspeed) << fast.last().timing().tokens_per_second();
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  const LedgerEntry entry = Entry(slow.request_id);
  EXPECT_EQ(entry.opening.tier, Tier::kUltraspeed);
  EXPECT_EQ(entry.closing->billed_tier, Tier::kStandard);
  EXPECT_EQ(entry.closing->billed_reason, router::kBilledForSpeedPromise);
  EXPECT_NEAR(Entry(fast.request_id).closing->cost_nanodollars, 3 * entry.closing->cost_nanodollars,
              2);  // each is rounded for itself
}

TEST_F(BillingClusterTest, AClientThatDoesNotReadOwesOnlyWhatLeftTheRouter) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(1, absl::ZeroDuration());
  StartRouter();
  // Far more than the transport takes for a client that does not read.
  ClientPlan plan{.cancel_after_chunks = 2};
  plan.read_delay = absl::Seconds(1);
  const Answer answer = Call(0, key, Request(500'000), plan);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(AwaitIdleWorkers());
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  const LedgerEntry entry = Entry(answer.request_id);
  const int64_t generated = WorkerRecords()[answer.request_id].usage().completion_tokens();
  EXPECT_GE(entry.closing->tokens.completion, answer.num_tokens);
  EXPECT_LT(entry.closing->tokens.completion, generated / 2)
      << "of " << generated << " tokens most never left the router";
  EXPECT_EQ(entry.closing->finish_reason, "cancelled");
}

// Each stops reading, so that the router stops reading its worker, and leaves: the worker's stream
// may end while the router is about to read it again.
TEST_F(BillingClusterTest, ClientsThatStopReadingAndLeaveDoNotHarmTheRouter) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(2, absl::ZeroDuration());
  StartRouter();
  constexpr int kClients = 24, kCallsEach = 6;
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < kCallsEach; ++i) {
        ClientPlan plan{.cancel_after_chunks = 2};
        plan.read_delay = absl::Milliseconds(40 + 7 * c);
        const Answer answer = Call(0, key, Request(500'000), plan);
        EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED)
            << answer.status.error_message();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ASSERT_TRUE(AwaitIdleWorkers());
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
}

TEST_F(BillingClusterTest, ARouterThatIsStoppedLeavesNothingToSweep) {
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(1, absl::Milliseconds(5));
  StartRouter();
  Answer answer;
  std::thread client([&] { answer = Call(0, key, Request(200)); });
  ASSERT_TRUE(Eventually([&] { return workers_[0]->num_running() == 1; }, absl::Seconds(5)));
  routers_[0]->process().Signal(SIGTERM);
  EXPECT_EQ(routers_[0]->process().Wait(absl::Seconds(20)), 0) << routers_[0]->process().Log();
  client.join();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();  // running streams finish
  const auto open = store_->ListOpen(absl::Now() + absl::Hours(1), 10);
  ASSERT_TRUE(open.ok()) << open.status();
  EXPECT_TRUE(open->empty());
  EXPECT_EQ(Entry(answer.request_id).closing->tokens.completion, 200);
  const auto beats = store_->ListBeats();
  ASSERT_TRUE(beats.ok()) << beats.status();
  EXPECT_TRUE(beats->empty());
  EXPECT_EQ(LeasesInRedis(), 0);
}

TEST_F(BillingClusterTest, ADatabaseOutageLosesNoTokenAndStopsOnlyThoseWithABudget) {
  Tenant saver = NewTenant("saver");
  saver.terms.monthly_budget_nanodollars = router::kNanodollarsPerDollar;
  const std::string saver_key = AddTenant(saver);
  const std::string key = AddTenant(NewTenant("acme"));
  AddWorkers(2, absl::Milliseconds(5));
  StartRouter();
  std::vector<Answer> answers(10);
  // One that begins before the outage and ends within it.
  std::thread running([&] { answers[0] = Call(0, saver_key, Request(400)); });
  ASSERT_TRUE(
      Eventually([&] { return workers_[0]->num_running() + workers_[1]->num_running() == 1; },
                 absl::Seconds(5)));
  StopDatabase();
  for (size_t i = 1; i < answers.size(); ++i) answers[i] = Call(0, key, Request(8));
  const Answer refused = Call(0, saver_key, Request(8));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("budget of tenant saver"));
  running.join();
  EXPECT_TRUE(Eventually(
      [&] { return MetricsOf(0).find("ultraspeed_router_outbox_writes 0") == std::string::npos; },
      absl::Seconds(5)));
  StartDatabase();
  EXPECT_TRUE(Eventually(
      [&] { return MetricsOf(0).find("ultraspeed_router_outbox_writes 0") != std::string::npos; },
      absl::Seconds(10)));
  ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(10)));
  for (const Answer& answer : answers) {
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(Entry(answer.request_id).closing->tokens.completion, answer.num_tokens);
  }
  EXPECT_TRUE(Call(0, saver_key, Request(8)).status.ok());
  EXPECT_EQ(MetricsOf(0).find("swept_entries_total"), std::string::npos);
}

TEST_F(BillingClusterTest, WithoutRedisRequestsGoOnUnderLocalShares) {
  Tenant tenant = NewTenant("acme");
  for (router::TierLimits& limits : tenant.terms.limits) limits = {.concurrent_streams = 2};
  const std::string key = AddTenant(tenant);
  AddWorkers(1, absl::Milliseconds(2));
  StartRouter();
  ASSERT_TRUE(Call(0, key, Request(8)).status.ok());
  redis_.Kill();
  for (int i = 0; i < 5; ++i) {
    const Answer answer = Call(0, key, Request(8));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  }
  EXPECT_THAT(MetricsOf(0), HasSubstr("ultraspeed_router_rate_limiter_degraded 1"));
  // Half of two streams is one.
  ASSERT_TRUE(AwaitIdleWorkers());
  v1::GenerateRequest quiet = Request(16);
  quiet.mutable_options()->mutable_sampling()->set_top_k(kQuietTopK);
  std::thread holder([&] { Call(0, key, quiet, {.deadline = absl::Seconds(1)}); });
  EXPECT_TRUE(Eventually([&] { return workers_[0]->num_running() == 1; }, absl::Seconds(3)));
  EXPECT_EQ(Call(0, key, Request(8)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  holder.join();
  ASSERT_TRUE(redis_.Start());
  EXPECT_TRUE(Eventually(
      [&] {
        return MetricsOf(0).find("ultraspeed_router_rate_limiter_degraded 0") != std::string::npos;
      },
      absl::Seconds(10)));
  EXPECT_TRUE(Call(0, key, Request(8)).status.ok());
  EXPECT_TRUE(AwaitNothingOpen(absl::Seconds(5)));
  EXPECT_TRUE(Eventually([&] { return LeasesInRedis() == 0; }, absl::Seconds(5)));
}

}  // namespace
}  // namespace ultraspeed::testing
