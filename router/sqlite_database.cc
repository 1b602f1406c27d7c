// SqlDatabase over one SQLite file: one connection that writes, one that reads, so that a long
// usage query does not hold up admissions. Other processes may use the same file; they take turns.
#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "router/sql_database.h"

namespace ultraspeed::router {
namespace {

constexpr int kBusyTimeoutMs = 5000;  // for another process's transaction

// Thread contract: one thread at a time.
class SqliteConnection : public SqlConnection {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteConnection>> Open(const std::string& path) {
    sqlite3* handle = nullptr;
    const int code =
        sqlite3_open_v2(path.c_str(), &handle,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
    auto connection = std::unique_ptr<SqliteConnection>(new SqliteConnection(handle));
    if (code != SQLITE_OK) {
      return absl::UnavailableError(
          absl::StrCat("store sqlite:", path, ": ", sqlite3_errstr(code)));
    }
    sqlite3_busy_timeout(handle, kBusyTimeoutMs);
    // The switch to WAL wants the file for itself and does not wait for it, busy timeout or not:
    // routers that start together try again.
    constexpr char kUseWal[] = "PRAGMA journal_mode = WAL";
    constexpr int kRetryMs = 5;
    for (int waited_ms = 0; waited_ms < kBusyTimeoutMs; waited_ms += kRetryMs) {
      if (sqlite3_exec(handle, kUseWal, nullptr, nullptr, nullptr) != SQLITE_BUSY) break;
      sqlite3_sleep(kRetryMs);
    }
    RETURN_IF_ERROR(connection->ExecuteScript(
        absl::StrCat(kUseWal, "; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")));
    return connection;
  }

  ~SqliteConnection() override {
    for (const auto& [text, statement] : statements_) sqlite3_finalize(statement);
    sqlite3_close(handle_);
  }

  absl::StatusOr<SqlResult> Execute(absl::string_view text,
                                    absl::Span<const SqlValue> values) override {
    ASSIGN_OR_RETURN(sqlite3_stmt* const statement, Prepare(text));
    absl::StatusOr<SqlResult> result = Run(statement, values);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return result;
  }

  absl::Status ExecuteScript(const std::string& script) override {
    if (sqlite3_exec(handle_, script.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK)
      return absl::OkStatus();
    return Error();
  }

 private:
  explicit SqliteConnection(sqlite3* handle) : handle_(handle) {}

  absl::StatusOr<sqlite3_stmt*> Prepare(absl::string_view text) {
    const auto found = statements_.find(text);
    if (found != statements_.end()) return found->second;
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(handle_, text.data(), static_cast<int>(text.size()),
                           SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK) {
      return Error();
    }
    statements_.emplace(text, statement);
    return statement;
  }

  absl::StatusOr<SqlResult> Run(sqlite3_stmt* statement, absl::Span<const SqlValue> values) {
    for (size_t i = 0; i < values.size(); ++i) {
      const int position =
          sqlite3_bind_parameter_index(statement, absl::StrCat("$", i + 1).c_str());
      if (const auto* whole = std::get_if<int64_t>(&values[i])) {
        sqlite3_bind_int64(statement, position, *whole);
      } else if (const auto* text = std::get_if<std::string>(&values[i])) {
        sqlite3_bind_text64(statement, position, text->data(), text->size(), SQLITE_STATIC,
                            SQLITE_UTF8);
      }
    }
    SqlResult result;
    int code;
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
      SqlRow& row = result.rows.emplace_back();
      for (int i = 0; i < sqlite3_column_count(statement); ++i) row.push_back(Column(statement, i));
    }
    if (code != SQLITE_DONE) return Error();
    if (!sqlite3_stmt_readonly(statement)) result.num_changed = sqlite3_changes64(handle_);
    return result;
  }

  static SqlValue Column(sqlite3_stmt* statement, int i) {
    switch (sqlite3_column_type(statement, i)) {
      case SQLITE_NULL:
        return std::monostate();
      case SQLITE_INTEGER:
        return int64_t{sqlite3_column_int64(statement, i)};
      default: {
        const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, i));
        return std::string(text, static_cast<size_t>(sqlite3_column_bytes(statement, i)));
      }
    }
  }

  absl::Status Error() const {
    const std::string message = absl::StrCat("store sqlite: ", sqlite3_errmsg(handle_));
    switch (sqlite3_errcode(handle_)) {
      case SQLITE_ERROR:
      case SQLITE_MISUSE:
      case SQLITE_RANGE:
      case SQLITE_MISMATCH:
        return absl::InternalError(message);
      case SQLITE_CONSTRAINT:
        return absl::FailedPreconditionError(message);
      default:  // busy, full, I/O, corrupt, read-only: nothing that a caller did
        return absl::UnavailableError(message);
    }
  }

  sqlite3* const handle_;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

class SqliteDatabase : public SqlDatabase {
 public:
  SqliteDatabase(std::unique_ptr<SqliteConnection> writer, std::unique_ptr<SqliteConnection> reader)
      : writer_(std::move(writer)), reader_(std::move(reader)) {}

  SqlDialect dialect() const override { return SqlDialect::kSqlite; }

  absl::Status Transact(SqlAccess access,
                        absl::FunctionRef<absl::Status(SqlConnection&)> body) override {
    if (access == SqlAccess::kWrite) {
      absl::MutexLock lock(&writer_mutex_);
      return TransactOn(*writer_, "BEGIN IMMEDIATE", body);
    }
    absl::MutexLock lock(&reader_mutex_);
    return TransactOn(*reader_, "BEGIN", body);
  }

 private:
  static absl::Status TransactOn(SqliteConnection& connection, const std::string& begin,
                                 absl::FunctionRef<absl::Status(SqlConnection&)> body) {
    RETURN_IF_ERROR(connection.ExecuteScript(begin));
    absl::Status status = body(connection);
    if (status.ok()) status = connection.ExecuteScript("COMMIT");
    // Fails, harmlessly, where SQLite has rolled back by itself.
    if (!status.ok()) connection.ExecuteScript("ROLLBACK").IgnoreError();
    return status;
  }

  absl::Mutex writer_mutex_;
  const std::unique_ptr<SqliteConnection> writer_ ABSL_PT_GUARDED_BY(writer_mutex_);
  absl::Mutex reader_mutex_;
  const std::unique_ptr<SqliteConnection> reader_ ABSL_PT_GUARDED_BY(reader_mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenSqlite(const std::string& path) {
  // Made here, not by SQLite, for its permissions; SQLite gives the WAL files the same. A file that
  // exists is not opened: closing it would drop the locks of this process's other connections.
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0 && errno != EEXIST) {
    return absl::UnavailableError(absl::StrCat("store sqlite:", path, ": ", std::strerror(errno)));
  }
  if (file >= 0) close(file);
  ASSIGN_OR_RETURN(auto writer, SqliteConnection::Open(path));
  ASSIGN_OR_RETURN(auto reader, SqliteConnection::Open(path));
  return std::make_unique<SqliteDatabase>(std::move(writer), std::move(reader));
}

}  // namespace ultraspeed::router
