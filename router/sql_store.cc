#include "router/sql_store.h"

#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/sql_rows.h"
#include "router/store_migrations.h"

namespace ultraspeed::router {
namespace {

// Every change of accounts begins here: the row lock makes writers take turns, so whoever reads a
// version sees all changes up to it.
absl::StatusOr<int64_t> RaiseVersion(SqlConnection& connection) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   connection.Execute(
                       "UPDATE accounts_version SET version = version + 1 RETURNING version", {}));
  return RowReader(result.rows[0]).Whole();
}

absl::StatusOr<int64_t> ReadVersion(SqlConnection& connection) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   connection.Execute("SELECT version FROM accounts_version", {}));
  return RowReader(result.rows[0]).Whole();
}

absl::Status InsertDone(SqlConnection& connection, const Act& act) {
  return InsertAudit(connection, {.act = act, .result = "OK"});
}

absl::Status NoSuchTenant(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("tenant.id=", id, ": there is none"));
}

// ---- Tenants ----

absl::Status InsertTerms(SqlConnection& connection, const Tenant& tenant) {
  for (const Tier tier : kTiers) {
    const TierLimits& limits = tenant.terms.LimitsOf(tier);
    RETURN_IF_ERROR(connection
                        .Execute("INSERT INTO tenant_limits VALUES ($1, $2, $3, $4, $5, $6, $7)",
                                 {ToSql(tenant.id), ToSql(tier), ToSql(limits.requests_per_minute),
                                  ToSql(limits.requests_burst), ToSql(limits.tokens_per_minute),
                                  ToSql(limits.tokens_burst), ToSql(limits.concurrent_streams)})
                        .status());
  }
  for (const Entitlement& entitlement : tenant.terms.entitlements) {
    RETURN_IF_ERROR(
        connection
            .Execute("INSERT INTO entitlements VALUES ($1, $2, $3, $4)",
                     {ToSql(tenant.id), ToSql(entitlement.model_pattern), ToSql(entitlement.tier),
                      ToSql(entitlement.promised_tokens_per_second)})
            .status());
  }
  return absl::OkStatus();
}

// Tenants whose row satisfies `condition`, which may end in ORDER BY and LIMIT.
absl::StatusOr<std::vector<Tenant>> ReadTenants(SqlConnection& connection,
                                                absl::string_view condition,
                                                absl::Span<const SqlValue> values) {
  ASSIGN_OR_RETURN(
      const SqlResult rows,
      connection.Execute(absl::StrCat("SELECT id, name, state, monthly_budget, created_ms, version "
                                      "FROM tenants WHERE ",
                                      condition),
                         values));
  std::vector<Tenant> tenants;
  absl::flat_hash_map<std::string, size_t> positions;
  for (const SqlRow& row : rows.rows) {
    RowReader reader(row);
    Tenant& tenant = tenants.emplace_back();
    tenant.id = reader.Text();
    tenant.name = reader.Text();
    tenant.state = reader.As<TenantState>();
    tenant.terms.monthly_budget_nanodollars = reader.OptionalWhole();
    tenant.created = reader.Time();
    tenant.version = reader.Whole();
    positions[tenant.id] = tenants.size() - 1;
  }
  const std::string of_these =
      absl::StrCat(" WHERE tenant_id IN (SELECT id FROM tenants WHERE ", condition, ")");
  ASSIGN_OR_RETURN(
      const SqlResult limits,
      connection.Execute(absl::StrCat("SELECT tenant_id, tier, requests_per_minute, "
                                      "requests_burst, tokens_per_minute, tokens_burst, "
                                      "concurrent_streams FROM tenant_limits",
                                      of_these),
                         values));
  for (const SqlRow& row : limits.rows) {
    RowReader reader(row);
    TenantTerms& terms = tenants[positions.at(reader.Text())].terms;
    TierLimits& tier_limits = terms.limits[static_cast<size_t>(reader.Whole())];
    tier_limits.requests_per_minute = reader.Whole();
    tier_limits.requests_burst = reader.Whole();
    tier_limits.tokens_per_minute = reader.Whole();
    tier_limits.tokens_burst = reader.Whole();
    tier_limits.concurrent_streams = reader.Whole();
  }
  ASSIGN_OR_RETURN(
      const SqlResult entitlements,
      connection.Execute(absl::StrCat("SELECT tenant_id, model_pattern, tier, "
                                      "promised_tokens_per_second FROM entitlements",
                                      of_these, " ORDER BY tenant_id, model_pattern, tier"),
                         values));
  for (const SqlRow& row : entitlements.rows) {
    RowReader reader(row);
    Tenant& tenant = tenants[positions.at(reader.Text())];
    Entitlement& entitlement = tenant.terms.entitlements.emplace_back();
    entitlement.model_pattern = reader.Text();
    entitlement.tier = reader.As<Tier>();
    entitlement.promised_tokens_per_second = reader.Whole();
  }
  return tenants;
}

absl::StatusOr<bool> HasTenant(SqlConnection& connection, absl::string_view id) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   connection.Execute("SELECT id FROM tenants WHERE id = $1", {ToSql(id)}));
  return !result.rows.empty();
}

// ---- Keys, prices ----

absl::StatusOr<std::vector<ApiKeyRecord>> ReadKeys(SqlConnection& connection,
                                                   absl::string_view condition,
                                                   const SqlValue& value) {
  ASSIGN_OR_RETURN(
      const SqlResult result,
      connection.Execute(absl::StrCat("SELECT id, tenant_id, label, digest_hex, created_ms, "
                                      "expires_ms, revoked_ms FROM api_keys WHERE ",
                                      condition),
                         {value}));
  std::vector<ApiKeyRecord> keys;
  for (const SqlRow& row : result.rows) {
    RowReader reader(row);
    ApiKeyRecord& key = keys.emplace_back();
    key.id = reader.Text();
    key.tenant_id = reader.Text();
    key.label = reader.Text();
    key.digest_hex = reader.Text();
    key.created = reader.Time();
    key.expires = reader.OptionalTime();
    key.revoked = reader.OptionalTime();
  }
  return keys;
}

absl::StatusOr<std::vector<Price>> ReadPrices(SqlConnection& connection, int64_t after_version) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   connection.Execute("SELECT id, model_pattern, tier, input_per_million, "
                                      "cached_input_per_million, output_per_million, effective_ms "
                                      "FROM prices WHERE version > $1 ORDER BY id",
                                      {ToSql(after_version)}));
  std::vector<Price> prices;
  for (const SqlRow& row : result.rows) {
    RowReader reader(row);
    Price& price = prices.emplace_back();
    price.version = reader.Whole();
    price.model_pattern = reader.Text();
    price.tier = reader.As<Tier>();
    price.per_million.input = reader.Whole();
    price.per_million.cached_input = reader.Whole();
    price.per_million.output = reader.Whole();
    price.effective_from = reader.Time();
  }
  return prices;
}

}  // namespace

absl::Status InsertAudit(SqlConnection& connection, const AuditEntry& entry) {
  return connection
      .Execute("INSERT INTO audit (who, what, target, time_ms, result) VALUES ($1, $2, $3, $4, $5)",
               {ToSql(entry.act.who), ToSql(entry.act.what), ToSql(entry.act.target),
                ToSql(entry.act.time), ToSql(entry.result)})
      .status();
}

absl::StatusOr<std::unique_ptr<SqlStore>> SqlStore::Create(std::unique_ptr<SqlDatabase> database) {
  RETURN_IF_ERROR(MigrateStore(*database));
  return std::unique_ptr<SqlStore>(new SqlStore(std::move(database)));
}

absl::StatusOr<SqlResult> SqlStore::Read(absl::string_view statement,
                                         absl::Span<const SqlValue> values) {
  absl::StatusOr<SqlResult> result;
  RETURN_IF_ERROR(database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) {
    result = connection.Execute(statement, values);
    return result.status();
  }));
  return result;
}

// ---- Accounts ----

absl::Status SqlStore::CreateTenant(const Tenant& tenant, const Act& act) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t version, RaiseVersion(connection));
    ASSIGN_OR_RETURN(
        const SqlResult inserted,
        connection.Execute(
            "INSERT INTO tenants VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            {ToSql(tenant.id), ToSql(tenant.name), ToSql(tenant.state),
             ToSql(tenant.terms.monthly_budget_nanodollars), ToSql(tenant.created),
             ToSql(version)}));
    if (inserted.num_changed == 0) {
      return absl::AlreadyExistsError(absl::StrCat("tenant.id=", tenant.id, ": is taken"));
    }
    RETURN_IF_ERROR(InsertTerms(connection, tenant));
    return InsertDone(connection, act);
  });
}

absl::Status SqlStore::UpdateTenant(const Tenant& tenant, const Act& act) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t version, RaiseVersion(connection));
    ASSIGN_OR_RETURN(
        const SqlResult updated,
        connection.Execute("UPDATE tenants SET name = $1, state = $2, monthly_budget = $3, "
                           "version = $4 WHERE id = $5 AND version = $6",
                           {ToSql(tenant.name), ToSql(tenant.state),
                            ToSql(tenant.terms.monthly_budget_nanodollars), ToSql(version),
                            ToSql(tenant.id), ToSql(tenant.version)}));
    if (updated.num_changed == 0) {
      ASSIGN_OR_RETURN(const bool exists, HasTenant(connection, tenant.id));
      if (!exists) return NoSuchTenant(tenant.id);
      return absl::AbortedError(
          absl::StrCat("tenant.id=", tenant.id, ": was changed by somebody else; try again"));
    }
    for (const char* statement : {"DELETE FROM tenant_limits WHERE tenant_id = $1",
                                  "DELETE FROM entitlements WHERE tenant_id = $1"}) {
      RETURN_IF_ERROR(connection.Execute(statement, {ToSql(tenant.id)}).status());
    }
    RETURN_IF_ERROR(InsertTerms(connection, tenant));
    return InsertDone(connection, act);
  });
}

absl::StatusOr<Tenant> SqlStore::GetTenant(absl::string_view id) {
  std::vector<Tenant> tenants;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(tenants, ReadTenants(connection, "id = $1", {ToSql(id)}));
        return absl::OkStatus();
      }));
  if (tenants.empty()) return NoSuchTenant(id);
  return std::move(tenants[0]);
}

absl::StatusOr<std::vector<Tenant>> SqlStore::ListTenants(absl::string_view after_id, int num_max) {
  std::vector<Tenant> tenants;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(tenants, ReadTenants(connection, "id > $1 ORDER BY id LIMIT $2",
                                              {ToSql(after_id), ToSql(int64_t{num_max})}));
        return absl::OkStatus();
      }));
  return tenants;
}

absl::Status SqlStore::CreateKey(const ApiKeyRecord& key, const Act& act) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t version, RaiseVersion(connection));
    ASSIGN_OR_RETURN(const bool exists, HasTenant(connection, key.tenant_id));
    if (!exists) return NoSuchTenant(key.tenant_id);
    ASSIGN_OR_RETURN(
        const SqlResult inserted,
        connection.Execute(
            "INSERT INTO api_keys VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
            {ToSql(key.id), ToSql(key.tenant_id), ToSql(key.label), ToSql(key.digest_hex),
             ToSql(key.created), ToSql(key.expires), ToSql(key.revoked), ToSql(version)}));
    if (inserted.num_changed == 0) {
      return absl::AlreadyExistsError(absl::StrCat("key.id=", key.id, ": is taken"));
    }
    return InsertDone(connection, act);
  });
}

absl::StatusOr<std::vector<ApiKeyRecord>> SqlStore::ListKeys(absl::string_view tenant_id) {
  std::vector<ApiKeyRecord> keys;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const bool exists, HasTenant(connection, tenant_id));
        if (!exists) return NoSuchTenant(tenant_id);
        ASSIGN_OR_RETURN(
            keys, ReadKeys(connection, "tenant_id = $1 ORDER BY created_ms DESC, version DESC",
                           ToSql(tenant_id)));
        return absl::OkStatus();
      }));
  return keys;
}

absl::Status SqlStore::RevokeKey(absl::string_view key_id, const Act& act) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t version, RaiseVersion(connection));
    ASSIGN_OR_RETURN(
        const SqlResult updated,
        connection.Execute(
            "UPDATE api_keys SET revoked_ms = COALESCE(revoked_ms, $1), version = $2 WHERE id = $3",
            {ToSql(act.time), ToSql(version), ToSql(key_id)}));
    if (updated.num_changed == 0) {
      return absl::NotFoundError(absl::StrCat("key.id=", key_id, ": there is none"));
    }
    return InsertDone(connection, act);
  });
}

absl::StatusOr<int64_t> SqlStore::AccountsVersion() {
  int64_t version = 0;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(version, ReadVersion(connection));
        return absl::OkStatus();
      }));
  return version;
}

absl::StatusOr<AccountChanges> SqlStore::ReadChanges(int64_t after_version) {
  AccountChanges changes;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        const SqlValue after = ToSql(after_version);
        ASSIGN_OR_RETURN(changes.version, ReadVersion(connection));
        ASSIGN_OR_RETURN(changes.tenants, ReadTenants(connection, "version > $1", {after}));
        ASSIGN_OR_RETURN(changes.keys, ReadKeys(connection, "version > $1", after));
        ASSIGN_OR_RETURN(changes.prices, ReadPrices(connection, after_version));
        return absl::OkStatus();
      }));
  return changes;
}

// ---- Prices ----

absl::StatusOr<int64_t> SqlStore::AddPrice(const Price& price, const Act& act) {
  int64_t id = 0;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const int64_t version, RaiseVersion(connection));
        ASSIGN_OR_RETURN(
            const SqlResult inserted,
            connection.Execute(
                "INSERT INTO prices (model_pattern, tier, input_per_million, "
                "cached_input_per_million, output_per_million, effective_ms, version) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
                {ToSql(price.model_pattern), ToSql(price.tier), ToSql(price.per_million.input),
                 ToSql(price.per_million.cached_input), ToSql(price.per_million.output),
                 ToSql(price.effective_from), ToSql(version)}));
        id = RowReader(inserted.rows[0]).Whole();
        return InsertDone(connection, act);
      }));
  return id;
}

absl::StatusOr<std::vector<Price>> SqlStore::ListPrices() {
  std::vector<Price> prices;
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kRead, [&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(prices, ReadPrices(connection, 0));
        return absl::OkStatus();
      }));
  return prices;
}

// ---- Audit ----

absl::Status SqlStore::AppendAudit(const AuditEntry& entry) {
  return database_->Transact(
      SqlAccess::kWrite, [&](SqlConnection& connection) { return InsertAudit(connection, entry); });
}

absl::StatusOr<std::vector<AuditEntry>> SqlStore::ListAudit(std::optional<int64_t> before_id,
                                                            int num_max) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   Read("SELECT id, who, what, target, time_ms, result FROM audit "
                        "WHERE id < $1 ORDER BY id DESC LIMIT $2",
                        {ToSql(before_id.value_or(std::numeric_limits<int64_t>::max())),
                         ToSql(int64_t{num_max})}));
  std::vector<AuditEntry> entries;
  for (const SqlRow& row : result.rows) {
    RowReader reader(row);
    AuditEntry& entry = entries.emplace_back();
    entry.id = reader.Whole();
    entry.act.who = reader.Text();
    entry.act.what = reader.Text();
    entry.act.target = reader.Text();
    entry.act.time = reader.Time();
    entry.result = reader.Text();
  }
  return entries;
}

}  // namespace ultraspeed::router
