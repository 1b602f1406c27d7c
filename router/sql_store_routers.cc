// The heartbeats of routers; see store.h.
#include "common/status_macros.h"
#include "router/sql_rows.h"
#include "router/sql_store.h"

namespace ultraspeed::router {

absl::Status SqlStore::Beat(absl::string_view router_id) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) {
    return connection
        .Execute(
            "INSERT INTO routers VALUES ($1, 1) "
            "ON CONFLICT (id) DO UPDATE SET beats = routers.beats + 1",
            {ToSql(router_id)})
        .status();
  });
}

absl::StatusOr<std::vector<RouterBeats>> SqlStore::ListBeats() {
  ASSIGN_OR_RETURN(const SqlResult result, Read("SELECT id, beats FROM routers ORDER BY id", {}));
  std::vector<RouterBeats> beats;
  for (const SqlRow& row : result.rows) {
    RowReader reader(row);
    RouterBeats one;
    one.router_id = reader.Text();
    one.num_beats = reader.Whole();
    beats.push_back(std::move(one));
  }
  return beats;
}

absl::Status SqlStore::ForgetRouter(absl::string_view router_id) {
  return database_->Transact(SqlAccess::kWrite, [&](SqlConnection& connection) {
    return connection.Execute("DELETE FROM routers WHERE id = $1", {ToSql(router_id)}).status();
  });
}

}  // namespace ultraspeed::router
