// The accounts, prices, ledger and audit log of a deployment. One interface over two databases:
// SQLite (one machine, one file) and PostgreSQL (many routers). Every operation is one transaction:
// it happens as a whole or not at all.
//
// Thread contract: any thread. Every call blocks on the database: never call from a gRPC reactor.
// Every call may return UNAVAILABLE (the database is away, or a commit's outcome is unknown); all
// writes that routers make are safe to repeat.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router/accounts.h"
#include "router/ledger.h"
#include "router/pricing.h"

namespace ultraspeed::router {

// An operator's act, for the audit log. A change and its audit row are one transaction.
struct Act {
  std::string who;     // the operator's name, as in the admin token file
  std::string what;    // "tenants.create"
  std::string target;  // the id that it was done to; never a secret
  absl::Time time;     // milliseconds
};

struct AuditEntry {
  int64_t id = 0;  // ascending; set by the store
  Act act;
  std::string result;  // "OK" or a status code and message
};

struct RouterBeats {
  std::string router_id;
  int64_t num_beats = 0;
};

// Everything that changed after some version of the accounts.
struct AccountChanges {
  int64_t version = 0;  // ask for changes after this one next time
  std::vector<Tenant> tenants;
  std::vector<ApiKeyRecord> keys;
  std::vector<Price> prices;
};

class Store {
 public:
  virtual ~Store() = default;

  // ---- Accounts. Each change raises the version of the accounts by one. ----
  // REQUIRES: valid by accounts.h. ALREADY_EXISTS: the id is taken.
  virtual absl::Status CreateTenant(const Tenant& tenant, const Act& act) = 0;
  // Replaces name, state and terms. NOT_FOUND; ABORTED: tenant.version is not the stored one, so
  // somebody else changed it since it was read.
  virtual absl::Status UpdateTenant(const Tenant& tenant, const Act& act) = 0;
  // NOT_FOUND names the id.
  virtual absl::StatusOr<Tenant> GetTenant(absl::string_view id) = 0;
  // In order of id, those after `after_id`, at most `num_max`.
  virtual absl::StatusOr<std::vector<Tenant>> ListTenants(absl::string_view after_id,
                                                          int num_max) = 0;
  // NOT_FOUND: no such tenant. ALREADY_EXISTS: the key id is taken.
  virtual absl::Status CreateKey(const ApiKeyRecord& key, const Act& act) = 0;
  // All of a tenant, newest first. NOT_FOUND: no such tenant.
  virtual absl::StatusOr<std::vector<ApiKeyRecord>> ListKeys(absl::string_view tenant_id) = 0;
  // At act.time; a second revocation changes nothing. NOT_FOUND names the key id.
  virtual absl::Status RevokeKey(absl::string_view key_id, const Act& act) = 0;
  // One cheap read of one row.
  virtual absl::StatusOr<int64_t> AccountsVersion() = 0;
  // After version 0: everything.
  virtual absl::StatusOr<AccountChanges> ReadChanges(int64_t after_version) = 0;

  // ---- Prices: only ever added. ----
  // Returns the new version; price.version is ignored. REQUIRES: valid by pricing.h.
  virtual absl::StatusOr<int64_t> AddPrice(const Price& price, const Act& act) = 0;
  // In order of version.
  virtual absl::StatusOr<std::vector<Price>> ListPrices() = 0;

  // ---- Ledger ----
  // Opens an entry and holds its reservation. With a budget: FAILED_PRECONDITION, and nothing is
  // written, if the month's spent + reserved would pass it. The check is exact whatever other
  // routers do at the same time. ALREADY_EXISTS: the request id is there; nothing changes.
  virtual absl::Status OpenEntry(const LedgerOpening& opening,
                                 std::optional<int64_t> monthly_budget_nanodollars) = 0;
  // Closes an entry, releases its reservation and adds its cost to the month it was opened in.
  virtual absl::StatusOr<CloseOutcome> CloseEntry(const LedgerClosing& closing) = 0;
  // The same for many, in one transaction; outcomes in the order of `closings`.
  virtual absl::StatusOr<std::vector<CloseOutcome>> CloseMany(
      absl::Span<const LedgerClosing> closings) = 0;
  // NOT_FOUND names the id.
  virtual absl::StatusOr<LedgerEntry> GetEntry(absl::string_view request_id) = 0;
  // Open entries that were opened before `time`, oldest first, at most `num_max`.
  virtual absl::StatusOr<std::vector<LedgerEntry>> ListOpen(absl::Time opened_before,
                                                            int num_max) = 0;
  // One row. `month` as MonthOf.
  virtual absl::StatusOr<Spend> GetSpend(absl::string_view tenant_id, int month) = 0;
  // In order of time, then key, model, tier. OUT_OF_RANGE: more than kUsageBucketsMax.
  virtual absl::StatusOr<std::vector<UsageBucket>> QueryUsage(const UsageQuery& query) = 0;
  // The closed entries behind QueryUsage, in order of (opened, request id), those after `after`, at
  // most `num_max`. Grouping is ignored.
  virtual absl::StatusOr<std::vector<LedgerEntry>> ListClosed(
      const UsageQuery& query, const std::optional<LedgerEntry>& after, int num_max) = 0;

  // ---- Routers: who is there to settle what it opened. Counts, not times: no clock is shared.
  // ---- This router lives: raises its count of heartbeats by one.
  virtual absl::Status Beat(absl::string_view router_id) = 0;
  // In order of router id.
  virtual absl::StatusOr<std::vector<RouterBeats>> ListBeats() = 0;
  // It stopped in good order, or is dead and has no open entry left.
  virtual absl::Status ForgetRouter(absl::string_view router_id) = 0;

  // ---- Audit ----
  // For acts that failed, and for reads; changes write their own row.
  virtual absl::Status AppendAudit(const AuditEntry& entry) = 0;
  // Newest first, those with an id below `before_id` (nullopt: all), at most `num_max`.
  virtual absl::StatusOr<std::vector<AuditEntry>> ListAudit(std::optional<int64_t> before_id,
                                                            int num_max) = 0;
};

// Opens `sqlite:PATH` or `postgresql://...` and brings its schema to this program's version.
// INVALID_ARGUMENT: another form; UNAVAILABLE: cannot connect; FAILED_PRECONDITION: the schema is
// newer than this program. No message repeats a password.
absl::StatusOr<std::unique_ptr<Store>> OpenStore(const std::string& url);

}  // namespace ultraspeed::router
