// SqlDatabase over PostgreSQL through libpq: a bounded pool of connections with prepared
// statements. A lost connection is replaced; a transaction that had not begun to commit is then run
// again.
#include <libpq-fe.h>

#include <deque>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "router/sql_database.h"

namespace ultraspeed::router {
namespace {

constexpr absl::Duration kConnectionWaitMax = absl::Seconds(5);  // for another caller's connection
// After a failed attempt to connect, so that an outage does not make every caller wait for one.
constexpr absl::Duration kConnectPause = absl::Milliseconds(250);
constexpr int kAttemptsMax = 4;  // of one transaction

constexpr Oid kInt8Oid = 20;  // pg_type.h, which libpq-dev does not carry
constexpr Oid kInt4Oid = 23;

struct ResultDeleter {
  void operator()(PGresult* result) const { PQclear(result); }
};
using Result = std::unique_ptr<PGresult, ResultDeleter>;

// libpq ends its messages with a line break.
absl::Status Unavailable(const char* message) {
  return absl::UnavailableError(
      absl::StrCat("store postgresql: ", absl::StripAsciiWhitespace(message)));
}

// Thread contract: one thread at a time.
class PostgresConnection : public SqlConnection {
 public:
  static absl::StatusOr<std::unique_ptr<PostgresConnection>> Open(const std::string& url) {
    // The URL comes last: what it says wins over these.
    const char* const names[] = {"connect_timeout", "tcp_user_timeout", "application_name",
                                 "options",         "dbname",           nullptr};
    const char* const values[] = {
        "5",         "10000", "ultraspeed-router", "-c statement_timeout=15s -c lock_timeout=10s",
        url.c_str(), nullptr};
    auto connection = std::unique_ptr<PostgresConnection>(
        new PostgresConnection(PQconnectdbParams(names, values, /*expand_dbname=*/1)));
    if (!connection->IsConnected()) return Unavailable(PQerrorMessage(connection->handle_));
    PQsetNoticeProcessor(
        connection->handle_, [](void*, const char*) {}, nullptr);
    return connection;
  }

  ~PostgresConnection() override { PQfinish(handle_); }

  bool IsConnected() const { return PQstatus(handle_) == CONNECTION_OK; }
  // The last statement met a deadlock or a serialization failure: its transaction may be run again.
  bool ShouldRetry() const { return should_retry_; }

  // Leaves ShouldRetry as it is.
  void Rollback() { const Result result(PQexec(handle_, "ROLLBACK")); }

  absl::StatusOr<SqlResult> Execute(absl::string_view text,
                                    absl::Span<const SqlValue> values) override {
    ASSIGN_OR_RETURN(const std::string name, Prepare(text));
    std::deque<std::string> numbers;  // keeps the digits where they are
    std::vector<const char*> pointers;
    for (const SqlValue& value : values) {
      if (const auto* whole = std::get_if<int64_t>(&value)) {
        pointers.push_back(numbers.emplace_back(absl::StrCat(*whole)).c_str());
      } else if (const auto* string = std::get_if<std::string>(&value)) {
        pointers.push_back(string->c_str());
      } else {
        pointers.push_back(nullptr);
      }
    }
    const Result result(PQexecPrepared(handle_, name.c_str(), static_cast<int>(values.size()),
                                       pointers.data(), nullptr, nullptr, /*resultFormat=*/0));
    RETURN_IF_ERROR(Check(result.get()));
    return Read(result.get());
  }

  absl::Status ExecuteScript(const std::string& script) override {
    const Result result(PQexec(handle_, script.c_str()));
    return Check(result.get());
  }

 private:
  explicit PostgresConnection(PGconn* handle) : handle_(handle) {}

  // The name of the prepared statement.
  absl::StatusOr<std::string> Prepare(absl::string_view text) {
    const auto found = statements_.find(text);
    if (found != statements_.end()) return found->second;
    std::string name = absl::StrCat("s", statements_.size());
    const Result result(
        PQprepare(handle_, name.c_str(), std::string(text).c_str(), 0, /*paramTypes=*/nullptr));
    RETURN_IF_ERROR(Check(result.get()));
    statements_.emplace(text, name);
    return name;
  }

  static SqlResult Read(const PGresult* result) {
    SqlResult read;
    for (int i = 0; i < PQntuples(result); ++i) {
      SqlRow& row = read.rows.emplace_back();
      for (int column = 0; column < PQnfields(result); ++column) {
        row.push_back(Value(result, i, column));
      }
    }
    // Empty for statements that change nothing.
    if (!absl::SimpleAtoi(PQcmdTuples(const_cast<PGresult*>(result)), &read.num_changed)) {
      read.num_changed = 0;
    }
    return read;
  }

  static SqlValue Value(const PGresult* result, int row, int column) {
    if (PQgetisnull(result, row, column)) return std::monostate();
    std::string text(PQgetvalue(result, row, column),
                     static_cast<size_t>(PQgetlength(result, row, column)));
    const Oid type = PQftype(result, column);
    int64_t whole = 0;
    if ((type == kInt8Oid || type == kInt4Oid) && absl::SimpleAtoi(text, &whole)) return whole;
    return text;
  }

  absl::Status Check(const PGresult* result) {
    should_retry_ = false;
    const ExecStatusType status = PQresultStatus(result);
    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_EMPTY_QUERY) {
      return absl::OkStatus();
    }
    const char* const field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const absl::string_view state = field == nullptr ? "" : field;
    if (!IsConnected() || state.empty()) return Unavailable(PQerrorMessage(handle_));
    const char* const primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    const std::string message =
        absl::StrCat("store postgresql: ", primary == nullptr ? "" : primary, " (", state, ")");
    should_retry_ = state == "40001" || state == "40P01";   // serialization, deadlock
    if (state == "P0001" || absl::StartsWith(state, "23"))  // raised by a trigger; a constraint
      return absl::FailedPreconditionError(message);
    // 42: names and syntax; 22: values that do not fit; 26: no such prepared statement.
    if (absl::StartsWith(state, "42") || absl::StartsWith(state, "22") ||
        absl::StartsWith(state, "26")) {
      return absl::InternalError(message);
    }
    return absl::UnavailableError(message);  // shutting down, out of room, timed out, ..
  }

  PGconn* const handle_;
  std::map<std::string, std::string, std::less<>> statements_;
  bool should_retry_ = false;
};

class PostgresDatabase : public SqlDatabase {
 public:
  PostgresDatabase(std::string url, int num_connections_max)
      : url_(std::move(url)), num_connections_max_(num_connections_max) {}

  SqlDialect dialect() const override { return SqlDialect::kPostgres; }

  absl::Status Transact(SqlAccess access,
                        absl::FunctionRef<absl::Status(SqlConnection&)> body) override {
    for (int attempt = 1;; ++attempt) {
      ASSIGN_OR_RETURN(std::unique_ptr<PostgresConnection> connection, Take());
      bool is_committing = false;
      const absl::Status status = TransactOn(*connection, access, body, &is_committing);
      const bool was_lost = !connection->IsConnected();
      const bool again = !status.ok() && !is_committing && (was_lost || connection->ShouldRetry());
      GiveBack(std::move(connection));
      if (!again || attempt == kAttemptsMax) return status;
    }
  }

 private:
  static absl::Status TransactOn(PostgresConnection& connection, SqlAccess access,
                                 absl::FunctionRef<absl::Status(SqlConnection&)> body,
                                 bool* is_committing) {
    RETURN_IF_ERROR(connection.ExecuteScript(
        access == SqlAccess::kRead ? "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" : "BEGIN"));
    const absl::Status status = body(connection);
    if (status.ok()) {
      *is_committing = true;
      return connection.ExecuteScript("COMMIT");
    }
    if (connection.IsConnected()) connection.Rollback();
    return status;
  }

  absl::StatusOr<std::unique_ptr<PostgresConnection>> Take() {
    {
      absl::MutexLock lock(&mutex_);
      const auto may_go = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return !idle_.empty() || num_open_ < num_connections_max_;
      };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&may_go), kConnectionWaitMax)) {
        return absl::UnavailableError(
            absl::StrCat("store postgresql: all ", num_connections_max_, " connections are busy"));
      }
      if (!idle_.empty()) {
        std::unique_ptr<PostgresConnection> connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
      if (absl::Now() < connect_after_) return connect_error_;
      ++num_open_;
    }
    absl::StatusOr<std::unique_ptr<PostgresConnection>> connection = PostgresConnection::Open(url_);
    if (!connection.ok()) {
      absl::MutexLock lock(&mutex_);
      --num_open_;
      connect_error_ = connection.status();
      connect_after_ = absl::Now() + kConnectPause;
    }
    return connection;
  }

  void GiveBack(std::unique_ptr<PostgresConnection> connection) {
    std::vector<std::unique_ptr<PostgresConnection>> lost;  // closed after the lock
    absl::MutexLock lock(&mutex_);
    if (connection->IsConnected()) {
      idle_.push_back(std::move(connection));
      return;
    }
    // The server went away, so the idle ones are as dead.
    lost = std::move(idle_);
    idle_.clear();
    lost.push_back(std::move(connection));
    num_open_ -= static_cast<int>(lost.size());
  }

  const std::string url_;
  const int num_connections_max_;
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<PostgresConnection>> idle_ ABSL_GUARDED_BY(mutex_);
  int num_open_ ABSL_GUARDED_BY(mutex_) = 0;  // idle or in use
  absl::Time connect_after_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Status connect_error_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenPostgres(const std::string& url,
                                                          int num_connections_max) {
  // libpq's own words about a bad URL may quote a password.
  char* error = nullptr;
  PQconninfoOption* const parsed = PQconninfoParse(url.c_str(), &error);
  const bool is_valid = parsed != nullptr;
  PQconninfoFree(parsed);
  PQfreemem(error);
  if (!is_valid) return absl::InvalidArgumentError("store: not a valid postgresql:// URL");
  auto database = std::make_unique<PostgresDatabase>(url, num_connections_max);
  RETURN_IF_ERROR(
      database->Transact(SqlAccess::kRead, [](SqlConnection&) { return absl::OkStatus(); }));
  return database;
}

}  // namespace ultraspeed::router
