#include "router/admin_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstdio>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "router/accounts_cache.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using testing::ClosingOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::OpeningOf;
using testing::TestTime;

constexpr char kPepper[] = "a pepper of some length";
constexpr char kToken[] = "0123456789abcdef0123456789abcdef";

// A real server on a real store, on the test's clock.
class AdminServiceTest : public testing::StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    if (HasFatalFailure()) return;
    const std::string path = absl::StrCat(::testing::TempDir(), "/admin_tokens_", getpid());
    std::ofstream(path) << "# operators\nalice " << kToken << "\nbob " << std::string(32, 'b')
                        << "\n";
    auto tokens = AdminTokens::Read(path);
    std::remove(path.c_str());
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    auto server = AdminServer::Start(
        "127.0.0.1:0", {},
        {.store = store_.get(), .tokens = *std::move(tokens), .pepper = kPepper, .clock = &clock_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Admin::NewStub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                   grpc::InsecureChannelCredentials()));
  }

  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                            Response*),
                    const Request& request, Response* response, const std::string& token = kToken) {
    grpc::ClientContext context;
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    return FromGrpcStatus((stub_.get()->*method)(&context, request, response));
  }
  template <typename Request, typename Response>
  std::string Fault(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                            Response*),
                    const Request& request) {
    Response response;
    const absl::Status status = Call(method, request, &response);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  v1::Tenant CreateTenant(const std::string& id) {
    v1::CreateTenantRequest request;
    request.set_id(id);
    request.set_name("Tenant " + id);
    v1::Entitlement* const entitlement = request.add_entitlements();
    entitlement->set_model("tiny-*");
    entitlement->set_tier(v1::SERVICE_TIER_ULTRASPEED);
    entitlement->set_promised_tokens_per_second(400);
    v1::Tenant tenant;
    const absl::Status status = Call(&v1::Admin::Stub::CreateTenant, request, &tenant);
    EXPECT_TRUE(status.ok()) << status;
    return tenant;
  }
  v1::CreateKeyResponse CreateKey(const std::string& tenant_id) {
    v1::CreateKeyRequest request;
    request.set_tenant_id(tenant_id);
    request.set_label("ci");
    v1::CreateKeyResponse response;
    const absl::Status status = Call(&v1::Admin::Stub::CreateKey, request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }
  std::vector<AuditEntry> Audit() { return *store_->ListAudit(std::nullopt, 100); }

  FakeClock clock_;
  std::unique_ptr<AdminServer> server_;
  std::unique_ptr<v1::Admin::Stub> stub_;
};

// ---- Who may ----

TEST_P(AdminServiceTest, OnlyOperatorsAreHeardAndNothingElseHappens) {
  v1::CreateTenantRequest request;
  request.set_id("acme");
  v1::Tenant tenant;
  for (const std::string& token :
       {std::string(), std::string("wrong"), std::string(kToken) + "0", std::string(31, 'b')}) {
    EXPECT_EQ(Call(&v1::Admin::Stub::CreateTenant, request, &tenant, token).code(),
              absl::StatusCode::kUnauthenticated);
  }
  EXPECT_EQ(store_->GetTenant("acme").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Audit().empty());
  EXPECT_TRUE(Call(&v1::Admin::Stub::CreateTenant, request, &tenant, std::string(32, 'b')).ok());
  EXPECT_EQ(Audit().at(0).act.who, "bob");
}

TEST(AdminTokens, FaultsNameTheLineAndNeverItsText) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/admin_tokens_", getpid());
  const auto Read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return AdminTokens::Read(path).status();
  };
  for (const char* text : {"alice secret-but-short\n", "secret-alone-secret-alone-secret-alone\n",
                           "a b secret-secret-secret-secret-secret\n"}) {
    const absl::Status status = Read(absl::StrCat("# head\n", text));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
  EXPECT_EQ(Read("# nobody\n").code(), absl::StatusCode::kFailedPrecondition);
  std::remove(path.c_str());
  EXPECT_EQ(AdminTokens::Read(path).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(AdminTokens().Authenticate("").ok());
}

TEST(AdminServer, ServesNothingInTheClearOffLoopback) {
  EXPECT_EQ(AdminServer::Start("0.0.0.0:0", {}, {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// ---- Tenants ----

TEST_P(AdminServiceTest, ANewTenantGetsDefaultsForWhatIsNotNamed) {
  v1::CreateTenantRequest request;
  request.set_id("acme");
  v1::TierLimits* const limits = request.add_limits();
  limits->set_tier(v1::SERVICE_TIER_ULTRASPEED);
  limits->set_concurrent_streams(9);
  request.set_monthly_budget_nanodollars(0);
  v1::Tenant tenant;
  ASSERT_TRUE(Call(&v1::Admin::Stub::CreateTenant, request, &tenant).ok());
  EXPECT_EQ(tenant.state(), v1::TENANT_STATE_ACTIVE);
  EXPECT_EQ(tenant.entitlements_size(), 0);
  ASSERT_EQ(tenant.limits_size(), 2);
  EXPECT_EQ(tenant.limits(0).requests_per_minute(),
            NewTenantLimits(Tier::kStandard).requests_per_minute);
  EXPECT_EQ(tenant.limits(1).requests_per_minute(),
            NewTenantLimits(Tier::kUltraspeed).requests_per_minute);
  EXPECT_EQ(tenant.limits(1).concurrent_streams(), 9);
  ASSERT_TRUE(tenant.has_monthly_budget_nanodollars());  // zero is a budget
  EXPECT_EQ(tenant.monthly_budget_nanodollars(), 0);
  EXPECT_EQ(tenant.created().seconds(), 1'800'000'000);
}

TEST_P(AdminServiceTest, AnUpdateChangesOnlyWhatIsGiven) {
  CreateTenant("acme");
  v1::UpdateTenantRequest request;
  request.set_id("acme");
  v1::TierLimits* const limits = request.add_limits();
  limits->set_tier(v1::SERVICE_TIER_STANDARD);
  limits->set_tokens_per_minute(77);
  request.set_monthly_budget_nanodollars(500);
  v1::Tenant tenant;
  ASSERT_TRUE(Call(&v1::Admin::Stub::UpdateTenant, request, &tenant).ok());
  EXPECT_EQ(tenant.name(), "Tenant acme");
  ASSERT_EQ(tenant.entitlements_size(), 1);
  EXPECT_EQ(tenant.entitlements(0).promised_tokens_per_second(), 400);
  EXPECT_EQ(tenant.limits(0).tokens_per_minute(), 77);
  EXPECT_EQ(tenant.limits(0).requests_per_minute(),
            NewTenantLimits(Tier::kStandard).requests_per_minute);
  EXPECT_EQ(tenant.monthly_budget_nanodollars(), 500);

  v1::UpdateTenantRequest second;
  second.set_id("acme");
  second.set_state(v1::TENANT_STATE_SUSPENDED);
  second.mutable_entitlements();  // present and empty: takes all away
  second.set_remove_monthly_budget(true);
  ASSERT_TRUE(Call(&v1::Admin::Stub::UpdateTenant, second, &tenant).ok());
  EXPECT_EQ(tenant.state(), v1::TENANT_STATE_SUSPENDED);
  EXPECT_EQ(tenant.entitlements_size(), 0);
  EXPECT_FALSE(tenant.has_monthly_budget_nanodollars());
  EXPECT_EQ(tenant.limits(0).tokens_per_minute(), 77);
}

TEST_P(AdminServiceTest, ATenantIsShownWithItsMonth) {
  CreateTenant("acme");
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r1"), std::nullopt).ok());
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r2"), std::nullopt).ok());
  ASSERT_TRUE(store_->CloseEntry(ClosingOf("r1", 42)).ok());
  v1::GetTenantRequest request;
  request.set_id("acme");
  v1::TenantStatus status;
  ASSERT_TRUE(Call(&v1::Admin::Stub::GetTenant, request, &status).ok());
  EXPECT_EQ(status.tenant().id(), "acme");
  EXPECT_EQ(status.spent_nanodollars(), 42);
  EXPECT_EQ(status.reserved_nanodollars(), 100);
  request.set_id("none");
  EXPECT_EQ(Call(&v1::Admin::Stub::GetTenant, request, &status).code(),
            absl::StatusCode::kNotFound);
}

TEST_P(AdminServiceTest, TenantsComeInPages) {
  for (const char* id : {"a", "b", "c"}) CreateTenant(id);
  v1::ListTenantsRequest request;
  request.set_page_size(2);
  v1::ListTenantsResponse page;
  ASSERT_TRUE(Call(&v1::Admin::Stub::ListTenants, request, &page).ok());
  ASSERT_EQ(page.tenants_size(), 2);
  request.set_after_id(page.tenants(1).id());
  ASSERT_TRUE(Call(&v1::Admin::Stub::ListTenants, request, &page).ok());
  ASSERT_EQ(page.tenants_size(), 1);
  EXPECT_EQ(page.tenants(0).id(), "c");
}

// ---- Keys ----

TEST_P(AdminServiceTest, AKeyIsShownOnceAndWorksUntilItIsRevoked) {
  CreateTenant("acme");
  const v1::CreateKeyResponse made = CreateKey("acme");
  const auto cache = AccountsCache::Create(
      {.store = store_.get(), .pepper = kPepper, .poll_interval = absl::ZeroDuration()});
  ASSERT_TRUE(cache.ok()) << cache.status();
  const auto caller = (*cache)->Authenticate(made.secret());
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->tenant, "acme");
  EXPECT_EQ(caller->key_id, made.key().id());

  v1::ListKeysRequest list;
  list.set_tenant_id("acme");
  v1::ListKeysResponse keys;
  ASSERT_TRUE(Call(&v1::Admin::Stub::ListKeys, list, &keys).ok());
  ASSERT_EQ(keys.keys_size(), 1);
  EXPECT_EQ(keys.keys(0).label(), "ci");
  EXPECT_FALSE(keys.keys(0).has_revoked());
  EXPECT_FALSE(absl::StrContains(keys.SerializeAsString(), made.secret().substr(12)));

  v1::RevokeKeyRequest revoke;
  revoke.set_id(made.key().id());
  v1::RevokeKeyResponse done;
  ASSERT_TRUE(Call(&v1::Admin::Stub::RevokeKey, revoke, &done).ok());
  ASSERT_TRUE((*cache)->Refresh().ok());
  EXPECT_EQ((*cache)->Authenticate(made.secret()).status(), InvalidApiKeyError());
  revoke.set_id("aaaaaaaa");
  EXPECT_EQ(Call(&v1::Admin::Stub::RevokeKey, revoke, &done).code(), absl::StatusCode::kNotFound);
}

TEST_P(AdminServiceTest, AKeysLifeEndsInTheFuture) {
  CreateTenant("acme");
  v1::CreateKeyRequest request;
  request.set_tenant_id("acme");
  request.mutable_expires()->set_seconds(1'800'000'000);  // now
  EXPECT_THAT(Fault(&v1::Admin::Stub::CreateKey, request), HasSubstr("expires="));
  request.mutable_expires()->set_seconds(1'800'000'001);
  v1::CreateKeyResponse response;
  ASSERT_TRUE(Call(&v1::Admin::Stub::CreateKey, request, &response).ok());
  EXPECT_EQ(response.key().expires().seconds(), 1'800'000'001);
}

// ---- Prices ----

TEST_P(AdminServiceTest, PricesAreAddedFromNowOn) {
  v1::AddPriceRequest request;
  request.set_model("tiny-mimo");
  request.set_tier(v1::SERVICE_TIER_ULTRASPEED);
  request.set_input(1'000'000'000);
  request.set_cached_input(0);
  EXPECT_THAT(Fault(&v1::Admin::Stub::AddPrice, request), HasSubstr("all three"));
  request.set_output(-1);
  EXPECT_THAT(Fault(&v1::Admin::Stub::AddPrice, request), HasSubstr("price.output=-1"));
  request.set_output(2'000'000'000);
  request.mutable_effective_from()->set_seconds(1'799'999'000);
  EXPECT_THAT(Fault(&v1::Admin::Stub::AddPrice, request), HasSubstr("must not be before now"));
  request.clear_effective_from();
  v1::Price price;
  ASSERT_TRUE(Call(&v1::Admin::Stub::AddPrice, request, &price).ok());
  EXPECT_EQ(price.effective_from().seconds(), 1'800'000'000);
  v1::ListPricesResponse prices;
  ASSERT_TRUE(Call(&v1::Admin::Stub::ListPrices, v1::ListPricesRequest(), &prices).ok());
  ASSERT_EQ(prices.prices_size(), 3);
  EXPECT_EQ(prices.prices(2).version(), price.version());
  EXPECT_EQ(prices.prices(2).output(), 2'000'000'000);
  EXPECT_EQ(prices.prices(2).tier(), v1::SERVICE_TIER_ULTRASPEED);
}

// ---- Usage ----

TEST_P(AdminServiceTest, UsageAndExportsAgreeWithTheLedger) {
  CreateTenant("acme");
  int64_t cost = 0;
  for (int i = 0; i < 1203; ++i) {  // three pages of an export
    const std::string id = absl::StrCat("r", i);
    ASSERT_TRUE(store_->OpenEntry(OpeningOf(id), std::nullopt).ok());
    ASSERT_TRUE(store_->CloseEntry(ClosingOf(id, i)).ok());
    cost += i;
  }
  clock_.Advance(absl::Hours(1));  // the end of the default range is now
  v1::QueryUsageRequest query;
  query.set_tenant_id("acme");
  v1::GetUsageResponse usage;
  ASSERT_TRUE(Call(&v1::Admin::Stub::QueryUsage, query, &usage).ok());
  ASSERT_EQ(usage.buckets_size(), 1);
  EXPECT_EQ(usage.buckets(0).requests(), 1203);
  EXPECT_EQ(usage.buckets(0).cost_nanodollars(), cost);
  EXPECT_EQ(store_->GetSpend("acme", 202701)->spent_nanodollars, cost);

  v1::ExportUsageRequest request;
  request.set_tenant_id("acme");
  request.set_format(v1::ExportUsageRequest::FORMAT_JSON);
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kToken));
  const auto reader = stub_->ExportUsage(&context, request);
  std::string text;
  v1::ExportUsageChunk chunk;
  while (reader->Read(&chunk)) text += chunk.data();
  ASSERT_TRUE(reader->Finish().ok());
  const boost::json::value rows = boost::json::parse(text);
  EXPECT_EQ(rows.as_array().size(), 1203u);
  int64_t exported = 0;
  for (const auto& row : rows.as_array()) exported += row.at("cost_nanodollars").as_int64();
  EXPECT_EQ(exported, cost);
}

TEST_P(AdminServiceTest, ATenantSeesOnlyItsOwnUsage) {
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r1", "other"), std::nullopt).ok());
  ASSERT_TRUE(store_->CloseEntry(ClosingOf("r1", 5)).ok());
  clock_.Advance(absl::Hours(1));
  v1::QueryUsageRequest query;
  v1::GetUsageResponse usage;
  query.set_tenant_id("acme");
  ASSERT_TRUE(Call(&v1::Admin::Stub::QueryUsage, query, &usage).ok());
  EXPECT_EQ(usage.buckets_size(), 0);
  query.clear_tenant_id();
  ASSERT_TRUE(Call(&v1::Admin::Stub::QueryUsage, query, &usage).ok());
  EXPECT_EQ(usage.buckets_size(), 1);
}

// ---- Faults ----

TEST_P(AdminServiceTest, FaultsNameFieldValueAndBound) {
  CreateTenant("acme");
  v1::CreateTenantRequest create;
  create.set_id("a b");
  EXPECT_THAT(Fault(&v1::Admin::Stub::CreateTenant, create), HasSubstr("tenant.id=a b"));
  create.set_id("b");
  create.add_entitlements()->set_model("*");
  EXPECT_THAT(Fault(&v1::Admin::Stub::CreateTenant, create),
              HasSubstr("entitlements.tier=0: must be STANDARD or ULTRASPEED"));
  create.clear_entitlements();
  create.set_monthly_budget_nanodollars(-3);
  EXPECT_THAT(Fault(&v1::Admin::Stub::CreateTenant, create),
              HasSubstr("monthly_budget_nanodollars=-3"));

  v1::UpdateTenantRequest update;
  update.set_id("acme");
  update.set_state(static_cast<v1::TenantState>(9));
  EXPECT_THAT(Fault(&v1::Admin::Stub::UpdateTenant, update), HasSubstr("state=9"));
  update.set_state(v1::TENANT_STATE_UNSPECIFIED);
  v1::TierLimits* const limits = update.add_limits();
  limits->set_tier(v1::SERVICE_TIER_STANDARD);
  limits->set_requests_per_minute(-1);
  EXPECT_THAT(Fault(&v1::Admin::Stub::UpdateTenant, update), HasSubstr("requests_per_minute=-1"));

  v1::ListAuditRequest audit;
  audit.set_page_size(1001);
  EXPECT_THAT(Fault(&v1::Admin::Stub::ListAudit, audit),
              HasSubstr("page_size=1001: must be in 1..1000"));
  v1::QueryUsageRequest query;
  query.mutable_query()->set_bucket_width("2h");
  EXPECT_THAT(Fault(&v1::Admin::Stub::QueryUsage, query), HasSubstr("bucket_width=2h"));
  query.mutable_query()->clear_bucket_width();
  query.mutable_query()->mutable_start()->set_seconds(-5);
  EXPECT_THAT(Fault(&v1::Admin::Stub::QueryUsage, query), HasSubstr("start=-5s"));
  v1::GetTenantRequest get;
  get.set_id(std::string("acme\0x", 6));
  EXPECT_THAT(Fault(&v1::Admin::Stub::GetTenant, get), HasSubstr("id=acme?x"));
}

// ---- Audit ----

TEST_P(AdminServiceTest, EveryActIsInTheAuditLogOnceWithItsResultAndNoSecret) {
  CreateTenant("acme");
  const v1::CreateKeyResponse made = CreateKey("acme");
  v1::GetTenantRequest get;
  get.set_id("none");
  v1::TenantStatus status;
  EXPECT_FALSE(Call(&v1::Admin::Stub::GetTenant, get, &status).ok());
  v1::RevokeKeyRequest revoke;
  revoke.set_id(made.secret());  // the whole key, by mistake
  EXPECT_THAT(Fault(&v1::Admin::Stub::RevokeKey, revoke), Not(HasSubstr(made.secret())));

  v1::ListAuditResponse audit;
  ASSERT_TRUE(Call(&v1::Admin::Stub::ListAudit, v1::ListAuditRequest(), &audit).ok());
  ASSERT_EQ(audit.entries_size(), 4);  // this call's own row comes after
  EXPECT_EQ(audit.entries(3).what(), "tenants.create");
  EXPECT_EQ(audit.entries(3).who(), "alice");
  EXPECT_EQ(audit.entries(3).target(), "acme");
  EXPECT_EQ(audit.entries(3).time().seconds(), 1'800'000'000);
  EXPECT_EQ(audit.entries(3).result(), "OK");
  EXPECT_EQ(audit.entries(2).what(), "keys.create");
  EXPECT_EQ(audit.entries(2).target(), "acme/" + made.key().id());
  EXPECT_EQ(audit.entries(1).what(), "tenants.get");
  EXPECT_THAT(audit.entries(1).result(), HasSubstr("NOT_FOUND: tenant.id=none"));
  EXPECT_EQ(audit.entries(0).what(), "keys.revoke");
  EXPECT_THAT(audit.entries(0).result(), HasSubstr("INVALID_ARGUMENT"));
  EXPECT_FALSE(absl::StrContains(audit.SerializeAsString(), made.secret().substr(12)));
  EXPECT_FALSE(absl::StrContains(audit.SerializeAsString(), kToken));
  EXPECT_EQ(Audit().at(0).act.what, "audit.list");
}

INSTANTIATE_STORE_TESTS(AdminServiceTest);

}  // namespace
}  // namespace ultraspeed::router
