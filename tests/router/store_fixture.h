// The two real databases under one fixture: a suite derived from StoreTest and instantiated with
// INSTANTIATE_STORE_TESTS runs on SQLite and on PostgreSQL, every test on an empty store.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "router/store.h"

namespace ultraspeed::router::testing {

enum class Backend { kSqlite, kPostgres };

// The URL of an empty store. Starts the PostgreSQL server of this process when it is first needed;
// that ends with the process.
std::string NewStoreUrl(Backend backend);

// Makes PostgreSQL unreachable and reachable again.
void StopPostgres();
void StartPostgres();

Act ActOf(absl::string_view what, absl::string_view target);
// Active, entitled to every model in both tiers.
Tenant TenantOf(const std::string& id);
LedgerOpening OpeningOf(const std::string& request_id, const std::string& tenant_id = "acme");
LedgerClosing ClosingOf(const std::string& request_id, int64_t cost_nanodollars = 10);

// 2027-01-15 08:00 UTC, the time of all of the above.
absl::Time TestTime();

class StoreTest : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override;

  std::string url_;
  std::unique_ptr<Store> store_;
};

#define INSTANTIATE_STORE_TESTS(suite)                                                   \
  INSTANTIATE_TEST_SUITE_P(                                                              \
      Databases, suite,                                                                  \
      ::testing::Values(::ultraspeed::router::testing::Backend::kSqlite,                 \
                        ::ultraspeed::router::testing::Backend::kPostgres),              \
      [](const auto& info) {                                                             \
        return std::string(info.param == ::ultraspeed::router::testing::Backend::kSqlite \
                               ? "Sqlite"                                                \
                               : "Postgres");                                            \
      })

}  // namespace ultraspeed::router::testing
