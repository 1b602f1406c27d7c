#include "tests/router/store_fixture.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "tests/cluster/postgres_server.h"

namespace ultraspeed::router::testing {
namespace {

using ::ultraspeed::testing::PostgresServer;

PostgresServer* postgres = nullptr;

// Ends the server before the process, as a test environment does.
class PostgresEnvironment : public ::testing::Environment {
 public:
  void TearDown() override {
    delete postgres;
    postgres = nullptr;
  }
};
const ::testing::Environment* const environment =
    ::testing::AddGlobalTestEnvironment(new PostgresEnvironment);

PostgresServer& Postgres() {
  if (postgres == nullptr) postgres = new PostgresServer;
  return *postgres;
}

}  // namespace

std::string NewStoreUrl(Backend backend) {
  if (backend == Backend::kPostgres) {
    if (!Postgres().error().empty()) return "";
    return Postgres().NewDatabase();
  }
  static int counter = 0;
  const std::string path =
      absl::StrCat(::testing::TempDir(), "store_", getpid(), "_", ++counter, ".db");
  for (const char* suffix : {"", "-wal", "-shm"}) unlink((path + suffix).c_str());
  return "sqlite:" + path;
}

void StopPostgres() { Postgres().Stop(); }
void StartPostgres() { ASSERT_TRUE(Postgres().Start()) << Postgres().error(); }

absl::Time TestTime() { return absl::FromUnixSeconds(1'800'000'000); }

Act ActOf(absl::string_view what, absl::string_view target) {
  return {.who = "tester",
          .what = std::string(what),
          .target = std::string(target),
          .time = TestTime()};
}

Tenant TenantOf(const std::string& id) {
  Tenant tenant;
  tenant.id = id;
  tenant.name = "Tenant " + id;
  tenant.created = TestTime();
  tenant.terms = *UnrestrictedTerms();
  return tenant;
}

LedgerOpening OpeningOf(const std::string& request_id, const std::string& tenant_id) {
  return {.request_id = request_id,
          .tenant_id = tenant_id,
          .key_id = "abcdefgh",
          .model = "tiny-mimo",
          .tier = Tier::kUltraspeed,
          .price_version = 2,
          .reserved_tokens = 300,
          .reserved_nanodollars = 100,
          .router_id = "router-1",
          .opened = TestTime()};
}

LedgerClosing ClosingOf(const std::string& request_id, int64_t cost_nanodollars) {
  return {.request_id = request_id,
          .worker = "10.0.0.2:50052",
          .tokens = {.prompt = 100, .cached = 40, .completion = 20},
          .reasoning_tokens = 5,
          .draft_rounds = 7,
          .decode_us = 12'345,
          .finish_reason = "stop",
          .billed_tier = Tier::kStandard,
          .billed_reason = std::string(kBilledForSpeedPromise),
          .price_version = 1,
          .cost_nanodollars = cost_nanodollars,
          .closed = TestTime() + absl::Seconds(3)};
}

void StoreTest::SetUp() {
  url_ = NewStoreUrl(GetParam());
  if (GetParam() == Backend::kPostgres) {
    ASSERT_EQ(Postgres().error(), "");
  }
  auto store = OpenStore(url_);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
}

}  // namespace ultraspeed::router::testing
