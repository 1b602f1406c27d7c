// The schema of the accounts store: numbered steps, each run once, in order, in a transaction that
// other routers wait for. A step that has shipped never changes; the schema changes by a new step.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "router/sql_database.h"

namespace ultraspeed::router {

// The number of the last step.
int64_t StoreSchemaVersion();

// Runs the steps that the database has not had. FAILED_PRECONDITION: it has had steps that this
// program does not know, so a newer router owns it; nothing is changed.
absl::Status MigrateStore(SqlDatabase& database);

}  // namespace ultraspeed::router
