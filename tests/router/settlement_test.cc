// Admission and Settlement against a real store (SQLite) and the in-process limiter.
#include "router/settlement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "router/admission.h"
#include "router/in_process_rate_limiter.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr char kModel[] = "tiny-mimo";

class SettlementTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store = OpenStore(testing::NewStoreUrl(testing::Backend::kSqlite));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    tenant_ = testing::TenantOf("acme");
    tenant_.terms.entitlements = {{"*", Tier::kStandard, 0}, {"*", Tier::kUltraspeed, 1000}};
    for (TierLimits& limits : tenant_.terms.limits) limits = {.concurrent_streams = 2};
    auto accounts = AccountsCache::Create({.store = store_.get(),
                                           .pepper = "only for this test",
                                           .clock = &clock_,
                                           .poll_interval = absl::ZeroDuration()});
    ASSERT_TRUE(accounts.ok()) << accounts.status();
    accounts_ = *std::move(accounts);
    auto outbox = Outbox::Create({.store = store_.get()});
    ASSERT_TRUE(outbox.ok()) << outbox.status();
    outbox_ = *std::move(outbox);
  }

  AdmissionResult Admit(const std::string& request_id, std::vector<Tier> tiers,
                        int64_t max_tokens = 1000) {
    const Admission admission({.limiter = &limiter_,
                               .store = store_.get(),
                               .accounts = accounts_.get(),
                               .outbox = outbox_.get(),
                               .router_id = "router-1",
                               .clock = &clock_});
    return admission.Admit({.request_id = request_id,
                            .tenant = {.tenant = "acme",
                                       .key_id = "key-1",
                                       .terms = std::make_shared<TenantTerms>(tenant_.terms)},
                            .model = kModel,
                            .prompt_tokens = 100,
                            .max_tokens = max_tokens,
                            .likely_tokens = max_tokens,
                            .tiers = std::move(tiers)});
  }

  LedgerEntry Entry(const std::string& request_id) {
    EXPECT_TRUE(outbox_->Flush(absl::Seconds(5)));
    auto entry = store_->GetEntry(request_id);
    EXPECT_TRUE(entry.ok()) << entry.status();
    return entry.value_or(LedgerEntry());
  }

  Spend SpendNow() { return store_->GetSpend("acme", MonthOf(clock_.Now())).value_or(Spend()); }

  // Streams that are free at the tier.
  int FreeStreams(Tier tier) {
    std::vector<Grant> grants;
    for (;;) {
      LimitDecision decision = limiter_.Acquire(
          {.tenant = "acme", .tier = tier, .limits = tenant_.terms.LimitsOf(tier), .tokens = 0});
      if (!decision.admitted()) return static_cast<int>(grants.size());
      grants.push_back(*std::move(decision.grant));
    }
  }

  static RequestOutcome Sent(int64_t prompt, int64_t completion,
                             std::optional<double> tokens_per_second = std::nullopt) {
    RequestOutcome outcome;
    outcome.sent = {.prompt = prompt, .cached = 0, .completion = completion};
    outcome.tokens_per_second = tokens_per_second;
    outcome.finish_reason = "stop";
    return outcome;
  }

  FakeClock clock_{testing::TestTime()};
  InProcessRateLimiter limiter_{clock_};
  Tenant tenant_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<AccountsCache> accounts_;
  std::unique_ptr<Outbox> outbox_;
};

TEST_F(SettlementTest, TheFirstSettlementCountsAndGivesEverythingBack) {
  {
    auto result = Admit("r1", {Tier::kStandard});
    ASSERT_TRUE(result.settlement.ok()) << result.settlement.status();
    EXPECT_EQ(FreeStreams(Tier::kStandard), 1);
    EXPECT_EQ(Entry("r1").opening.reserved_tokens, 1100);
    EXPECT_EQ(SpendNow().reserved_nanodollars, 100 * 430 + 1000 * 870);
    result.settlement->Settle(Sent(100, 7));
    result.settlement->Settle(Sent(100, 900));
  }
  const LedgerEntry entry = Entry("r1");
  ASSERT_TRUE(entry.closing.has_value());
  EXPECT_EQ(entry.closing->tokens.completion, 7);
  EXPECT_EQ(entry.closing->cost_nanodollars, 100 * 430 + 7 * 870);
  EXPECT_EQ(entry.closing->finish_reason, "stop");
  EXPECT_EQ(FreeStreams(Tier::kStandard), 2);
  EXPECT_EQ(SpendNow().reserved_nanodollars, 0);
  EXPECT_EQ(SpendNow().spent_nanodollars, entry.closing->cost_nanodollars);
}

TEST_F(SettlementTest, ARequestThatIsDroppedCostsNothing) {
  { const auto dropped = Admit("r1", {Tier::kUltraspeed}); }
  const LedgerEntry entry = Entry("r1");
  ASSERT_TRUE(entry.closing.has_value());
  EXPECT_EQ(entry.closing->cost_nanodollars, 0);
  EXPECT_EQ(entry.closing->tokens.prompt, 0);
  EXPECT_EQ(FreeStreams(Tier::kUltraspeed), 2);
}

TEST_F(SettlementTest, MovingItMovesTheDebt) {
  auto result = Admit("r1", {Tier::kStandard});
  ASSERT_TRUE(result.settlement.ok());
  Settlement first = *std::move(result.settlement);
  Settlement second;
  second = std::move(first);
  first.Settle(Sent(100, 500));
  EXPECT_FALSE(Entry("r1").closing.has_value());
  second.Settle(Sent(100, 3));
  EXPECT_EQ(Entry("r1").closing->tokens.completion, 3);
}

TEST_F(SettlementTest, ABrokenSpeedPromiseIsBilledAtTheStandardPrice) {
  auto slow = Admit("slow", {Tier::kUltraspeed});
  auto fast = Admit("fast", {Tier::kUltraspeed});
  ASSERT_TRUE(slow.settlement.ok() && fast.settlement.ok());
  slow.settlement->Settle(Sent(100, 50, 999));
  fast.settlement->Settle(Sent(100, 50, 1001));
  const LedgerEntry slow_entry = Entry("slow"), fast_entry = Entry("fast");
  EXPECT_EQ(slow_entry.opening.tier, Tier::kUltraspeed);
  EXPECT_EQ(slow_entry.closing->billed_tier, Tier::kStandard);
  EXPECT_EQ(slow_entry.closing->billed_reason, kBilledForSpeedPromise);
  EXPECT_EQ(fast_entry.closing->billed_tier, Tier::kUltraspeed);
  EXPECT_EQ(fast_entry.closing->billed_reason, kBilledAsServed);
  EXPECT_EQ(fast_entry.closing->cost_nanodollars, 3 * slow_entry.closing->cost_nanodollars);
  EXPECT_EQ(slow_entry.closing->cost_nanodollars, 100 * 430 + 50 * 870);
}

TEST_F(SettlementTest, ALimitRefusesAndOpensNothing) {
  const auto first = Admit("r1", {Tier::kStandard});
  const auto second = Admit("r2", {Tier::kStandard});
  const auto third = Admit("r3", {Tier::kStandard});
  EXPECT_TRUE(first.settlement.ok() && second.settlement.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(third.settlement.status())) << third.settlement.status();
  EXPECT_THAT(third.metadata, Contains(Pair("retry-after", ::testing::_)));
  EXPECT_TRUE(absl::IsNotFound(store_->GetEntry("r3").status()));
}

TEST_F(SettlementTest, ABudgetIsAHardStopAndTheStreamIsGivenBack) {
  tenant_.terms.monthly_budget_nanodollars = 100 * 430 + 1000 * 870 - 1;
  const auto result = Admit("r1", {Tier::kStandard});
  EXPECT_TRUE(absl::IsFailedPrecondition(result.settlement.status())) << result.settlement.status();
  EXPECT_EQ(FreeStreams(Tier::kStandard), 2);
  EXPECT_TRUE(absl::IsNotFound(store_->GetEntry("r1").status()));
  ++*tenant_.terms.monthly_budget_nanodollars;
  EXPECT_TRUE(Admit("r2", {Tier::kStandard}).settlement.ok());
}

TEST_F(SettlementTest, TheNextTierIsTriedWhenLimitOrBudgetRefusesTheFirst) {
  const std::vector<Tier> both = {Tier::kUltraspeed, Tier::kStandard};
  const auto a = Admit("a", both), b = Admit("b", both), c = Admit("c", both);
  ASSERT_TRUE(a.settlement.ok() && b.settlement.ok() && c.settlement.ok());
  EXPECT_EQ(b.settlement->tier(), Tier::kUltraspeed);
  EXPECT_EQ(c.settlement->tier(), Tier::kStandard);  // two streams are taken
  EXPECT_EQ(Entry("c").opening.tier, Tier::kStandard);
}

TEST_F(SettlementTest, TheNextTierIsTriedWhenTheBudgetRefusesTheFirst) {
  tenant_.terms.monthly_budget_nanodollars = 2 * (100 * 430 + 1000 * 870);
  const auto result = Admit("r1", {Tier::kUltraspeed, Tier::kStandard});
  ASSERT_TRUE(result.settlement.ok()) << result.settlement.status();
  EXPECT_EQ(result.settlement->tier(), Tier::kStandard);
  EXPECT_EQ(FreeStreams(Tier::kUltraspeed), 2);
}

TEST_F(SettlementTest, TheTokenLimitIsSettledToWhatWasUsed) {
  tenant_.terms.limits[0] = {.tokens_per_minute = 1200};
  auto first = Admit("r1", {Tier::kStandard});  // takes 1100 of them
  ASSERT_TRUE(first.settlement.ok()) << first.settlement.status();
  EXPECT_TRUE(absl::IsResourceExhausted(Admit("r2", {Tier::kStandard}).settlement.status()));
  first.settlement->Settle(Sent(60, 40));  // used 100
  EXPECT_TRUE(Admit("r3", {Tier::kStandard}).settlement.ok());
}

TEST_F(SettlementTest, WithoutStoreAndLimitsNothingBlocks) {
  const Admission admission({.limiter = &limiter_, .limiter_blocks = true});
  AdmissionRequest request{.request_id = "r1",
                           .tenant = {.tenant = "anonymous", .key_id = ""},
                           .model = kModel,
                           .prompt_tokens = 1,
                           .max_tokens = 1,
                           .likely_tokens = 1,
                           .tiers = {Tier::kUltraspeed}};
  EXPECT_FALSE(admission.MayBlock(request));
  const auto result = admission.Admit(request);
  ASSERT_TRUE(result.settlement.ok());
  EXPECT_TRUE(result.metadata.empty());
  auto limited = std::make_shared<TenantTerms>(*UnrestrictedTerms());
  limited->limits[static_cast<size_t>(Tier::kUltraspeed)].concurrent_streams = 1;
  request.tenant.terms = limited;
  EXPECT_TRUE(admission.MayBlock(request));  // it asks the shared limiter
}

}  // namespace
}  // namespace ultraspeed::router
