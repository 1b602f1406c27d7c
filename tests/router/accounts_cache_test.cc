#include "router/accounts_cache.h"

#include <gtest/gtest.h>

#include "tests/cluster/eventually.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using testing::ActOf;
using testing::Backend;
using testing::TenantOf;
using ::ultraspeed::testing::Eventually;

constexpr char kPepper[] = "a pepper of some length";

class AccountsCacheTest : public testing::StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  }
  // The text of a new key of acme.
  std::string NewKey(std::optional<absl::Time> expires = std::nullopt) {
    const NewApiKey made = *GenerateApiKey();
    EXPECT_TRUE(store_
                    ->CreateKey({.id = made.id,
                                 .tenant_id = "acme",
                                 .label = "",
                                 .digest_hex = HashApiKey(made.key, kPepper),
                                 .created = clock_.Now(),
                                 .expires = expires},
                                ActOf("keys.create", made.id))
                    .ok());
    return made.key;
  }
  // Refreshed by the test, on the test's clock.
  std::unique_ptr<AccountsCache> NewCache() {
    return *AccountsCache::Create({.store = store_.get(),
                                   .pepper = kPepper,
                                   .clock = &clock_,
                                   .poll_interval = absl::ZeroDuration(),
                                   .stale_max = absl::Minutes(15)});
  }
  static absl::StatusCode CodeOf(const AccountsCache& cache, absl::string_view key) {
    return cache.Authenticate(key).status().code();
  }

  FakeClock clock_;
};

TEST_P(AccountsCacheTest, KnowsItsKeysWithTheTermsOfTheirTenant) {
  Tenant tenant = *store_->GetTenant("acme");
  tenant.terms.entitlements = {{"tiny-*", Tier::kUltraspeed, 250}};
  tenant.terms.monthly_budget_nanodollars = 77;
  ASSERT_TRUE(store_->UpdateTenant(tenant, ActOf("tenants.update", "acme")).ok());
  const std::string key = NewKey();
  const auto caller = NewCache()->Authenticate(key);
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->tenant, "acme");
  EXPECT_EQ(caller->key_id, ApiKeyIdOf(key));
  EXPECT_EQ(caller->terms->Find("tiny-mimo", Tier::kUltraspeed)->promised_tokens_per_second, 250);
  EXPECT_EQ(caller->terms->Find("tiny-mimo", Tier::kStandard), nullptr);
  EXPECT_EQ(caller->terms->monthly_budget_nanodollars, 77);
}

TEST_P(AccountsCacheTest, EveryWrongKeyReadsTheSame) {
  const std::string key = NewKey();
  const auto cache = NewCache();
  std::string other_secret = key;
  other_secret.back() = key.back() == '0' ? '1' : '0';
  const std::string other_id = "us-aaaaaaaa" + key.substr(11);
  for (const std::string& wrong : {other_secret, other_id, std::string(), key + "0"}) {
    EXPECT_EQ(cache->Authenticate(wrong).status(), InvalidApiKeyError()) << wrong.size();
  }
  const auto other_pepper = AccountsCache::Create({.store = store_.get(),
                                                   .pepper = "another pepper than that",
                                                   .poll_interval = absl::ZeroDuration()});
  EXPECT_EQ((*other_pepper)->Authenticate(key).status(), InvalidApiKeyError());
}

TEST_P(AccountsCacheTest, ChangesHoldFromTheNextRefresh) {
  const auto cache = NewCache();
  const std::string key = NewKey();
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kUnauthenticated);
  ASSERT_TRUE(cache->Refresh().ok());
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kOk);

  Tenant tenant = *store_->GetTenant("acme");
  tenant.state = TenantState::kSuspended;
  ASSERT_TRUE(store_->UpdateTenant(tenant, ActOf("tenants.update", "acme")).ok());
  ASSERT_TRUE(cache->Refresh().ok());
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kPermissionDenied);

  ASSERT_TRUE(store_->RevokeKey(ApiKeyIdOf(key), ActOf("keys.revoke", "")).ok());
  ASSERT_TRUE(cache->Refresh().ok());
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kUnauthenticated);
}

TEST_P(AccountsCacheTest, ARevocationHoldsThoughThisClockIsBehind) {
  const std::string key = NewKey();
  Act revoke = ActOf("keys.revoke", "");
  revoke.time = clock_.Now() + absl::Hours(1);
  ASSERT_TRUE(store_->RevokeKey(ApiKeyIdOf(key), revoke).ok());
  EXPECT_EQ(CodeOf(*NewCache(), key), absl::StatusCode::kUnauthenticated);
}

TEST_P(AccountsCacheTest, AKeyEndsWhenItExpires) {
  const std::string key = NewKey(clock_.Now() + absl::Minutes(1));
  const auto cache = NewCache();
  clock_.Advance(absl::Minutes(1) - absl::Milliseconds(1));
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kOk);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kUnauthenticated);
}

TEST_P(AccountsCacheTest, AddedPricesReachTheTable) {
  const auto cache = NewCache();
  EXPECT_EQ(cache->prices()->prices().size(), 2u);
  const auto version = store_->AddPrice(
      {.model_pattern = "tiny-mimo", .per_million = {1, 2, 3}, .effective_from = clock_.Now()},
      ActOf("prices.add", "tiny-mimo"));
  ASSERT_TRUE(cache->Refresh().ok());
  EXPECT_EQ(cache->prices()->Find("tiny-mimo", Tier::kStandard, clock_.Now())->version, *version);
}

// Two routers on one store, as they run: each polls by itself.
TEST_P(AccountsCacheTest, ARevocationHoldsOnEveryRouterWithinTwoSeconds) {
  const std::string key = NewKey();
  auto other_store = OpenStore(url_);
  ASSERT_TRUE(other_store.ok()) << other_store.status();
  const auto first = AccountsCache::Create({.store = store_.get(), .pepper = kPepper});
  const auto second = AccountsCache::Create({.store = other_store->get(), .pepper = kPepper});
  ASSERT_TRUE((*first)->Authenticate(key).ok());
  ASSERT_TRUE((*second)->Authenticate(key).ok());
  const absl::Time revoked = absl::Now();
  ASSERT_TRUE(store_->RevokeKey(ApiKeyIdOf(key), ActOf("keys.revoke", "")).ok());
  EXPECT_TRUE(Eventually(
      [&] { return !(*first)->Authenticate(key).ok() && !(*second)->Authenticate(key).ok(); },
      absl::Seconds(2)));
  EXPECT_LT(absl::Now() - revoked, absl::Seconds(2));
}

TEST_P(AccountsCacheTest, AnOutageIsServedFromMemoryForABoundedTime) {
  if (GetParam() != Backend::kPostgres) return;  // a file has no outage to stage
  const std::string key = NewKey();
  const auto cache = NewCache();
  testing::StopPostgres();
  clock_.Advance(absl::Minutes(15));
  EXPECT_EQ(cache->Refresh().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kOk);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kUnavailable);
  testing::StartPostgres();
  EXPECT_TRUE(Eventually([&] { return cache->Refresh().ok(); }, absl::Seconds(5)));
  EXPECT_EQ(CodeOf(*cache, key), absl::StatusCode::kOk);
}

TEST_P(AccountsCacheTest, AShortPepperIsRefused) {
  EXPECT_EQ(AccountsCache::Create({.store = store_.get(), .pepper = "short"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_STORE_TESTS(AccountsCacheTest);

}  // namespace
}  // namespace ultraspeed::router
