#include "router/store_migrations.h"

#include <iterator>
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

// @TEXT: text that sorts by its bytes. @IDENTITY: a key that the database counts up.
// Times are milliseconds since 1970, money is nano-dollars, enums are the numbers of their types.
struct Migration {
  const char* shared;
  const char* sqlite;  // run after `shared`
  const char* postgres;
};

constexpr Migration kMigrations[] = {
    // 1: accounts, prices, audit
    {R"(
CREATE TABLE accounts_version (one BIGINT PRIMARY KEY, version BIGINT NOT NULL);
INSERT INTO accounts_version VALUES (1, 1);

CREATE TABLE tenants (
  id @TEXT PRIMARY KEY,
  name @TEXT NOT NULL,
  state BIGINT NOT NULL,
  monthly_budget BIGINT,
  created_ms BIGINT NOT NULL,
  version BIGINT NOT NULL
);
CREATE INDEX tenants_by_version ON tenants (version);

CREATE TABLE tenant_limits (
  tenant_id @TEXT NOT NULL REFERENCES tenants (id),
  tier BIGINT NOT NULL,
  requests_per_minute BIGINT NOT NULL,
  requests_burst BIGINT NOT NULL,
  tokens_per_minute BIGINT NOT NULL,
  tokens_burst BIGINT NOT NULL,
  concurrent_streams BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, tier)
);

CREATE TABLE entitlements (
  tenant_id @TEXT NOT NULL REFERENCES tenants (id),
  model_pattern @TEXT NOT NULL,
  tier BIGINT NOT NULL,
  promised_tokens_per_second BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, model_pattern, tier)
);

CREATE TABLE api_keys (
  id @TEXT PRIMARY KEY,
  tenant_id @TEXT NOT NULL REFERENCES tenants (id),
  label @TEXT NOT NULL,
  digest_hex @TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  expires_ms BIGINT,
  revoked_ms BIGINT,
  version BIGINT NOT NULL
);
CREATE INDEX api_keys_by_version ON api_keys (version);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, created_ms);

CREATE TABLE prices (
  id @IDENTITY,
  model_pattern @TEXT NOT NULL,
  tier BIGINT NOT NULL,
  input_per_million BIGINT NOT NULL,
  cached_input_per_million BIGINT NOT NULL,
  output_per_million BIGINT NOT NULL,
  effective_ms BIGINT NOT NULL,
  version BIGINT NOT NULL
);

CREATE TABLE audit (
  id @IDENTITY,
  who @TEXT NOT NULL,
  what @TEXT NOT NULL,
  target @TEXT NOT NULL,
  time_ms BIGINT NOT NULL,
  result @TEXT NOT NULL
);

-- $0.43 in, $0.0036 cached, $0.87 out per million tokens; ultraspeed three times that on every line.
INSERT INTO prices (model_pattern, tier, input_per_million, cached_input_per_million,
                    output_per_million, effective_ms, version)
VALUES ('*', 0, 430000000, 3600000, 870000000, 0, 1),
       ('*', 1, 1290000000, 10800000, 2610000000, 0, 1);
)",
     "", ""},

    // 2: ledger
    {R"(
CREATE TABLE ledger (
  request_id @TEXT PRIMARY KEY,
  tenant_id @TEXT NOT NULL,
  key_id @TEXT NOT NULL,
  model @TEXT NOT NULL,
  tier BIGINT NOT NULL,
  price_version BIGINT NOT NULL,
  reserved_tokens BIGINT NOT NULL,
  reserved_cost BIGINT NOT NULL,
  router_id @TEXT NOT NULL,
  opened_ms BIGINT NOT NULL,
  worker @TEXT NOT NULL DEFAULT '',
  closed_ms BIGINT,
  prompt_tokens BIGINT,
  cached_tokens BIGINT,
  completion_tokens BIGINT,
  reasoning_tokens BIGINT,
  draft_rounds BIGINT,
  decode_us BIGINT,
  finish_reason @TEXT,
  billed_tier BIGINT,
  billed_reason @TEXT,
  billed_price_version BIGINT,
  cost BIGINT
);
CREATE INDEX ledger_open ON ledger (opened_ms) WHERE closed_ms IS NULL;
CREATE INDEX ledger_by_time ON ledger (opened_ms, request_id);
CREATE INDEX ledger_by_tenant ON ledger (tenant_id, opened_ms, request_id);

CREATE TABLE spend (
  tenant_id @TEXT NOT NULL,
  month BIGINT NOT NULL,
  spent BIGINT NOT NULL,
  reserved BIGINT NOT NULL,
  PRIMARY KEY (tenant_id, month)
);
)",
     R"(
CREATE TRIGGER ledger_keeps_closed BEFORE UPDATE ON ledger WHEN OLD.closed_ms IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a closed ledger entry never changes'); END;
CREATE TRIGGER ledger_keeps_all BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger never forgets'); END;
)",
     R"(
CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN RAISE EXCEPTION 'a closed ledger entry never changes and none is deleted'; END
$body$;
CREATE TRIGGER ledger_keeps_closed BEFORE UPDATE ON ledger FOR EACH ROW
  WHEN (OLD.closed_ms IS NOT NULL) EXECUTE FUNCTION refuse_ledger_change();
CREATE TRIGGER ledger_keeps_all BEFORE DELETE ON ledger FOR EACH ROW
  EXECUTE FUNCTION refuse_ledger_change();
)"},

    // 3: routers that live
    {"CREATE TABLE routers (id @TEXT PRIMARY KEY, beats BIGINT NOT NULL)", "", ""},
};

constexpr int64_t kNumMigrations = std::size(kMigrations);
// An arbitrary number that only this program locks.
constexpr char kPostgresLock[] = "SELECT pg_advisory_xact_lock(7234509812345)";

std::string InDialect(SqlDialect dialect, const char* text) {
  const bool is_sqlite = dialect == SqlDialect::kSqlite;
  return absl::StrReplaceAll(
      text, {{"@TEXT", is_sqlite ? "TEXT" : "TEXT COLLATE \"C\""},
             {"@IDENTITY", is_sqlite ? "INTEGER PRIMARY KEY AUTOINCREMENT"
                                     : "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}});
}

absl::StatusOr<int64_t> ReadVersion(SqlConnection& connection) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   connection.Execute("SELECT COALESCE(MAX(version), 0) FROM schema_version", {}));
  return std::get<int64_t>(result.rows[0][0]);
}

absl::Status RunMigrations(SqlDialect dialect, SqlConnection& connection) {
  if (dialect == SqlDialect::kPostgres) RETURN_IF_ERROR(connection.ExecuteScript(kPostgresLock));
  RETURN_IF_ERROR(connection.ExecuteScript(
      "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)"));
  ASSIGN_OR_RETURN(const int64_t version, ReadVersion(connection));
  if (version > kNumMigrations) {
    return absl::FailedPreconditionError(absl::StrCat("store: its schema has version ", version,
                                                      "; this program knows at most ",
                                                      kNumMigrations, ", so use a newer one"));
  }
  for (int64_t step = version; step < kNumMigrations; ++step) {
    const Migration& migration = kMigrations[step];
    RETURN_IF_ERROR(connection.ExecuteScript(InDialect(dialect, migration.shared)));
    RETURN_IF_ERROR(connection.ExecuteScript(InDialect(
        dialect, dialect == SqlDialect::kSqlite ? migration.sqlite : migration.postgres)));
    RETURN_IF_ERROR(
        connection.Execute("INSERT INTO schema_version VALUES ($1)", {SqlValue(step + 1)})
            .status());
  }
  return absl::OkStatus();
}

}  // namespace

int64_t StoreSchemaVersion() { return kNumMigrations; }

absl::Status MigrateStore(SqlDatabase& database) {
  return database.Transact(SqlAccess::kWrite, [&](SqlConnection& connection) {
    return RunMigrations(database.dialect(), connection);
  });
}

}  // namespace ultraspeed::router
