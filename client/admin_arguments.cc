#include "client/admin_arguments.h"

#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace ultraspeed::client {
namespace {

constexpr size_t kTokenFileBytesMax = 64u << 10;

v1::TierLimits* FindOrAdd(v1::ServiceTier tier, std::vector<v1::TierLimits>* limits) {
  for (v1::TierLimits& one : *limits) {
    if (one.tier() == tier) return &one;
  }
  limits->emplace_back().set_tier(tier);
  return &limits->back();
}

bool SetLimit(absl::string_view field, int64_t value, v1::TierLimits* limits) {
  if (field == "requests_per_minute") {
    limits->set_requests_per_minute(value);
  } else if (field == "requests_burst") {
    limits->set_requests_burst(value);
  } else if (field == "tokens_per_minute") {
    limits->set_tokens_per_minute(value);
  } else if (field == "tokens_burst") {
    limits->set_tokens_burst(value);
  } else if (field == "concurrent_streams") {
    limits->set_concurrent_streams(value);
  } else {
    return false;
  }
  return true;
}

}  // namespace

void AddCommonFlags(FlagTable& table, AdminArguments* arguments) {
  table.String("server", &arguments->server, "host:port", "The router's admin endpoint");
  table.String("token-file", &arguments->token_file, "file",
               "Holds the token, as `name token` or alone; or set ULTRASPEED_ADMIN_TOKEN");
  table.Duration("deadline", &arguments->deadline, "Of each call; 0 = none");
  table.Bool("json", &arguments->json, "Print the answer as one JSON object");
  AddTlsFlags(table, "", "the connection", &arguments->tls);
}

void AddTenantFlags(FlagTable& table, AdminArguments* arguments) {
  table.String("name", &arguments->name, "text", "For people");
  table.StringList("entitlements", &arguments->entitlements, "model:tier[:tokens/s]",
                   "What it may use, e.g. 'mimo-*:standard,mimo-*:ultraspeed:400'; the number is "
                   "the decode speed that it is promised; `none` takes all away");
  table.StringList("limits", &arguments->limits, "tier:field=value",
                   "e.g. ultraspeed:requests_per_minute=60; also requests_burst, "
                   "tokens_per_minute, tokens_burst, concurrent_streams; 0 = not limited");
  table.String("monthly-budget", &arguments->budget, "dollars", "A hard stop; `none` removes it");
}

void AddPriceFlags(FlagTable& table, AdminArguments* arguments) {
  table.String("model", &arguments->model, "name", "A model, or a prefix that ends in *");
  table.String("tier", &arguments->tier, "tier", "standard or ultraspeed");
  table.String("input", &arguments->input, "dollars", "Per million input tokens");
  table.String("cached-input", &arguments->cached_input, "dollars", "Per million cached ones");
  table.String("output", &arguments->output, "dollars", "Per million output tokens");
  table.String("effective-from", &arguments->effective_from, "time",
               "2027-01-31T10:00:00Z or 2027-01-31; none = now");
}

void AddRangeFlags(FlagTable& table, AdminArguments* arguments) {
  table.String("tenant", &arguments->tenant, "id", "Whose; none = all together");
  table.String("start", &arguments->start, "time",
               "2027-01-31T10:00:00Z or 2027-01-31; none = a day before the end");
  table.String("end", &arguments->end, "time", "Exclusive; none = now");
}

absl::StatusOr<v1::ServiceTier> ParseTierName(absl::string_view flag, absl::string_view text) {
  if (text == "standard") return v1::SERVICE_TIER_STANDARD;
  if (text == "ultraspeed") return v1::SERVICE_TIER_ULTRASPEED;
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "=", text, ": the tier must be standard or ultraspeed"));
}

absl::StatusOr<std::vector<v1::Entitlement>> ParseEntitlements(
    const std::vector<std::string>& texts) {
  std::vector<v1::Entitlement> entitlements;
  if (texts == std::vector<std::string>{"none"}) return entitlements;
  for (const std::string& text : texts) {
    const std::vector<std::string> parts = absl::StrSplit(text, ':');
    int64_t promise = 0;
    if (parts.size() < 2 || parts.size() > 3 ||
        (parts.size() == 3 && !absl::SimpleAtoi(parts[2], &promise))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--entitlements=", text, ": must be MODEL:TIER or MODEL:TIER:TOKENS_PER_S"));
    }
    v1::Entitlement& entitlement = entitlements.emplace_back();
    entitlement.set_model(parts[0]);
    ASSIGN_OR_RETURN(const v1::ServiceTier tier, ParseTierName("entitlements", parts[1]));
    entitlement.set_tier(tier);
    entitlement.set_promised_tokens_per_second(promise);
  }
  return entitlements;
}

absl::StatusOr<std::vector<v1::TierLimits>> ParseLimits(const std::vector<std::string>& texts) {
  std::vector<v1::TierLimits> limits;
  for (const std::string& text : texts) {
    const std::pair<std::string, std::string> tier_rest =
        absl::StrSplit(text, absl::MaxSplits(':', 1));
    const std::pair<std::string, std::string> field_value =
        absl::StrSplit(tier_rest.second, absl::MaxSplits('=', 1));
    ASSIGN_OR_RETURN(const v1::ServiceTier tier, ParseTierName("limits", tier_rest.first));
    int64_t value = 0;
    if (!absl::SimpleAtoi(field_value.second, &value) ||
        !SetLimit(field_value.first, value, FindOrAdd(tier, &limits))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--limits=", text,
                       ": must be TIER:FIELD=NUMBER with the field requests_per_minute, "
                       "requests_burst, tokens_per_minute, tokens_burst or concurrent_streams"));
    }
  }
  return limits;
}

absl::StatusOr<google::protobuf::Timestamp> ParseTime(absl::string_view flag,
                                                      const std::string& text) {
  absl::Time time;
  if (!absl::ParseTime(absl::RFC3339_full, text, &time, nullptr) &&
      !absl::ParseTime("%Y-%m-%d", text, absl::UTCTimeZone(), &time, nullptr)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--", flag, "=", text, ": must be a time like 2027-01-31T10:00:00Z or 2027-01-31"));
  }
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(absl::ToUnixSeconds(time));
  stamp.set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(stamp.seconds()))));
  return stamp;
}

absl::StatusOr<std::string> ReadAdminToken(const std::string& token_file) {
  if (token_file.empty()) {
    const char* const token = std::getenv("ULTRASPEED_ADMIN_TOKEN");
    if (token != nullptr) return std::string(token);
    return absl::InvalidArgumentError("token-file, or ULTRASPEED_ADMIN_TOKEN, is needed");
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(token_file, kTokenFileBytesMax, "token-file"));
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (!words.empty() && words[0][0] != '#') return words.back();
  }
  return absl::InvalidArgumentError(absl::StrCat("token-file=", token_file, ": holds no token"));
}

}  // namespace ultraspeed::client
