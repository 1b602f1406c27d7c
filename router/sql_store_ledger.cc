// The ledger's half of SqlStore. Every transaction locks in one order, accounts before ledger rows
// before spend rows, each kind sorted, so no two can wait for each other in a ring.
#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/sql_rows.h"
#include "router/sql_store.h"

namespace ultraspeed::router {
namespace {

constexpr char kEntryColumns[] =
    "request_id, tenant_id, key_id, model, tier, price_version, reserved_tokens, reserved_cost, "
    "router_id, opened_ms, closed_ms, prompt_tokens, cached_tokens, completion_tokens, "
    "reasoning_tokens, draft_rounds, decode_us, finish_reason, billed_tier, billed_reason, "
    "billed_price_version, cost, worker";

LedgerEntry ReadEntry(const SqlRow& row) {
  RowReader reader(row);
  LedgerEntry entry;
  LedgerOpening& opening = entry.opening;
  opening.request_id = reader.Text();
  opening.tenant_id = reader.Text();
  opening.key_id = reader.Text();
  opening.model = reader.Text();
  opening.tier = reader.As<Tier>();
  opening.price_version = reader.Whole();
  opening.reserved_tokens = reader.Whole();
  opening.reserved_nanodollars = reader.Whole();
  opening.router_id = reader.Text();
  opening.opened = reader.Time();
  if (reader.AtNull()) return entry;
  LedgerClosing& closing = entry.closing.emplace();
  closing.request_id = opening.request_id;
  closing.closed = reader.Time();
  closing.tokens.prompt = reader.Whole();
  closing.tokens.cached = reader.Whole();
  closing.tokens.completion = reader.Whole();
  closing.reasoning_tokens = reader.Whole();
  closing.draft_rounds = reader.Whole();
  closing.decode_us = reader.Whole();
  closing.finish_reason = reader.Text();
  closing.billed_tier = reader.As<Tier>();
  closing.billed_reason = reader.Text();
  closing.price_version = reader.Whole();
  closing.cost_nanodollars = reader.Whole();
  closing.worker = reader.Text();
  return entry;
}

std::vector<LedgerEntry> ReadEntries(const SqlResult& result) {
  std::vector<LedgerEntry> entries;
  for (const SqlRow& row : result.rows) entries.push_back(ReadEntry(row));
  return entries;
}

// What the entries that one transaction closed change in one month of one tenant.
using SpendChanges = std::map<std::pair<std::string, int>, Spend>;

absl::StatusOr<CloseOutcome> CloseOne(SqlConnection& connection, const LedgerClosing& closing,
                                      SpendChanges* changes) {
  ASSIGN_OR_RETURN(
      const SqlResult closed,
      connection.Execute(
          "UPDATE ledger SET closed_ms = $2, prompt_tokens = $3, cached_tokens = $4, "
          "completion_tokens = $5, reasoning_tokens = $6, draft_rounds = $7, decode_us = $8, "
          "finish_reason = $9, billed_tier = $10, billed_reason = $11, billed_price_version = $12, "
          "cost = $13, worker = $14 WHERE request_id = $1 AND closed_ms IS NULL "
          "RETURNING tenant_id, opened_ms, reserved_cost",
          {ToSql(closing.request_id), ToSql(closing.closed), ToSql(closing.tokens.prompt),
           ToSql(closing.tokens.cached), ToSql(closing.tokens.completion),
           ToSql(closing.reasoning_tokens), ToSql(closing.draft_rounds), ToSql(closing.decode_us),
           ToSql(closing.finish_reason), ToSql(closing.billed_tier), ToSql(closing.billed_reason),
           ToSql(closing.price_version), ToSql(closing.cost_nanodollars), ToSql(closing.worker)}));
  if (!closed.rows.empty()) {
    RowReader reader(closed.rows[0]);
    const std::string tenant_id = reader.Text();
    const absl::Time opened = reader.Time();
    Spend& change = (*changes)[{tenant_id, MonthOf(opened)}];
    change.spent_nanodollars += closing.cost_nanodollars;
    change.reserved_nanodollars -= reader.Whole();
    return CloseOutcome::kClosed;
  }
  ASSIGN_OR_RETURN(const SqlResult found,
                   connection.Execute("SELECT request_id FROM ledger WHERE request_id = $1",
                                      {ToSql(closing.request_id)}));
  return found.rows.empty() ? CloseOutcome::kNotOpened : CloseOutcome::kAlreadyClosed;
}

absl::Status ApplySpend(SqlConnection& connection, const SpendChanges& changes) {
  for (const auto& [row, change] : changes) {
    RETURN_IF_ERROR(
        connection
            .Execute("UPDATE spend SET spent = spent + $1, reserved = reserved + $2 "
                     "WHERE tenant_id = $3 AND month = $4",
                     {ToSql(change.spent_nanodollars), ToSql(change.reserved_nanodollars),
                      ToSql(row.first), ToSql(int64_t{row.second})})
            .status());
  }
  return absl::OkStatus();
}

// The rows of a query: a condition and its values.
struct Filter {
  std::string condition = "closed_ms IS NOT NULL AND opened_ms >= $1 AND opened_ms < $2";
  std::vector<SqlValue> values;

  explicit Filter(const UsageQuery& query) : values({ToSql(query.start), ToSql(query.end)}) {
    if (!query.tenant_id.empty()) {
      absl::StrAppend(&condition, " AND tenant_id = ", Add(ToSql(query.tenant_id)));
    }
  }
  // Adds a value; returns its name.
  std::string Add(SqlValue value) {
    values.push_back(std::move(value));
    return absl::StrCat("$", values.size());
  }
};

}  // namespace

absl::Status SqlStore::OpenEntry(const LedgerOpening& opening,
                                 std::optional<int64_t> monthly_budget_nanodollars) {
  const int64_t month = MonthOf(opening.opened);
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(
        const SqlResult inserted,
        connection.Execute(
            "INSERT INTO ledger (request_id, tenant_id, key_id, model, tier, price_version, "
            "reserved_tokens, reserved_cost, router_id, opened_ms) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
            {ToSql(opening.request_id), ToSql(opening.tenant_id), ToSql(opening.key_id),
             ToSql(opening.model), ToSql(opening.tier), ToSql(opening.price_version),
             ToSql(opening.reserved_tokens), ToSql(opening.reserved_nanodollars),
             ToSql(opening.router_id), ToSql(opening.opened)}));
    if (inserted.num_changed == 0) {
      return absl::AlreadyExistsError(
          absl::StrCat("request_id=", opening.request_id, ": is in the ledger already"));
    }
    // Its lock makes concurrent openings of one tenant take turns, so the sum below is exact.
    ASSIGN_OR_RETURN(
        const SqlResult spend,
        connection.Execute(
            "INSERT INTO spend VALUES ($1, $2, 0, $3) ON CONFLICT (tenant_id, month) "
            "DO UPDATE SET reserved = spend.reserved + excluded.reserved "
            "RETURNING spent, reserved",
            {ToSql(opening.tenant_id), ToSql(month), ToSql(opening.reserved_nanodollars)}));
    if (!monthly_budget_nanodollars) return absl::OkStatus();
    RowReader reader(spend.rows[0]);
    const int64_t spent = reader.Whole();
    const int64_t reserved = reader.Whole();
    if (spent + reserved <= *monthly_budget_nanodollars) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("monthly budget: ", spent, " nano-dollars spent and ", reserved,
                     " reserved with this request, at most ", *monthly_budget_nanodollars));
  });
}

absl::StatusOr<CloseOutcome> SqlStore::CloseEntry(const LedgerClosing& closing) {
  ASSIGN_OR_RETURN(const std::vector<CloseOutcome> outcomes,
                   CloseMany(absl::MakeConstSpan(&closing, 1)));
  return outcomes[0];
}

absl::StatusOr<std::vector<CloseOutcome>> SqlStore::CloseMany(
    absl::Span<const LedgerClosing> closings) {
  std::vector<size_t> order(closings.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return closings[a].request_id < closings[b].request_id; });
  std::vector<CloseOutcome> outcomes(closings.size());
  RETURN_IF_ERROR(
      database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) -> absl::Status {
        SpendChanges changes;
        for (const size_t i : order) {
          ASSIGN_OR_RETURN(outcomes[i], CloseOne(connection, closings[i], &changes));
        }
        return ApplySpend(connection, changes);
      }));
  return outcomes;
}

absl::StatusOr<LedgerEntry> SqlStore::GetEntry(absl::string_view request_id) {
  ASSIGN_OR_RETURN(const SqlResult result, Read(absl::StrCat("SELECT ", kEntryColumns,
                                                             " FROM ledger WHERE request_id = $1"),
                                                {ToSql(request_id)}));
  if (result.rows.empty()) {
    return absl::NotFoundError(absl::StrCat("request_id=", request_id, ": is not in the ledger"));
  }
  return ReadEntry(result.rows[0]);
}

absl::StatusOr<std::vector<LedgerEntry>> SqlStore::ListOpen(absl::Time opened_before, int num_max) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   Read(absl::StrCat("SELECT ", kEntryColumns,
                                     " FROM ledger WHERE closed_ms IS NULL AND opened_ms < $1 "
                                     "ORDER BY opened_ms, request_id LIMIT $2"),
                        {ToSql(opened_before), ToSql(int64_t{num_max})}));
  return ReadEntries(result);
}

absl::StatusOr<Spend> SqlStore::GetSpend(absl::string_view tenant_id, int month) {
  ASSIGN_OR_RETURN(const SqlResult result,
                   Read("SELECT spent, reserved FROM spend WHERE tenant_id = $1 AND month = $2",
                        {ToSql(tenant_id), ToSql(int64_t{month})}));
  if (result.rows.empty()) return Spend();
  RowReader reader(result.rows[0]);
  Spend spend;
  spend.spent_nanodollars = reader.Whole();
  spend.reserved_nanodollars = reader.Whole();
  return spend;
}

absl::StatusOr<std::vector<UsageBucket>> SqlStore::QueryUsage(const UsageQuery& query) {
  Filter filter(query);
  const int64_t width_ms = static_cast<int64_t>(query.bucket_width);
  const std::string bucket = absl::StrCat("opened_ms / ", width_ms, " * ", width_ms);
  const std::string limit = filter.Add(ToSql(int64_t{kUsageBucketsMax} + 1));
  // CAST: the sum of a BIGINT is a NUMERIC in PostgreSQL.
  const auto sum = [](absl::string_view column) {
    return absl::StrCat(", CAST(SUM(", column, ") AS BIGINT)");
  };
  ASSIGN_OR_RETURN(
      const SqlResult result,
      Read(absl::StrCat("SELECT ", bucket, " AS bucket, ",
                        query.by_key ? "key_id" : "CAST('' AS TEXT)", " AS by_key, ",
                        query.by_model ? "model" : "CAST('' AS TEXT)", " AS by_model, ",
                        query.by_billed_tier ? "billed_tier" : "CAST(NULL AS BIGINT)",
                        " AS by_tier, COUNT(*)", sum("prompt_tokens"), sum("cached_tokens"),
                        sum("completion_tokens"), sum("reasoning_tokens"), sum("draft_rounds"),
                        sum("cost"), " FROM ledger WHERE ", filter.condition,
                        " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ", limit),
           filter.values));
  if (result.rows.size() > kUsageBucketsMax) {
    return absl::OutOfRangeError(absl::StrCat("usage: more than ", kUsageBucketsMax,
                                              " buckets; ask for a shorter time, wider buckets or "
                                              "fewer groups"));
  }
  std::vector<UsageBucket> buckets;
  for (const SqlRow& row : result.rows) {
    RowReader reader(row);
    UsageBucket& one = buckets.emplace_back();
    one.start = reader.Time();
    one.key_id = reader.Text();
    one.model = reader.Text();
    if (const auto tier = reader.OptionalWhole()) one.billed_tier = static_cast<Tier>(*tier);
    one.requests = reader.Whole();
    one.tokens.prompt = reader.Whole();
    one.tokens.cached = reader.Whole();
    one.tokens.completion = reader.Whole();
    one.reasoning_tokens = reader.Whole();
    one.draft_rounds = reader.Whole();
    one.cost_nanodollars = reader.Whole();
  }
  return buckets;
}

absl::StatusOr<std::vector<LedgerEntry>> SqlStore::ListClosed(
    const UsageQuery& query, const std::optional<LedgerEntry>& after, int num_max) {
  Filter filter(query);
  if (after) {
    const std::string opened = filter.Add(ToSql(after->opening.opened));
    const std::string request_id = filter.Add(ToSql(after->opening.request_id));
    absl::StrAppend(&filter.condition, " AND (opened_ms, request_id) > (", opened, ", ", request_id,
                    ")");
  }
  const std::string limit = filter.Add(ToSql(int64_t{num_max}));
  ASSIGN_OR_RETURN(
      const SqlResult result,
      Read(absl::StrCat("SELECT ", kEntryColumns, " FROM ledger WHERE ", filter.condition,
                        " ORDER BY opened_ms, request_id LIMIT ", limit),
           filter.values));
  return ReadEntries(result);
}

}  // namespace ultraspeed::router
