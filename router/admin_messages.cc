#include "router/admin_messages.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

constexpr int64_t kTimestampSecondsMax = 253'402'300'799;  // the end of the year 9999
constexpr absl::Duration kClockSkew = absl::Minutes(1);    // between an operator and this router

v1::ServiceTier ToMessage(Tier tier) {
  return tier == Tier::kUltraspeed ? v1::SERVICE_TIER_ULTRASPEED : v1::SERVICE_TIER_STANDARD;
}

template <typename Entitlements>
absl::Status SetEntitlements(const Entitlements& messages, TenantTerms* terms) {
  terms->entitlements.clear();
  for (const v1::Entitlement& message : messages) {
    Entitlement& entitlement = terms->entitlements.emplace_back();
    entitlement.model_pattern = message.model();
    ASSIGN_OR_RETURN(entitlement.tier, TierFrom("entitlements.tier", message.tier()));
    entitlement.promised_tokens_per_second = message.promised_tokens_per_second();
  }
  return absl::OkStatus();
}

template <typename Limits>
absl::Status SetLimits(const Limits& messages, TenantTerms* terms) {
  for (const v1::TierLimits& message : messages) {
    ASSIGN_OR_RETURN(const Tier tier, TierFrom("limits.tier", message.tier()));
    TierLimits& limits = terms->limits[static_cast<size_t>(tier)];
    if (message.has_requests_per_minute())
      limits.requests_per_minute = message.requests_per_minute();
    if (message.has_requests_burst()) limits.requests_burst = message.requests_burst();
    if (message.has_tokens_per_minute()) limits.tokens_per_minute = message.tokens_per_minute();
    if (message.has_tokens_burst()) limits.tokens_burst = message.tokens_burst();
    if (message.has_concurrent_streams()) limits.concurrent_streams = message.concurrent_streams();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<absl::Time> TimeFrom(absl::string_view field,
                                    const google::protobuf::Timestamp& stamp) {
  if (stamp.seconds() < 0 || stamp.seconds() > kTimestampSecondsMax || stamp.nanos() < 0 ||
      stamp.nanos() > 999'999'999) {
    return absl::InvalidArgumentError(absl::StrCat(field, "=", stamp.seconds(), "s ", stamp.nanos(),
                                                   "ns: must be a time of the years 1970..9999"));
  }
  return absl::FromUnixMillis(stamp.seconds() * 1000 + stamp.nanos() / 1'000'000);
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  const int64_t ms = absl::ToUnixMillis(time);
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(ms / 1000);
  stamp.set_nanos(static_cast<int32_t>(ms % 1000) * 1'000'000);
  return stamp;
}

absl::StatusOr<Tier> TierFrom(absl::string_view field, v1::ServiceTier tier) {
  if (tier == v1::SERVICE_TIER_STANDARD) return Tier::kStandard;
  if (tier == v1::SERVICE_TIER_ULTRASPEED) return Tier::kUltraspeed;
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", static_cast<int>(tier), ": must be STANDARD or ULTRASPEED"));
}

absl::StatusOr<Tenant> NewTenantFrom(const v1::CreateTenantRequest& request, absl::Time now) {
  Tenant tenant;
  tenant.id = request.id();
  tenant.name = request.name();
  tenant.created = now;
  for (const Tier tier : kTiers) {
    tenant.terms.limits[static_cast<size_t>(tier)] = NewTenantLimits(tier);
  }
  RETURN_IF_ERROR(SetEntitlements(request.entitlements(), &tenant.terms));
  RETURN_IF_ERROR(SetLimits(request.limits(), &tenant.terms));
  if (request.has_monthly_budget_nanodollars()) {
    tenant.terms.monthly_budget_nanodollars = request.monthly_budget_nanodollars();
  }
  RETURN_IF_ERROR(ValidateTenant(tenant));
  return tenant;
}

absl::Status ApplyUpdate(const v1::UpdateTenantRequest& request, Tenant* tenant) {
  if (request.has_name()) tenant->name = request.name();
  switch (request.state()) {
    case v1::TENANT_STATE_UNSPECIFIED:
      break;
    case v1::TENANT_STATE_ACTIVE:
      tenant->state = TenantState::kActive;
      break;
    case v1::TENANT_STATE_SUSPENDED:
      tenant->state = TenantState::kSuspended;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("state=", static_cast<int>(request.state()),
                                                     ": must be ACTIVE or SUSPENDED"));
  }
  if (request.has_entitlements()) {
    RETURN_IF_ERROR(SetEntitlements(request.entitlements().entitlements(), &tenant->terms));
  }
  RETURN_IF_ERROR(SetLimits(request.limits(), &tenant->terms));
  if (request.has_monthly_budget_nanodollars() && request.remove_monthly_budget()) {
    return absl::InvalidArgumentError(
        "monthly_budget_nanodollars and remove_monthly_budget: only one of the two");
  }
  if (request.has_monthly_budget_nanodollars()) {
    tenant->terms.monthly_budget_nanodollars = request.monthly_budget_nanodollars();
  } else if (request.remove_monthly_budget()) {
    tenant->terms.monthly_budget_nanodollars.reset();
  }
  return ValidateTenant(*tenant);
}

absl::StatusOr<Price> NewPriceFrom(const v1::AddPriceRequest& request, absl::Time now) {
  if (!request.has_input() || !request.has_cached_input() || !request.has_output()) {
    return absl::InvalidArgumentError("input, cached_input and output: all three are needed");
  }
  Price price;
  price.model_pattern = request.model();
  ASSIGN_OR_RETURN(price.tier, TierFrom("tier", request.tier()));
  price.per_million = {request.input(), request.cached_input(), request.output()};
  price.effective_from = now;
  if (request.has_effective_from()) {
    ASSIGN_OR_RETURN(price.effective_from, TimeFrom("effective_from", request.effective_from()));
    if (price.effective_from < now - kClockSkew) {
      return absl::InvalidArgumentError(absl::StrCat(
          "effective_from=", absl::FormatTime(price.effective_from), ": must not be before now"));
    }
  }
  RETURN_IF_ERROR(ValidatePrice(price));
  return price;
}

v1::Tenant ToMessage(const Tenant& tenant) {
  v1::Tenant message;
  message.set_id(tenant.id);
  message.set_name(tenant.name);
  message.set_state(tenant.state == TenantState::kActive ? v1::TENANT_STATE_ACTIVE
                                                         : v1::TENANT_STATE_SUSPENDED);
  for (const Entitlement& entitlement : tenant.terms.entitlements) {
    v1::Entitlement* const out = message.add_entitlements();
    out->set_model(entitlement.model_pattern);
    out->set_tier(ToMessage(entitlement.tier));
    out->set_promised_tokens_per_second(entitlement.promised_tokens_per_second);
  }
  for (const Tier tier : kTiers) {
    const TierLimits& limits = tenant.terms.LimitsOf(tier);
    v1::TierLimits* const out = message.add_limits();
    out->set_tier(ToMessage(tier));
    out->set_requests_per_minute(limits.requests_per_minute);
    out->set_requests_burst(limits.requests_burst);
    out->set_tokens_per_minute(limits.tokens_per_minute);
    out->set_tokens_burst(limits.tokens_burst);
    out->set_concurrent_streams(limits.concurrent_streams);
  }
  if (tenant.terms.monthly_budget_nanodollars) {
    message.set_monthly_budget_nanodollars(*tenant.terms.monthly_budget_nanodollars);
  }
  *message.mutable_created() = ToTimestamp(tenant.created);
  return message;
}

v1::ApiKey ToMessage(const ApiKeyRecord& key) {
  v1::ApiKey message;
  message.set_id(key.id);
  message.set_tenant_id(key.tenant_id);
  message.set_label(key.label);
  *message.mutable_created() = ToTimestamp(key.created);
  if (key.expires) *message.mutable_expires() = ToTimestamp(*key.expires);
  if (key.revoked) *message.mutable_revoked() = ToTimestamp(*key.revoked);
  return message;
}

v1::Price ToMessage(const Price& price) {
  v1::Price message;
  message.set_version(price.version);
  message.set_model(price.model_pattern);
  message.set_tier(ToMessage(price.tier));
  message.set_input(price.per_million.input);
  message.set_cached_input(price.per_million.cached_input);
  message.set_output(price.per_million.output);
  *message.mutable_effective_from() = ToTimestamp(price.effective_from);
  return message;
}

v1::AuditEntry ToMessage(const AuditEntry& entry) {
  v1::AuditEntry message;
  message.set_id(entry.id);
  message.set_who(entry.act.who);
  message.set_what(entry.act.what);
  message.set_target(entry.act.target);
  *message.mutable_time() = ToTimestamp(entry.act.time);
  message.set_result(entry.result);
  return message;
}

}  // namespace ultraspeed::router
