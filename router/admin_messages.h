// Admin's messages to and from the accounts' plain values, with the checks that a message can fail.
// Called by AdminService; pure.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router/store.h"
#include "ultraspeed/v1/admin.pb.h"

namespace ultraspeed::router {

// Milliseconds; INVALID_ARGUMENT: no time of the years 1970..9999. `field` names it.
absl::StatusOr<absl::Time> TimeFrom(absl::string_view field,
                                    const google::protobuf::Timestamp& stamp);
google::protobuf::Timestamp ToTimestamp(absl::Time time);

// INVALID_ARGUMENT unless STANDARD or ULTRASPEED.
absl::StatusOr<Tier> TierFrom(absl::string_view field, v1::ServiceTier tier);

// All of these are valid by accounts.h or pricing.h.
absl::StatusOr<Tenant> NewTenantFrom(const v1::CreateTenantRequest& request, absl::Time now);
absl::Status ApplyUpdate(const v1::UpdateTenantRequest& request, Tenant* tenant);
absl::StatusOr<Price> NewPriceFrom(const v1::AddPriceRequest& request, absl::Time now);

v1::Tenant ToMessage(const Tenant& tenant);
v1::ApiKey ToMessage(const ApiKeyRecord& key);
v1::Price ToMessage(const Price& price);
v1::AuditEntry ToMessage(const AuditEntry& entry);

}  // namespace ultraspeed::router
