// Store as SQL, the same statements for every SqlDatabase. sql_store.cc has accounts, prices and
// the audit log, sql_store_ledger.cc the ledger, sql_store_routers.cc the heartbeats.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/sql_database.h"
#include "router/store.h"

namespace ultraspeed::router {

// Appends one row within the caller's transaction.
absl::Status InsertAudit(SqlConnection& connection, const AuditEntry& entry);

// Thread contract: as Store.
class SqlStore : public Store {
 public:
  // Migrates the schema first; errors as of MigrateStore.
  static absl::StatusOr<std::unique_ptr<SqlStore>> Create(std::unique_ptr<SqlDatabase> database);

  absl::Status CreateTenant(const Tenant& tenant, const Act& act) override;
  absl::Status UpdateTenant(const Tenant& tenant, const Act& act) override;
  absl::StatusOr<Tenant> GetTenant(absl::string_view id) override;
  absl::StatusOr<std::vector<Tenant>> ListTenants(absl::string_view after_id, int num_max) override;
  absl::Status CreateKey(const ApiKeyRecord& key, const Act& act) override;
  absl::StatusOr<std::vector<ApiKeyRecord>> ListKeys(absl::string_view tenant_id) override;
  absl::Status RevokeKey(absl::string_view key_id, const Act& act) override;
  absl::StatusOr<int64_t> AccountsVersion() override;
  absl::StatusOr<AccountChanges> ReadChanges(int64_t after_version) override;

  absl::StatusOr<int64_t> AddPrice(const Price& price, const Act& act) override;
  absl::StatusOr<std::vector<Price>> ListPrices() override;

  absl::Status OpenEntry(const LedgerOpening& opening,
                         std::optional<int64_t> monthly_budget_nanodollars) override;
  absl::StatusOr<CloseOutcome> CloseEntry(const LedgerClosing& closing) override;
  absl::StatusOr<std::vector<CloseOutcome>> CloseMany(
      absl::Span<const LedgerClosing> closings) override;
  absl::StatusOr<LedgerEntry> GetEntry(absl::string_view request_id) override;
  absl::StatusOr<std::vector<LedgerEntry>> ListOpen(absl::Time opened_before, int num_max) override;
  absl::StatusOr<Spend> GetSpend(absl::string_view tenant_id, int month) override;
  absl::StatusOr<std::vector<UsageBucket>> QueryUsage(const UsageQuery& query) override;
  absl::StatusOr<std::vector<LedgerEntry>> ListClosed(const UsageQuery& query,
                                                      const std::optional<LedgerEntry>& after,
                                                      int num_max) override;

  absl::Status Beat(absl::string_view router_id) override;
  absl::StatusOr<std::vector<RouterBeats>> ListBeats() override;
  absl::Status ForgetRouter(absl::string_view router_id) override;

  absl::Status AppendAudit(const AuditEntry& entry) override;
  absl::StatusOr<std::vector<AuditEntry>> ListAudit(std::optional<int64_t> before_id,
                                                    int num_max) override;

 private:
  explicit SqlStore(std::unique_ptr<SqlDatabase> database) : database_(std::move(database)) {}

  // One SELECT in a transaction of its own.
  absl::StatusOr<SqlResult> Read(absl::string_view statement, absl::Span<const SqlValue> values);

  const std::unique_ptr<SqlDatabase> database_;
};

}  // namespace ultraspeed::router
