#include "router/rate_limiter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

// A stream ends when it ends: a short wait, so that the place it leaves is not idle for long.
constexpr absl::Duration kStreamsRetryAfter = absl::Seconds(1);

absl::Status CheckRange(absl::string_view field, int64_t value) {
  if (value >= 0 && value <= kRateLimitMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", value, ": must be 0 (not limited) to ", kRateLimitMax));
}

std::optional<GcraRate> Rate(int64_t limit_per_minute, int64_t burst) {
  if (limit_per_minute == 0) return std::nullopt;
  return GcraRate{.limit_per_minute = limit_per_minute,
                  .burst = burst > 0 ? burst : limit_per_minute};
}

LimitState StateOf(const std::optional<GcraRate>& rate, const GcraBucket& bucket) {
  if (!rate) return {};
  return {.limit = rate->limit_per_minute,
          .remaining = UnitsLeft(bucket, *rate),
          .reset = absl::Microseconds(MicrosUntilEmpty(bucket, *rate))};
}

absl::Duration WaitFor(const std::optional<GcraRate>& rate, const GcraBucket& bucket,
                       int64_t units) {
  if (!rate) return absl::ZeroDuration();
  const int64_t micros = MicrosUntilPass(bucket, *rate, units);
  return micros < 0 ? absl::InfiniteDuration() : absl::Microseconds(micros);
}

const LimitState& StateOf(const LimitReport& report, LimitKind kind) {
  switch (kind) {
    case LimitKind::kRequests:
      return report.requests;
    case LimitKind::kTokens:
      return report.tokens;
    case LimitKind::kStreams:
      break;
  }
  return report.streams;
}

void AppendMetadata(const LimitState& state, absl::string_view unit,
                    std::vector<std::pair<std::string, std::string>>& out) {
  if (state.limit == 0) return;
  out.emplace_back(absl::StrCat("x-ratelimit-limit-", unit), absl::StrCat(state.limit));
  out.emplace_back(absl::StrCat("x-ratelimit-remaining-", unit), absl::StrCat(state.remaining));
  out.emplace_back(absl::StrCat("x-ratelimit-reset-", unit),
                   absl::FormatDuration(absl::Ceil(state.reset, absl::Milliseconds(1))));
}

}  // namespace

absl::string_view LimitKindName(LimitKind kind) {
  switch (kind) {
    case LimitKind::kRequests:
      return "requests per minute";
    case LimitKind::kTokens:
      return "tokens per minute";
    case LimitKind::kStreams:
      break;
  }
  return "concurrent streams";
}

absl::Status TierLimits::Validate() const {
  const std::pair<absl::string_view, int64_t> fields[] = {
      {"requests_per_minute", requests_per_minute},
      {"requests_burst", requests_burst},
      {"tokens_per_minute", tokens_per_minute},
      {"tokens_burst", tokens_burst},
      {"concurrent_streams", concurrent_streams}};
  for (const auto& [field, value] : fields) {
    if (absl::Status status = CheckRange(field, value); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::optional<GcraRate> RequestRate(const TierLimits& limits) {
  return Rate(limits.requests_per_minute, limits.requests_burst);
}

std::optional<GcraRate> TokenRate(const TierLimits& limits) {
  return Rate(limits.tokens_per_minute, limits.tokens_burst);
}

LimitVerdict JudgeRequest(const LimitRequest& request, const LimitUse& use) {
  const TierLimits& limits = request.limits;
  const bool streams_full =
      limits.concurrent_streams > 0 && use.streams >= limits.concurrent_streams;
  const std::pair<LimitKind, absl::Duration> waits[] = {
      {LimitKind::kRequests, WaitFor(RequestRate(limits), use.requests, 1)},
      {LimitKind::kTokens, WaitFor(TokenRate(limits), use.tokens, request.tokens)},
      {LimitKind::kStreams, streams_full ? kStreamsRetryAfter : absl::ZeroDuration()}};
  const auto longest =
      std::max_element(std::begin(waits), std::end(waits),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return {.passes = longest->second == absl::ZeroDuration(),
          .exceeded = longest->first,
          .retry_after = longest->second};
}

LimitReport ReportUse(const TierLimits& limits, const LimitUse& use) {
  return {.requests = StateOf(RequestRate(limits), use.requests),
          .tokens = StateOf(TokenRate(limits), use.tokens),
          .streams = {.limit = limits.concurrent_streams,
                      .remaining = std::max<int64_t>(0, limits.concurrent_streams - use.streams),
                      .reset = absl::ZeroDuration()}};
}

absl::Status RefusalStatus(const LimitRequest& request, const LimitDecision& decision) {
  const LimitState& state = StateOf(decision.report, decision.exceeded);
  const std::string limit =
      absl::StrCat("limit of ", state.limit, " ", LimitKindName(decision.exceeded), " of tier ",
                   TierName(request.tier));
  if (decision.retry_after == absl::InfiniteDuration()) {
    const std::optional<GcraRate> rate = TokenRate(request.limits);
    return absl::ResourceExhaustedError(
        absl::StrCat("tokens=", request.tokens, " (prompt + max_tokens): more than the ",
                     rate ? rate->burst : 0, " that the ", limit, " allows at once"));
  }
  const std::string asked =
      decision.exceeded == LimitKind::kTokens
          ? absl::StrCat(request.tokens, " tokens (prompt + max_tokens) asked, ", state.remaining,
                         " left; ")
          : "";
  return absl::ResourceExhaustedError(
      absl::StrCat(limit, " reached: ", asked, "retry after ",
                   absl::FormatDuration(absl::Ceil(decision.retry_after, absl::Milliseconds(1)))));
}

std::vector<std::pair<std::string, std::string>> RateLimitMetadata(const LimitDecision& decision) {
  std::vector<std::pair<std::string, std::string>> metadata;
  AppendMetadata(decision.report.requests, "requests", metadata);
  AppendMetadata(decision.report.tokens, "tokens", metadata);
  if (!decision.admitted() && decision.retry_after != absl::InfiniteDuration()) {
    const absl::Duration seconds = absl::Ceil(decision.retry_after, absl::Seconds(1));
    metadata.emplace_back("retry-after", absl::StrCat(absl::ToInt64Seconds(seconds)));
  }
  return metadata;
}

// ---- Grants ----

Grant& Grant::operator=(Grant&& other) noexcept {
  if (this == &other) return *this;
  Settle(0);
  limiter_ = std::exchange(other.limiter_, nullptr);
  record_ = std::move(other.record_);
  return *this;
}

void Grant::Settle(int64_t actual_tokens) {
  if (limiter_ == nullptr) return;
  std::exchange(limiter_, nullptr)->Settle(record_, std::max<int64_t>(0, actual_tokens));
}

Grant RateLimiter::MakeGrant(GrantRecord record) {
  Grant grant;
  grant.limiter_ = this;
  grant.record_ = std::move(record);
  return grant;
}

}  // namespace ultraspeed::router
