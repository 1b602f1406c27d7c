#include "router/admission.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

bool IsLimited(const TierLimits& limits) {
  return limits.requests_per_minute > 0 || limits.tokens_per_minute > 0 ||
         limits.concurrent_streams > 0;
}

// Another tier may still take the request.
bool IsRefusalOfTier(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsFailedPrecondition(status);
}

}  // namespace

bool Admission::MayBlock(const AdmissionRequest& request) const {
  if (options_.store != nullptr) return true;
  return options_.limiter_blocks &&
         std::any_of(request.tiers.begin(), request.tiers.end(),
                     [&](Tier tier) { return IsLimited(request.tenant.terms->LimitsOf(tier)); });
}

AdmissionResult Admission::Admit(const AdmissionRequest& request) const {
  AdmissionResult result{.settlement = absl::InternalError("no tier"), .metadata = {}};
  for (const Tier tier : request.tiers) {
    result = AdmitAt(tier, request);
    if (!IsRefusalOfTier(result.settlement.status())) break;
  }
  return result;
}

AdmissionResult Admission::AdmitAt(Tier tier, const AdmissionRequest& request) const {
  AdmissionResult result{.settlement = absl::InternalError("not decided"), .metadata = {}};
  const TenantTerms& terms = *request.tenant.terms;
  Grant grant;
  if (options_.limiter != nullptr && IsLimited(terms.LimitsOf(tier))) {
    const LimitRequest limit_request{.tenant = request.tenant.tenant,
                                     .tier = tier,
                                     .limits = terms.LimitsOf(tier),
                                     .tokens = request.prompt_tokens + request.likely_tokens};
    LimitDecision decision = options_.limiter->Acquire(limit_request);
    result.metadata = RateLimitMetadata(decision);
    if (!decision.admitted()) {
      result.settlement = RefusalStatus(limit_request, decision);
      return result;
    }
    grant = *std::move(decision.grant);
  }
  std::optional<Settlement::OpenEntry> entry;
  if (options_.store != nullptr) {
    auto opened = OpenEntry(tier, request);
    if (!opened.ok()) {  // the grant's end gives everything back
      result.settlement = opened.status();
      return result;
    }
    entry = *std::move(opened);
  }
  const Entitlement* const entitlement = terms.Find(request.model, tier);
  result.settlement =
      Settlement(tier, entitlement == nullptr ? 0 : entitlement->promised_tokens_per_second,
                 std::move(grant), std::move(entry));
  return result;
}

absl::StatusOr<Settlement::OpenEntry> Admission::OpenEntry(Tier tier,
                                                           const AdmissionRequest& request) const {
  const absl::Time now = absl::FromUnixMillis(absl::ToUnixMillis(options_.clock->Now()));
  const std::shared_ptr<const PriceTable> table = options_.accounts->prices();
  Settlement::OpenEntry entry{.request_id = request.request_id,
                              .prices = {},
                              .outbox = options_.outbox,
                              .clock = options_.clock};
  for (const Tier billed : {Tier::kStandard, tier}) {
    auto price = table->Find(request.model, billed, now);
    if (!price.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("no price is set: ", price.status().message()));
    }
    entry.prices[static_cast<size_t>(billed)] = *std::move(price);
  }
  const Price& price = entry.prices[static_cast<size_t>(tier)];
  const LedgerOpening opening{
      .request_id = request.request_id,
      .tenant_id = request.tenant.tenant,
      .key_id = request.tenant.key_id,
      .model = request.model,
      .tier = tier,
      .price_version = price.version,
      .reserved_tokens = request.prompt_tokens + request.max_tokens,
      .reserved_nanodollars =
          PriceOf({.prompt = request.prompt_tokens, .cached = 0, .completion = request.max_tokens},
                  price.per_million),
      .router_id = options_.router_id,
      .opened = now};
  const std::optional<int64_t>& budget = request.tenant.terms->monthly_budget_nanodollars;
  if (options_.outbox->is_full()) {
    return absl::UnavailableError(
        absl::StrCat("the accounts store is away and ", options_.outbox->depth(),
                     " ledger writes wait for it already; no more are taken"));
  }
  if (options_.outbox->store_is_away()) {
    RETURN_IF_ERROR(OpenWithoutStore(opening, budget.has_value()));
    return entry;
  }
  const absl::Status status = options_.store->OpenEntry(opening, budget);
  if (absl::IsUnavailable(status)) {
    const absl::Status without = OpenWithoutStore(opening, budget.has_value());
    if (!without.ok()) {
      // The opening may have been written all the same; what follows makes sure that it is closed.
      Settlement(tier, 0, {}, std::move(entry)).Settle({});
      return without;
    }
    return entry;
  }
  RETURN_IF_ERROR(status);
  return entry;
}

absl::Status Admission::OpenWithoutStore(const LedgerOpening& opening, bool has_budget) const {
  if (has_budget) {
    return absl::UnavailableError(absl::StrCat("the budget of tenant ", opening.tenant_id,
                                               " cannot be checked: the accounts store is away"));
  }
  options_.outbox->Add(opening);
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
