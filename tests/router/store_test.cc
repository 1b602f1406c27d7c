#include "router/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/sql_database.h"
#include "router/store_migrations.h"
#include "tests/cluster/eventually.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using testing::ActOf;
using testing::Backend;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::NewStoreUrl;
using ::testing::Not;
using testing::OpeningOf;
using testing::TenantOf;
using testing::TestTime;

ApiKeyRecord KeyOf(const std::string& id, const std::string& tenant_id) {
  return {.id = id,
          .tenant_id = tenant_id,
          .label = "ci",
          .digest_hex = std::string(64, 'a'),
          .created = TestTime(),
          .expires = TestTime() + absl::Hours(1)};
}

using StoreTest = testing::StoreTest;

// ---- Tenants ----

TEST_P(StoreTest, ATenantComesBackAsItWasWritten) {
  Tenant tenant = TenantOf("acme");
  tenant.name = "Acme \"quoted\", 'gmbh' 日本";
  tenant.terms.entitlements = {{"mimo-*", Tier::kUltraspeed, 400},
                               {"tiny-mimo", Tier::kStandard, 0}};
  tenant.terms.limits[1] = {.requests_per_minute = 60,
                            .requests_burst = 10,
                            .tokens_per_minute = 5'000'000'000,
                            .tokens_burst = 9,
                            .concurrent_streams = 4};
  tenant.terms.monthly_budget_nanodollars = 123'456'789'012;
  ASSERT_TRUE(store_->CreateTenant(tenant, ActOf("tenants.create", "acme")).ok());
  const auto read = store_->GetTenant("acme");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->name, tenant.name);
  EXPECT_EQ(read->state, TenantState::kActive);
  EXPECT_EQ(read->created, TestTime());
  EXPECT_EQ(read->terms.entitlements, tenant.terms.entitlements);
  EXPECT_EQ(read->terms.limits[1].requests_per_minute, 60);
  EXPECT_EQ(read->terms.limits[1].requests_burst, 10);
  EXPECT_EQ(read->terms.limits[1].tokens_per_minute, 5'000'000'000);
  EXPECT_EQ(read->terms.limits[1].tokens_burst, 9);
  EXPECT_EQ(read->terms.limits[1].concurrent_streams, 4);
  EXPECT_EQ(read->terms.limits[0].concurrent_streams, 0);
  EXPECT_EQ(read->terms.monthly_budget_nanodollars, 123'456'789'012);
}

TEST_P(StoreTest, ATenantIdIsTakenOnce) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  const absl::Status again = store_->CreateTenant(TenantOf("acme"), ActOf("again", "acme"));
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->GetTenant("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(StoreTest, AnUpdateReplacesTheTermsAndNeedsTheLatestVersion) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  Tenant tenant = *store_->GetTenant("acme");
  const Tenant stale = tenant;
  tenant.state = TenantState::kSuspended;
  tenant.terms.entitlements = {{"tiny-mimo", Tier::kStandard, 0}};
  ASSERT_TRUE(store_->UpdateTenant(tenant, ActOf("tenants.update", "acme")).ok());
  EXPECT_EQ(store_->GetTenant("acme")->state, TenantState::kSuspended);
  EXPECT_EQ(store_->GetTenant("acme")->terms.entitlements, tenant.terms.entitlements);
  EXPECT_EQ(store_->UpdateTenant(stale, ActOf("tenants.update", "acme")).code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(store_->UpdateTenant(TenantOf("none"), ActOf("tenants.update", "none")).code(),
            absl::StatusCode::kNotFound);
}

TEST_P(StoreTest, TenantsAreListedInPagesInOrderOfTheirBytes) {
  for (const char* id : {"b", "a", "B", "a-1", "c"}) {
    ASSERT_TRUE(store_->CreateTenant(TenantOf(id), ActOf("tenants.create", id)).ok());
  }
  EXPECT_THAT(
      *store_->ListTenants("", 3),
      ElementsAre(Field(&Tenant::id, "B"), Field(&Tenant::id, "a"), Field(&Tenant::id, "a-1")));
  const auto rest = store_->ListTenants("a-1", 3);
  EXPECT_THAT(*rest, ElementsAre(Field(&Tenant::id, "b"), Field(&Tenant::id, "c")));
  EXPECT_EQ((*rest)[0].terms.entitlements.size(), 2u);
}

// ---- Keys ----

TEST_P(StoreTest, KeysAreCreatedListedAndRevokedOnce) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  ASSERT_TRUE(store_->CreateKey(KeyOf("aaaaaaaa", "acme"), ActOf("keys.create", "aaaaaaaa")).ok());
  ASSERT_TRUE(store_->CreateKey(KeyOf("bbbbbbbb", "acme"), ActOf("keys.create", "bbbbbbbb")).ok());
  EXPECT_EQ(store_->CreateKey(KeyOf("bbbbbbbb", "acme"), ActOf("x", "bbbbbbbb")).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->CreateKey(KeyOf("cccccccc", "none"), ActOf("x", "cccccccc")).code(),
            absl::StatusCode::kNotFound);
  Act revoke = ActOf("keys.revoke", "aaaaaaaa");
  ASSERT_TRUE(store_->RevokeKey("aaaaaaaa", revoke).ok());
  revoke.time += absl::Hours(1);
  ASSERT_TRUE(store_->RevokeKey("aaaaaaaa", revoke).ok());
  EXPECT_EQ(store_->RevokeKey("cccccccc", revoke).code(), absl::StatusCode::kNotFound);
  const auto keys = store_->ListKeys("acme");
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2u);
  const ApiKeyRecord& revoked = (*keys)[0].id == "aaaaaaaa" ? (*keys)[0] : (*keys)[1];
  EXPECT_EQ(revoked.revoked, TestTime());  // the first time stands
  EXPECT_EQ(revoked.expires, TestTime() + absl::Hours(1));
  EXPECT_EQ(revoked.digest_hex, std::string(64, 'a'));
  EXPECT_EQ(store_->ListKeys("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(StoreTest, ChangesAfterAVersionAreExactlyWhatChanged) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  const auto all = store_->ReadChanges(0);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->tenants.size(), 1u);
  EXPECT_EQ(all->prices.size(), 2u);
  EXPECT_EQ(*store_->AccountsVersion(), all->version);
  EXPECT_THAT(store_->ReadChanges(all->version)->tenants, IsEmpty());

  ASSERT_TRUE(store_->CreateKey(KeyOf("aaaaaaaa", "acme"), ActOf("keys.create", "aaaaaaaa")).ok());
  const auto created = store_->ReadChanges(all->version);
  EXPECT_EQ(created->version, all->version + 1);
  EXPECT_THAT(created->keys, ElementsAre(Field(&ApiKeyRecord::id, "aaaaaaaa")));
  EXPECT_THAT(created->tenants, IsEmpty());
  EXPECT_THAT(created->prices, IsEmpty());
}

TEST_P(StoreTest, ARefusedChangeRaisesNoVersion) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  const int64_t version = *store_->AccountsVersion();
  EXPECT_FALSE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  EXPECT_EQ(*store_->AccountsVersion(), version);
}

TEST_P(StoreTest, ConcurrentChangesGetVersionsOfTheirOwn) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) {
        const std::string id = absl::StrCat("t", i, "-", k);
        EXPECT_TRUE(store_->CreateTenant(TenantOf(id), ActOf("tenants.create", id)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(*store_->AccountsVersion(), 41);
  EXPECT_EQ(store_->ReadChanges(21)->tenants.size(), 20u);
}

// ---- Prices ----

TEST_P(StoreTest, TheSeededPricesAreTheListPricesAndUltraspeedIsThreeTimesEveryLine) {
  const auto prices = store_->ListPrices();
  ASSERT_TRUE(prices.ok()) << prices.status();
  const PriceTable table(*prices);
  const auto standard = table.Find("tiny-mimo", Tier::kStandard, TestTime());
  const auto ultraspeed = table.Find("tiny-mimo", Tier::kUltraspeed, TestTime());
  ASSERT_TRUE(standard.ok() && ultraspeed.ok());
  EXPECT_EQ(standard->per_million,
            (TokenPrices{.input = 430'000'000, .cached_input = 3'600'000, .output = 870'000'000}));
  EXPECT_EQ(ultraspeed->per_million, (TokenPrices{.input = 3 * 430'000'000LL,
                                                  .cached_input = 3 * 3'600'000LL,
                                                  .output = 3 * 870'000'000LL}));
  const TokenCounts million = {.prompt = 1'000'000, .completion = 1'000'000};
  EXPECT_EQ(PriceOf(million, standard->per_million), 1'300'000'000);    // $1.30
  EXPECT_EQ(PriceOf(million, ultraspeed->per_million), 3'900'000'000);  // $3.90
}

TEST_P(StoreTest, AddedPricesGetNewVersionsAndReachTheReaders) {
  const int64_t before = *store_->AccountsVersion();
  const Price price = {.model_pattern = "mimo-*",
                       .tier = Tier::kUltraspeed,
                       .per_million = {1, 2, 3},
                       .effective_from = TestTime()};
  const auto version = store_->AddPrice(price, ActOf("prices.add", "mimo-*"));
  ASSERT_TRUE(version.ok()) << version.status();
  const auto changes = store_->ReadChanges(before);
  ASSERT_EQ(changes->prices.size(), 1u);
  EXPECT_EQ(changes->prices[0].version, *version);
  EXPECT_EQ(changes->prices[0].model_pattern, "mimo-*");
  EXPECT_EQ(changes->prices[0].tier, Tier::kUltraspeed);
  EXPECT_EQ(changes->prices[0].per_million, price.per_million);
  EXPECT_EQ(changes->prices[0].effective_from, TestTime());
  EXPECT_EQ(store_->ListPrices()->size(), 3u);
}

// ---- Audit ----

TEST_P(StoreTest, EveryChangeLeavesAnAuditRowAndARefusedOneNone) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  EXPECT_FALSE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  ASSERT_TRUE(store_->CreateKey(KeyOf("aaaaaaaa", "acme"), ActOf("keys.create", "aaaaaaaa")).ok());
  ASSERT_TRUE(store_->RevokeKey("aaaaaaaa", ActOf("keys.revoke", "aaaaaaaa")).ok());
  ASSERT_TRUE(
      store_->AppendAudit({.act = ActOf("tenants.get", "none"), .result = "NOT_FOUND"}).ok());
  const auto audit = store_->ListAudit(std::nullopt, 10);
  ASSERT_TRUE(audit.ok()) << audit.status();
  ASSERT_EQ(audit->size(), 4u);
  EXPECT_EQ((*audit)[0].result, "NOT_FOUND");
  EXPECT_EQ((*audit)[1].act.what, "keys.revoke");
  EXPECT_EQ((*audit)[3].act.what, "tenants.create");
  EXPECT_EQ((*audit)[3].act.who, "tester");
  EXPECT_EQ((*audit)[3].act.target, "acme");
  EXPECT_EQ((*audit)[3].act.time, TestTime());
  EXPECT_EQ((*audit)[3].result, "OK");
  EXPECT_EQ(store_->ListAudit((*audit)[1].id, 1)->at(0).id, (*audit)[2].id);
}

// ---- Schema ----

TEST_P(StoreTest, OpeningAgainKeepsEverything) {
  ASSERT_TRUE(store_->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  const auto again = OpenStore(url_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*again)->GetTenant("acme").ok());
  EXPECT_EQ((*again)->ListPrices()->size(), 2u);  // seeded once
}

TEST_P(StoreTest, RoutersThatStartTogetherMigrateOnce) {
  const std::string url = NewStoreUrl(GetParam());
  std::vector<std::thread> routers;
  for (int i = 0; i < 6; ++i) {
    routers.emplace_back([&] {
      const auto store = OpenStore(url);
      EXPECT_TRUE(store.ok()) << store.status();
    });
  }
  for (std::thread& router : routers) router.join();
  EXPECT_EQ((*OpenStore(url))->ListPrices()->size(), 2u);
}

TEST_P(StoreTest, ANewerSchemaIsRefused) {
  auto database = GetParam() == Backend::kSqlite ? OpenSqlite(url_.substr(7))  // after "sqlite:"
                                                 : OpenPostgres(url_, 1);
  ASSERT_TRUE(database.ok()) << database.status();
  ASSERT_TRUE((*database)
                  ->Transact(SqlAccess::kWrite,
                             [](SqlConnection& connection) {
                               return connection
                                   .Execute("INSERT INTO schema_version VALUES ($1)",
                                            {SqlValue(StoreSchemaVersion() + 1)})
                                   .status();
                             })
                  .ok());
  const absl::Status status = OpenStore(url_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(StoreSchemaVersion() + 1)));
}

INSTANTIATE_STORE_TESTS(StoreTest);

// ---- One database's own ----

TEST(SqliteStore, OnlyItsOwnerMayReadTheFile) {
  const std::string url = NewStoreUrl(Backend::kSqlite);
  const auto store = OpenStore(url);
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE((*store)->CreateTenant(TenantOf("acme"), ActOf("tenants.create", "acme")).ok());
  for (const char* suffix : {"", "-wal"}) {
    const auto permissions =
        std::filesystem::status(url.substr(7) + suffix).permissions();  // after "sqlite:"
    EXPECT_EQ(permissions, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write)
        << suffix;
  }
}

TEST(PostgresStore, AnOutageIsUnavailableAndEndsWithIt) {
  const auto store = OpenStore(NewStoreUrl(Backend::kPostgres));
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE((*store)->OpenEntry(OpeningOf("r1"), std::nullopt).ok());
  testing::StopPostgres();
  EXPECT_EQ((*store)->OpenEntry(OpeningOf("r2"), std::nullopt).code(),
            absl::StatusCode::kUnavailable);
  testing::StartPostgres();
  EXPECT_TRUE(::ultraspeed::testing::Eventually(
      [&] { return (*store)->OpenEntry(OpeningOf("r2"), std::nullopt).ok(); }, absl::Seconds(5)));
  EXPECT_TRUE((*store)->GetEntry("r1").ok());
}

TEST(PostgresStore, ARestartBetweenTwoCallsIsNotSeen) {
  const auto store = OpenStore(NewStoreUrl(Backend::kPostgres));
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE((*store)->OpenEntry(OpeningOf("r1"), std::nullopt).ok());
  testing::StopPostgres();
  testing::StartPostgres();
  const absl::Status status = (*store)->OpenEntry(OpeningOf("r2"), std::nullopt);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(OpenStore, OtherUrlsAreRefusedWithoutRepeatingThem) {
  for (const char* url :
       {"", "sqlite:", "mysql://user:secret@host/db", "postgresql://user:secret%@host/db",
        "postgresql://u:secret@h:99999/db"}) {
    const absl::Status status = OpenStore(url).status();
    EXPECT_FALSE(status.ok()) << url;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret"))) << url;
  }
  EXPECT_EQ(OpenStore("sqlite:/nowhere/at/all.db").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(OpenStore("postgresql:///db?host=/nowhere").status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ultraspeed::router
