#include "router/store.h"

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "router/sql_store.h"

namespace ultraspeed::router {
namespace {

constexpr int kPostgresConnectionsMax = 8;  // of one router

absl::StatusOr<std::unique_ptr<SqlDatabase>> OpenDatabase(const std::string& url) {
  absl::string_view path = url;
  if (absl::ConsumePrefix(&path, "sqlite:") && !path.empty()) return OpenSqlite(std::string(path));
  if (absl::StartsWith(url, "postgresql://") || absl::StartsWith(url, "postgres://")) {
    return OpenPostgres(url, kPostgresConnectionsMax);
  }
  return absl::InvalidArgumentError("store: must be sqlite:PATH or postgresql://..");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenStore(const std::string& url) {
  ASSIGN_OR_RETURN(std::unique_ptr<SqlDatabase> database, OpenDatabase(url));
  return SqlStore::Create(std::move(database));
}

}  // namespace ultraspeed::router
