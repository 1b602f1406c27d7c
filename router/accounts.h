// Who may ask for what: tenants, their terms, their API keys. Plain values and their checks;
// store.h keeps them, accounts_cache.h serves them, admin_service.h changes them.
//
// A model pattern is a model's exact name, or a prefix that ends in `*`. Of several that match, the
// exact name wins, then the longest prefix. Entitlements and prices share this rule.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/rate_limiter.h"
#include "router/tier.h"

namespace ultraspeed::router {

inline constexpr int64_t kNanodollarsPerDollar = 1'000'000'000;
inline constexpr int64_t kBudgetNanodollarsMax = 1'000'000'000 * kNanodollarsPerDollar;
inline constexpr int64_t kPromisedTokensPerSecondMax = 1'000'000;
inline constexpr size_t kEntitlementsMax = 256;
inline constexpr size_t kLabelBytesMax = 256;  // of the names that are only for people

// A new tenant's limits when its creator names none.
TierLimits NewTenantLimits(Tier tier);

// One (model, tier) that a tenant may use, and the decode speed that it was promised there.
struct Entitlement {
  std::string model_pattern;
  Tier tier = Tier::kStandard;
  int64_t promised_tokens_per_second =
      0;  // 0: none; a slower stream is billed at the standard price
  bool operator==(const Entitlement&) const = default;
};

struct TenantTerms {
  std::vector<Entitlement> entitlements;
  std::array<TierLimits, kNumTiers> limits;           // by Tier; see rate_limiter.h
  std::optional<int64_t> monthly_budget_nanodollars;  // a hard stop, by UTC calendar month

  // The entitlement that decides, null if the tenant has none for this model and tier.
  const Entitlement* Find(absl::string_view model, Tier tier) const;
  const TierLimits& LimitsOf(Tier tier) const { return limits[static_cast<size_t>(tier)]; }
};

// Every model and tier, no promise, no limit, no budget: callers that no operator has set terms for
// (key file, --no-auth). Never null, one object.
const std::shared_ptr<const TenantTerms>& UnrestrictedTerms();

enum class TenantState : uint8_t { kActive = 0, kSuspended = 1 };  // stored: never renumber

struct Tenant {
  std::string id;    // chosen by the operator, see IsAccountName; appears in logs and metrics
  std::string name;  // for people; UTF-8, at most kLabelBytesMax
  TenantState state = TenantState::kActive;
  TenantTerms terms;
  absl::Time created;   // milliseconds
  int64_t version = 0;  // of the accounts when the tenant last changed; set by the store
};

// What is kept of a key: never the key.
struct ApiKeyRecord {
  std::string id;  // the public prefix of the key, unique
  std::string tenant_id;
  std::string label;       // for people; UTF-8, at most kLabelBytesMax
  std::string digest_hex;  // HMAC-SHA-256 of the whole key under the pepper, 64 hex digits
  absl::Time created;      // milliseconds
  std::optional<absl::Time> expires = std::nullopt;
  std::optional<absl::Time> revoked = std::nullopt;
};

// 1..64 of A-Z a-z 0-9 . _ -
bool IsAccountName(absl::string_view name);

bool IsModelPattern(absl::string_view pattern);
// How specifically `pattern` matches: nullopt if it does not; higher wins.
std::optional<size_t> ModelMatch(absl::string_view pattern, absl::string_view model);

// INVALID_ARGUMENT names field, value and bound.
absl::Status ValidateLabel(absl::string_view field, absl::string_view text);
absl::Status ValidateTerms(const TenantTerms& terms);
absl::Status ValidateTenant(const Tenant& tenant);

}  // namespace ultraspeed::router
