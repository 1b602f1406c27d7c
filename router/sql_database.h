// What SqlStore needs of a database: statements with values, in transactions. One text serves both
// databases, with values as $1, $2, ..; they differ in the little that SqlDialect names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ultraspeed::router {

using SqlValue = std::variant<std::monostate, int64_t, std::string>;  // monostate: NULL
using SqlRow = std::vector<SqlValue>;

struct SqlResult {
  std::vector<SqlRow> rows;
  int64_t num_changed = 0;  // rows that the statement inserted, updated or deleted
};

// Thread contract: one thread, within SqlDatabase::Transact.
class SqlConnection {
 public:
  virtual ~SqlConnection() = default;
  // `statement` is prepared once per connection. UNAVAILABLE: the database is away or busy;
  // FAILED_PRECONDITION: a rule of the schema refuses; INTERNAL: the statement is wrong.
  virtual absl::StatusOr<SqlResult> Execute(absl::string_view statement,
                                            absl::Span<const SqlValue> values) = 0;
  // Several statements without values or results.
  virtual absl::Status ExecuteScript(const std::string& script) = 0;
};

enum class SqlDialect : uint8_t { kSqlite, kPostgres };
enum class SqlAccess : uint8_t {
  kRead,   // a consistent snapshot
  kWrite,  // SQLite: the only writer; PostgreSQL: READ COMMITTED, so rows lock as they change
};

// Thread contract: any thread; blocks.
class SqlDatabase {
 public:
  virtual ~SqlDatabase() = default;
  virtual SqlDialect dialect() const = 0;
  // Runs `body` in one transaction; commits if it returns OK, else undoes it and returns what it
  // returned. `body` may run again from the start after a lost connection or a deadlock, so it must
  // not have effects of its own. UNAVAILABLE from a commit: it may or may not have happened.
  virtual absl::Status Transact(SqlAccess access,
                                absl::FunctionRef<absl::Status(SqlConnection&)> body) = 0;
};

// A file in WAL mode, made if missing, readable by its owner only; every commit is on the disk
// before it returns. UNAVAILABLE names the path.
absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenSqlite(const std::string& path);

// At most `num_connections_max` connections, made when needed and made again when lost. Connects
// once before it returns. INVALID_ARGUMENT: not a PostgreSQL URL; UNAVAILABLE: cannot connect.
absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenPostgres(const std::string& url,
                                                          int num_connections_max);

}  // namespace ultraspeed::router
