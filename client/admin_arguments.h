// The command line of `ultraspeed admin` as plain values and messages. Called by admin.cc before
// anything else runs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/config.h"
#include "common/tls.h"
#include "ultraspeed/v1/admin.pb.h"

namespace ultraspeed::client {

// Texts stay texts until it is known whether they were given: zero is a value, absence another.
struct AdminArguments {
  std::string server = "127.0.0.1:50053";
  std::string token_file;
  absl::Duration deadline = absl::Seconds(30);
  TlsOptions tls;
  bool json = false;
  std::vector<std::string> words;  // what the command is about: a tenant, a key

  std::string name;                       // tenants
  std::vector<std::string> entitlements;  // MODEL:TIER[:TOKENS_PER_SECOND]
  std::vector<std::string> limits;        // TIER:FIELD=VALUE
  std::string budget;                     // dollars, or "none"
  std::string tenant;                     // keys, usage
  std::string label;
  absl::Duration expires_in = absl::ZeroDuration();  // zero: never
  std::string model;                                 // prices
  std::string tier;
  std::string input, cached_input, output;  // dollars per million tokens
  std::string effective_from;
  std::string start, end;  // usage
  std::string bucket = "1h";
  std::vector<std::string> group_by;
  std::string format = "csv";
  int limit = 100;  // audit
};

// Flags that every command has.
void AddCommonFlags(FlagTable& table, AdminArguments* arguments);
void AddTenantFlags(FlagTable& table, AdminArguments* arguments);
void AddPriceFlags(FlagTable& table, AdminArguments* arguments);
void AddRangeFlags(FlagTable& table, AdminArguments* arguments);

// All of these: INVALID_ARGUMENT names flag, value and what is allowed.
absl::StatusOr<std::vector<v1::Entitlement>> ParseEntitlements(
    const std::vector<std::string>& texts);
// Only the fields that are named; one message for each tier.
absl::StatusOr<std::vector<v1::TierLimits>> ParseLimits(const std::vector<std::string>& texts);
absl::StatusOr<v1::ServiceTier> ParseTierName(absl::string_view flag, absl::string_view text);
// "2027-01-31T10:00:00Z" or "2027-01-31", which is its beginning in UTC.
absl::StatusOr<google::protobuf::Timestamp> ParseTime(absl::string_view flag,
                                                      const std::string& text);
// From ULTRASPEED_ADMIN_TOKEN, else the first token of the file, which may be the router's own.
absl::StatusOr<std::string> ReadAdminToken(const std::string& token_file);

}  // namespace ultraspeed::client
