#include "router/accounts.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kAccountNameBytesMax = 64;

TenantTerms MakeUnrestrictedTerms() {
  TenantTerms terms;
  for (const Tier tier : kTiers) terms.entitlements.push_back({.model_pattern = "*", .tier = tier});
  return terms;
}

absl::Status OutOfBounds(absl::string_view field, int64_t value, int64_t min, int64_t max) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", value, ": must be in ", min, "..", max));
}

}  // namespace

TierLimits NewTenantLimits(Tier tier) {
  TierLimits limits;
  limits.requests_per_minute = tier == Tier::kUltraspeed ? 60 : 600;
  limits.tokens_per_minute = tier == Tier::kUltraspeed ? 500'000 : 2'000'000;
  limits.concurrent_streams = tier == Tier::kUltraspeed ? 4 : 64;
  return limits;
}

const Entitlement* TenantTerms::Find(absl::string_view model, Tier tier) const {
  const Entitlement* best = nullptr;
  std::optional<size_t> best_match;
  for (const Entitlement& entitlement : entitlements) {
    if (entitlement.tier != tier) continue;
    const std::optional<size_t> match = ModelMatch(entitlement.model_pattern, model);
    if (match > best_match) {  // nullopt is below every value
      best = &entitlement;
      best_match = match;
    }
  }
  return best;
}

const std::shared_ptr<const TenantTerms>& UnrestrictedTerms() {
  static const auto terms = std::make_shared<const TenantTerms>(MakeUnrestrictedTerms());
  return terms;
}

bool IsAccountName(absl::string_view name) {
  return !name.empty() && name.size() <= kAccountNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-';
         });
}

bool IsModelPattern(absl::string_view pattern) {
  if (pattern.empty() || pattern.size() > limits::kModelNameBytesMax) return false;
  const size_t star = pattern.find('*');
  if (star != absl::string_view::npos && star + 1 != pattern.size()) return false;
  return std::all_of(pattern.begin(), pattern.end(),
                     [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); });
}

std::optional<size_t> ModelMatch(absl::string_view pattern, absl::string_view model) {
  if (pattern == model) return limits::kModelNameBytesMax + 1;
  if (!absl::EndsWith(pattern, "*")) return std::nullopt;
  const absl::string_view prefix = pattern.substr(0, pattern.size() - 1);
  if (!absl::StartsWith(model, prefix)) return std::nullopt;
  return prefix.size();
}

absl::Status ValidateTerms(const TenantTerms& terms) {
  if (terms.entitlements.size() > kEntitlementsMax) {
    return OutOfBounds("entitlements", static_cast<int64_t>(terms.entitlements.size()), 0,
                       static_cast<int64_t>(kEntitlementsMax));
  }
  std::set<std::pair<std::string, Tier>> seen;
  for (const Entitlement& entitlement : terms.entitlements) {
    if (!IsModelPattern(entitlement.model_pattern)) {
      return absl::InvalidArgumentError(
          absl::StrCat("entitlements.model=", entitlement.model_pattern,
                       ": must be a model's name or a prefix that ends in *, 1..",
                       limits::kModelNameBytesMax, " printable characters"));
    }
    const int64_t promise = entitlement.promised_tokens_per_second;
    if (promise < 0 || promise > kPromisedTokensPerSecondMax) {
      return OutOfBounds("entitlements.promised_tokens_per_second", promise, 0,
                         kPromisedTokensPerSecondMax);
    }
    if (!seen.insert({entitlement.model_pattern, entitlement.tier}).second) {
      return absl::InvalidArgumentError(absl::StrCat("entitlements: ", entitlement.model_pattern,
                                                     ":", TierName(entitlement.tier),
                                                     " is there twice"));
    }
  }
  for (const Tier tier : kTiers) {
    if (const absl::Status status = terms.LimitsOf(tier).Validate(); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("limits of tier ", TierName(tier), ": ", status.message()));
    }
  }
  const int64_t budget = terms.monthly_budget_nanodollars.value_or(0);
  if (budget < 0 || budget > kBudgetNanodollarsMax) {
    return OutOfBounds("monthly_budget_nanodollars", budget, 0, kBudgetNanodollarsMax);
  }
  return absl::OkStatus();
}

absl::Status ValidateLabel(absl::string_view field, absl::string_view text) {
  if (text.size() > kLabelBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", text.size(), " bytes, at most ", kLabelBytesMax));
  }
  // NUL ends a text in PostgreSQL; the other control characters spoil a table.
  const bool has_control = std::any_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_iscntrl(static_cast<unsigned char>(c));
  });
  if (has_control) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must not hold control characters"));
  }
  return absl::OkStatus();
}

absl::Status ValidateTenant(const Tenant& tenant) {
  if (!IsAccountName(tenant.id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tenant.id=", tenant.id.substr(0, kAccountNameBytesMax), ": must be 1..",
                     kAccountNameBytesMax, " of A-Z a-z 0-9 . _ -"));
  }
  RETURN_IF_ERROR(ValidateLabel("tenant.name", tenant.name));
  return ValidateTerms(tenant.terms);
}

}  // namespace ultraspeed::router
